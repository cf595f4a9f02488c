"""A warm cluster is fast because it is there, not because it remembers; what crosses to it and
back; what it leaves alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from tests.acceptance.processes import eventually, left_of
from tests.acceptance.project import Project, Ran

# -- two sessions on one cluster -------------------------------------------------------------------

LEAVING = """
import os, subprocess, sys, tempfile, time
from pathlib import Path
import pytest

def test_leaves_things_behind(tmp_path):
    os.environ["LEFT_BEHIND"] = "yes"
    Path("left.txt").write_text("in the working directory")
    before = os.stat("kept.py")
    Path("kept.py").write_text("VALUE = 9")  # as long, and as old
    os.utime("kept.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    Path(tempfile.gettempdir(), "left.txt").write_text("in the temporary directory")
    sleeping = [sys.executable, "-c", "import time; time.sleep(300)"]
    background = subprocess.Popen(sleeping, start_new_session=True)
    Path({note!r}).write_text(f"{{background.pid}} {{tempfile.gettempdir()}}")

@pytest.mark.ray
def test_leaves_ray_things_behind():
    import ray
    ray.init()

    @ray.remote
    class Left:
        def ready(self):
            return True

    left = Left.options(name="left", lifetime="detached", namespace="theirs", num_cpus=0).remote()
    assert ray.get(left.ready.remote())
    nameless = Left.options(lifetime="detached", num_cpus=0).remote()
    assert ray.get(nameless.ready.remote())
    group = ray.util.placement_group([{{"GPU": 1}}], lifetime="detached", name="left-group")
    assert group.wait(30)
"""
LOOKING = """
import os, tempfile
from pathlib import Path
import pytest

def test_changed_code_runs():
    import kept, part
    assert (kept.VALUE, part.VALUE) == (1, 2)

def test_finds_nothing_of_the_session_before():
    assert "LEFT_BEHIND" not in os.environ
    assert not Path("left.txt").exists()
    assert Path("kept.py").read_text() == "VALUE = 1"
    assert not Path(tempfile.gettempdir(), "left.txt").exists()

@pytest.mark.ray(gpus=2)
def test_finds_nothing_in_ray():
    import ray
    ray.init()
    assert ray.util.list_named_actors(all_namespaces=True) == []
    assert [g for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"] == []
    group = ray.util.placement_group([{"GPU": 2}])
    assert group.wait(30), "devices of the session before are still held"
"""


def test_a_second_session_is_warm_and_finds_nothing_of_the_first(
    project: Project, tmp_path: Path
) -> None:
    """Stale code or a stale process makes a test pass on Tuesday that fails on Wednesday."""
    note = tmp_path / "note"
    project.write(test_a=LEAVING.format(note=str(note)), part="VALUE = 1\n", kept="VALUE = 1")
    first = project.run()
    pid, temporary = note.read_text().split()

    project.write(test_a=LOOKING, part="VALUE = 2\n")
    second = project.run()

    assert first.code == 0, first.out
    assert second.code == 0, second.out
    assert f"cluster      {first.cluster}, warm" in second.out
    assert not Path(f"/proc/{pid}").exists()
    assert not Path(temporary, "left.txt").exists()  # the directory is every session's


IMMORTAL = """
import pytest

@pytest.mark.ray
def test_leaves_what_cannot_be_ended():
    import ray
    ray.init()

    @ray.remote(num_cpus=0, max_restarts=-1)
    class Immortal:
        def ready(self):
            return True

    left = Immortal.options(lifetime="detached").remote()
    assert ray.get(left.ready.remote())
"""


def test_a_cluster_that_cannot_be_cleaned_is_not_lent_again_and_costs_the_next_session_nothing(
    project: Project,
) -> None:
    """A session that asks for it in the meantime is refused and starts another cluster.

    That is no failure of the session.
    """
    project.write(test_a=IMMORTAL)
    first = project.run()

    project.write(test_a="def test_a():\n    pass\n")
    second = project.run()

    assert first.code == 0, first.out
    assert second.code == 0, second.out
    assert second.cluster != first.cluster
    eventually(lambda: left_of(first.cluster) == [])


def test_a_second_session_meanwhile_gets_a_cluster_of_its_own_and_is_told(
    project: Project, tmp_path: Path
) -> None:
    """Two terminals of one engineer: neither waits for the other, and neither disturbs the
    other.
    """
    other = Project(tmp_path / "other", project.store)
    other.write(test_b="def test_b():\n    pass\n")
    go = tmp_path / "go"
    project.write(
        test_a=(
            f"import os, time\n"
            f"def test_a():\n"
            f"    while not os.path.exists({str(go)!r}):\n"
            f"        time.sleep(0.05)\n"
        )
    )
    running = project.start()
    busy = running.until("gpu-cluster: ray ")

    ran = other.run(GPU_CLUSTER_IDLE_MINUTES="0")
    go.touch()
    first = running.wait()

    assert ran.code == 0, ran.out
    assert f"cluster {busy.cluster} serves session {busy.session}; starting a new one" in ran.out
    assert ran.cluster != busy.cluster
    assert first.code == 0, first.out
    assert left_of(ran.cluster) == [], "GPU_CLUSTER_IDLE_MINUTES=0 left a cluster"


# -- what crosses ----------------------------------------------------------------------------------

SECRET, PRIVATE = "token-71c9-crosses", "token-88f2-stays"
VARIABLES = """
import os

def test_variables():
    # Backwards: the value itself would be in the tree.
    assert os.environ["TRAINING_KEY"] == os.environ["PYTEST_EXPECTED"][::-1]
    assert "OTHER_KEY" not in os.environ
    assert not [name for name in os.environ if name.startswith(("AWS_", "GPU_CLUSTER_"))]

def test_artifact(artifacts):
    (artifacts / "curve.txt").write_text("0.5 0.25")
    (artifacts / "deep").mkdir()
    (artifacts / "deep" / "weights.bin").write_bytes(bytes(range(256)))
"""


def contents(store: Path) -> Iterator[tuple[str, bytes]]:
    """Every object of a store on disk, unpacked where it is packed."""
    for path in sorted(p for p in store.rglob("*") if p.is_file()):
        raw = path.read_bytes()
        yield str(path.relative_to(store)), raw
        for wbits in (zlib.MAX_WBITS, -zlib.MAX_WBITS, zlib.MAX_WBITS | 16):
            try:
                yield str(path.relative_to(store)), zlib.decompress(raw, wbits)
            except zlib.error:
                continue


def test_only_passed_variables_cross_and_no_value_is_stored_and_artifacts_come_home(
    project: Project,
) -> None:
    """The store outlives the run and has other readers; a secret in it is a secret that leaked."""
    project.write(test_a=VARIABLES)
    project.settings('pass-env = ["PYTEST_*", "TRAINING_KEY"]')

    values = {
        "TRAINING_KEY": SECRET,
        "PYTEST_EXPECTED": SECRET[::-1],
        "OTHER_KEY": PRIVATE,
        "AWS_SECRET_ACCESS_KEY": PRIVATE,
    }
    ran = project.run(**values)

    assert ran.code == 0, ran.out
    objects = dict(contents(Path(project.store)))
    assert any(b"test_variables" in data for data in objects.values()), "the journal was not read"
    for value in (SECRET, PRIVATE, SECRET[::-1]):
        assert [
            name for name, data in contents(Path(project.store)) if value.encode() in data
        ] == []
    artifacts = {
        name.rpartition("/")[2]: data
        for name, data in objects.items()
        if f"sessions/{ran.session}/artifacts/" in name
    }
    assert artifacts["curve.txt"] == b"0.5 0.25"
    assert artifacts["weights.bin"] == bytes(range(256))


def test_an_editable_install_resolves_to_the_shipped_tree_and_under_ci_nothing_stays(
    lone: Project, tmp_path: Path
) -> None:
    """Else the tests would run against the checkout of this machine, which a rented one does not
    have. The .pth file is what pip writes for `pip install -e .` of a src layout. A runner's next
    job must not find our processes.
    """
    home = tmp_path / "v"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=60
    )
    (site,) = home.glob("lib/python*/site-packages")
    (site / "ours.pth").write_text(
        next(path for path in sys.path if path.endswith("site-packages")) + "\n"
    )
    (site / "__editable__.shipped-1.0.pth").write_text(f"{lone.root / 'src'}\n")
    lone.write(
        test_a="""
import os
import shipped

def test_where():
    assert os.path.samefile(os.path.dirname(shipped.WHERE), "src/shipped"), shipped.WHERE
    assert "/s/" in shipped.WHERE and "/tree/" in shipped.WHERE, shipped.WHERE
"""
    )
    (lone.root / "src" / "shipped").mkdir(parents=True)
    (lone.root / "src" / "shipped" / "__init__.py").write_text("WHERE = __file__\n")
    lone.settings(f'local.python = "{home}/bin/python"')

    ran = lone.run(CI="true")

    assert ran.code == 0, ran.out
    assert "stays warm" not in ran.out
    assert left_of(ran.cluster) == []
    assert json.loads(lone.command("ls", "--json").stdout)["clusters"] == []


def test_the_records_of_a_session_are_json(project: Project) -> None:
    """Whoever comes after us reads them with nothing but the standard library."""
    project.write(test_a="def test_a():\n    pass\n")

    ran: Ran = project.run()

    where = Path(project.store, "sessions", ran.session)
    assert json.loads((where / "result.json").read_bytes())["exitstatus"] == 0
    request = json.loads((where / "request.json").read_bytes())
    assert request["session"] == ran.session
    assert "values" not in request
