"""A warm cluster is fast because it is there, not because it remembers; what crosses to it and
back; what it leaves alone.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

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
    import part
    assert part.VALUE == 2

def test_finds_nothing_of_the_session_before():
    assert "LEFT_BEHIND" not in os.environ
    assert not Path("left.txt").exists()
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
    project.write(test_a=LEAVING.format(note=str(note)), part="VALUE = 1\n")
    first = project.run()
    pid, temporary = note.read_text().split()

    project.write(test_a=LOOKING, part="VALUE = 2\n")
    second = project.run()

    assert first.code == 0, first.out
    assert second.code == 0, second.out
    assert f"cluster      {first.cluster}, warm" in second.out
    assert not Path(f"/proc/{pid}").exists()
    assert not Path(temporary).exists()


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
    assert (
        f"cluster {busy.cluster} serves session {busy.session}; starting one of our own" in ran.out
    )
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


DEVICES = """
import os, subprocess, sys
import pytest

AT_IMPORT = os.environ.get("CUDA_VISIBLE_DEVICES")

def count():
    visible = os.environ["CUDA_VISIBLE_DEVICES"]
    assert AT_IMPORT == visible
    printing = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"]
    inner = subprocess.run(printing, capture_output=True, text=True, check=True)
    assert inner.stdout.strip() == visible
    return len([word for word in visible.split(",") if word])

def no_cluster():
    assert not [name for name in os.environ if name.startswith("RAY_")], os.environ

def test_default():
    no_cluster()
    assert count() == 1

@pytest.mark.gpu(count=0)
def test_none(gpus):
    no_cluster()
    assert count() == 0
    assert gpus == []

@pytest.mark.gpu(count=2)
def test_two(gpus):
    no_cluster()
    assert count() == 2
    assert [g.id for g in gpus] == os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    assert all(g.simulated for g in gpus)

@pytest.mark.gpu(count=0.5)
@pytest.mark.parametrize("n", range(2))
def test_half(n, gpus):
    no_cluster()
    assert count() == len(gpus) == 1

@pytest.mark.ray(gpus=1)
def test_driver():
    import ray
    ray.init()
    visible = ray.remote(lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))
    assert count() == 0
    assert ray.get(visible.options(num_gpus=1).remote()) in ("0", "1")
    assert ray.get(visible.options(num_gpus=0).remote()) == ""

@pytest.mark.ray(gpus=1)
@pytest.mark.gpu(count=1)
def test_driver_with_a_device():
    import ray
    ray.init()
    mine = os.environ["CUDA_VISIBLE_DEVICES"]
    assert count() == 1
    visible = ray.remote(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
    theirs = ray.get(visible.options(num_gpus=1).remote())
    assert {mine, theirs} == {"0", "1"}
"""


@pytest.mark.skipif(
    os.path.exists("/dev/nvidiactl"), reason="the numbers are those of two simulated GPUs"
)
def test_every_process_sees_exactly_its_devices(project: Project) -> None:
    """A test that sees a neighbour's GPU takes its memory, and both fail on another day."""
    project.write(test_a=DEVICES)

    ran = project.run()

    assert ran.code == 0, ran.out
    assert set(ran.cases().values()) == {"passed"}
    assert len(ran.cases()) == 7


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


# -- Ray of two nodes, and Ray of the user ---------------------------------------------------------

TWO_NODES = """
import os
import pytest

@pytest.mark.ray(nodes=2)
def test_joins():
    import ray
    ray.init()
    assert len({node["NodeID"] for node in ray.nodes() if node["Alive"]}) == 2
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
    where = ray.remote(lambda: ray.get_runtime_context().get_node_id())
    nodes = [node["NodeID"] for node in ray.nodes()]
    asked = [where.options(scheduling_strategy=On(n, soft=False)).remote() for n in nodes]
    assert ray.get(asked) == nodes

def test_has_no_address():
    assert "RAY_ADDRESS" not in os.environ
"""


@dataclass(frozen=True, kw_only=True)
class UsersRay:
    """`environ` has the token: with one of its own it is indifferent to what lies in the user's
    home.
    """

    address: str
    environ: dict[str, str]


@pytest.fixture
def users_ray(tmp_path: Path) -> Iterator[UsersRay]:
    """A Ray that the user runs on this machine, as `ray start --head` leaves it."""
    directory = Path("/tmp") / f"users-ray-{os.getpid()}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    argv = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--include-dashboard=false",
        "--num-cpus=1",
        "--disable-usage-stats",
        f"--port={port}",
        f"--temp-dir={directory}",
        "--node-ip-address=127.0.0.1",
    ]
    log = tmp_path / "users-ray.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            argv, env=environ, stdout=file, stderr=file, start_new_session=True
        )
    assert eventually(lambda: "Ray runtime started" in log.read_text(), within_s=90), (
        log.read_text()
    )
    yield UsersRay(address=f"127.0.0.1:{port}", environ=environ)
    process.terminate()
    process.wait(30)
    subprocess.run(["rm", "-rf", str(directory)], check=True)


@pytest.mark.slow  # three nodes of Ray
def test_a_users_own_ray_is_left_alone_and_a_bare_init_joins_ours(
    lone: Project, users_ray: UsersRay
) -> None:
    """An engineer's own cluster on the same machine holds an hour of work.

    Two nodes here, so that one start serves both.
    """
    before, home = current_cluster(), Path.home() / ".ray"
    home_before = home.exists()
    lone.write(test_a=TWO_NODES)
    lone.settings("nodes = 2\nidle-minutes = 0")

    ran = lone.run()

    assert ran.code == 0, ran.out
    assert before == current_cluster()
    assert home.exists() == home_before
    program = (
        "import ray, sys; ray.init(address=sys.argv[1]); "
        "print(len([n for n in ray.nodes() if n['Alive']]))"
    )
    command = [sys.executable, "-c", program, users_ray.address]
    finished = subprocess.run(
        command, env=users_ray.environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.stdout.strip() == "1", finished.stderr
    assert left_of(ran.cluster) == []


def current_cluster() -> str | None:
    """Return the address that a bare `ray.init(address="auto")` of the user would join."""
    path = Path("/tmp/ray/ray_current_cluster")
    return path.read_text() if path.exists() else None


def test_the_records_of_a_session_are_json(project: Project) -> None:
    """Whoever comes after us reads them with nothing but the standard library."""
    project.write(test_a="def test_a():\n    pass\n")

    ran: Ran = project.run()

    where = Path(project.store, "sessions", ran.session)
    assert json.loads((where / "result.json").read_bytes())["exitstatus"] == 0
    request = json.loads((where / "request.json").read_bytes())
    assert request["session"] == ran.session
    assert "values" not in request
