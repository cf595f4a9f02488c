"""A world ends with the test that made it, whatever becomes of that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract import procfs
from tests.acceptance.processes import eventually
from tests.rigs.world import REPOSITORY, World

pytestmark = pytest.mark.rig

HOLDER = """
import json, subprocess, time
from tests.rigs.world import new_world

with new_world(memory_bytes=1 << 30) as world:
    world.clusters.mkdir()
    mark = {"RIG_MARK": f"mark-of-{world.pid}"}
    subprocess.Popen([*world.within, "sleep", "600"], env=mark | {"PATH": "/usr/bin:/bin"})
    print(json.dumps([world.pid, str(world.clusters), str(world.cgroup or "")]), flush=True)
    time.sleep(600)
"""


def test_a_killed_test_leaves_no_process_directory_or_cgroup(world: World) -> None:
    """A run that is cancelled in CI must not cost the next one its memory."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        pid, clusters, cgroup = json.loads(holder.stdout.readline())
        mark = f"RIG_MARK=mark-of-{pid}".encode()
        assert eventually(lambda: len(procfs.with_environment(mark)) >= 2)

        holder.kill()

    assert eventually(lambda: procfs.with_environment(mark) == [])
    assert eventually(lambda: not Path(clusters).exists())
    assert eventually(lambda: not cgroup or not Path(cgroup).exists())
    assert procfs.start_time(world.pid) is not None, "another world is none of its business"
