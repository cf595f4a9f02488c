"""Tests that hold a GPU for nothing are counted, and none is counted that may have used it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_gpu_cluster.agent.selection import unused_gpus
from tests.conftest import RunPython

RUN = """
import sys, pytest
from pytest_gpu_cluster.worker.gpu_use import GpuUse
use = GpuUse()
pytest.main(["-q", "-p", "no:cacheprovider", "tests.py"], plugins=[use])
print("unused", use.unused())
"""
CPU = "def test_a(): pass\ndef test_b(tmp_path): pass\n"


@pytest.mark.parametrize(
    ("tests", "unused"),
    [
        (CPU, 2),
        (CPU + "import pytest\n@pytest.mark.gpu(count=0)\ndef test_c(): pass\n", 2),
        (CPU + "def test_c(gpus): pass\n", 2),
        (CPU + "def test_c(request): request.getfixturevalue('gpus')\n", 2),
        (CPU + "import subprocess\ndef test_c(): subprocess.run(['true'])\n", 0),
        (CPU + "import sys\ndef test_c(): sys.modules['cupy'] = sys\n", 0),
        (CPU + "f = open('nvidia0')\n", 2),
    ],
    ids=["cpu", "marked", "fixture", "asked for later", "a child", "a library", "a file"],
)
@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has a GPU")
def test_only_what_is_certain_is_counted(
    run_python: RunPython, tmp_path: Path, tests: str, unused: int
) -> None:
    """A child or a library may have used a device unseen; then nothing is said of the process."""
    (tmp_path / "tests.py").write_text(tests)
    (tmp_path / "nvidia0").write_text("")
    (tmp_path / "conftest.py").write_text("import pytest\n@pytest.fixture\ndef gpus(): return []\n")

    done = run_python("-c", RUN, cwd=tmp_path)

    assert f"unused {unused}" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(("unused", "ran", "said"), [(412, 500, 1), (19, 19, 0), (40, 80, 0)])
def test_it_is_said_of_many_and_of_most(unused: int, ran: int, said: int) -> None:
    """A handful waits for nobody, and half of a suite may be as its author means it."""
    notices = [*unused_gpus(unused, ran)]

    assert len(notices) == said
    assert all("mark them gpu(count=0)" in notice.text for notice in notices)
