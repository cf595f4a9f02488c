"""A run beside records that others have planted in its store."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from pytest_gpu_cluster.contract import procfs
from tests.acceptance.processes import CLUSTERS, eventually, left_of
from tests.acceptance.project import Project
from tests.security.places import contents

EVIL = "from pathlib import Path\nPath(__file__).with_name('ran.txt').write_text('imported')\n"


def test_a_run_is_not_led_astray_by_what_others_have_planted(
    lone: Project, tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    """A record that looks like a warm cluster got the values of the passed variables, at the path
    that its id was, and one that looked gone was struck off there.
    """
    lone.write(test_a="def test_a():\n    pass\n", evil_provider=EVIL)
    first = lone.run()
    assert first.code == 0, first.out
    store = Path(lone.store)
    victim = tmp_path / "outside" / "victim"
    (victim / "n0" / "handoff").mkdir(parents=True)
    guards = [[bystander.pid, procfs.start_time(bystander.pid)]]
    (victim / "guards.json").write_text(json.dumps({"store": str(store), "guards": guards}))
    description = json.loads((store / f"clusters/{first.cluster}/cluster.json").read_bytes())
    planted = {
        "a0": {"id": os.path.relpath(victim, CLUSTERS)},
        "a1": {"id": str(victim / "absent")},
        "a2": {"provider": "evil_provider:Evil"},
    }
    for name, changed in planted.items():
        folder = store / "clusters" / name
        folder.mkdir()
        (folder / "cluster.json").write_text(json.dumps({**description, "id": name, **changed}))
        (folder / "state.json").write_text('{"state": "idle", "ready": true}')
    (store / "clusters" / "a3").symlink_to(victim)
    (store / "index").rename(tmp_path / "outside" / "index")
    (store / "index").symlink_to(tmp_path / "outside" / "index")
    before = contents(tmp_path / "outside")

    linked = lone.run()
    (store / "index").unlink()
    second = lone.run("-p", "no:cacheprovider")
    swept, listed = lone.command("sweep"), lone.command("ls")
    closed = lone.command("down")

    assert second.code == 0, second.out
    assert second.cluster == first.cluster
    assert (linked.code, "index" in linked.out) == (10, True), linked.out
    assert "in the store is a link; it was left alone" in linked.out
    assert contents(tmp_path / "outside") == before
    assert bystander.poll() is None
    assert not (lone.root / "ran.txt").exists()
    assert "cluster a2  unknown: provider 'evil_provider:Evil' is not" in listed.stdout
    assert (swept.returncode, listed.returncode, closed.returncode) == (0, 0, 4), swept.stderr
    assert eventually(lambda: left_of(first.cluster) == [], within_s=10), closed.stdout
    assert "cluster a2 NOT closed" in closed.stdout
