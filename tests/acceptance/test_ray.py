"""The devices of each process, tests that drive Ray, its two nodes, and the user's own Ray."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.acceptance.processes import eventually, keeper_of, left_of
from tests.acceptance.project import Project

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


AGAIN = """
import pytest

def connect():
    import ray
    assert not ray.is_initialized()
    ray.init()

@pytest.mark.ray
@pytest.mark.parametrize("n", range(2))
def test_connects(n):
    connect()
"""

SHARED = """
import pytest

@pytest.fixture(scope="module")
def connected():
    import ray
    ray.init()
    yield ray
    ray.shutdown()

@pytest.mark.ray
@pytest.mark.parametrize("n", range(2))
def test_uses(connected, n):
    assert connected.get(connected.put(n)) == n
"""

OWN = """
import os

def test_starts_its_own(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)  # else Ray leaves one in the home directory
    import ray
    ray.init(num_cpus=1, include_dashboard=False)
    assert ray.get(ray.remote(lambda: 7).remote()) == 7

def test_long_socket(tmp_path):
    import socket
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.join(os.environ["TMPDIR"], "x" * 60))
"""


def test_a_test_may_connect_to_ray_and_leave_it(project: Project) -> None:
    """The second `ray.init()` of a process would fail, and a fixture's connection is shared."""
    project.write(test_again=AGAIN, test_shared=SHARED)

    ran = project.run()

    assert ran.code == 0, ran.out
    assert set(ran.cases().values()) == {"passed"}
    assert len(ran.cases()) == 4


def test_an_unmarked_test_starts_a_ray_of_its_own(project: Project) -> None:
    """As in plain pytest; the paths of its sockets hold 107 bytes."""
    project.write(test_own=OWN)

    ran = project.run()

    assert ran.code == 0, ran.out
    assert set(ran.cases().values()) == {"passed"}


HELPERS = """
def from_conftest():
    return 7
"""

IN_THE_TREE = """
import os
import sys

import pytest

import acme
from conftest import from_conftest

HERE = os.getcwd()

def helper():
    return acme.ANSWER + 1

def look():
    print("printed by a task")
    print("and its error", file=sys.stderr)
    with open("data/points.csv") as file:
        return os.getcwd(), helper(), from_conftest(), file.read(), os.environ["GPU_TESTS_WORD"]

@pytest.mark.ray
def test_task():
    import ray
    ray.init()
    assert ray.get(ray.remote(look).remote()) == look() == (HERE, 42, 7, "1,2", "kept")

@pytest.mark.ray
def test_actor():
    import ray
    ray.init()
    @ray.remote
    class Looking:
        def look(self):
            return look()
    assert ray.get(Looking.remote().look.remote())[1:4] == (42, 7, "1,2")

@pytest.mark.ray
def test_a_runtime_env_of_its_own(tmp_path):
    (tmp_path / "mine.py").write_text("WHOSE = 'the user'")
    (tmp_path / "here.txt").write_text("here")
    import ray
    ray.init(runtime_env={"working_dir": str(tmp_path), "env_vars": {"GPU_TESTS_WORD": "mine"}})
    def look():
        import mine
        return mine.WHOSE, os.path.exists("here.txt"), os.environ["GPU_TESTS_WORD"]
    assert ray.get(ray.remote(look).remote()) == ("the user", True, "mine")
"""


def test_tasks_run_in_the_tree_as_their_test_does(project: Project) -> None:
    """In plain pytest too a task starts in the test's directory and finds its helpers."""
    for directory in ("src/acme", "data", "tests"):
        (project.root / directory).mkdir(parents=True)
    (project.root / "src/acme/__init__.py").write_text("ANSWER = 41")
    (project.root / "data/points.csv").write_text("1,2")
    (project.root / "pytest.ini").write_text("[pytest]\npythonpath = src")
    (project.root / "tests/conftest.py").write_text(HELPERS)
    (project.root / "tests/test_tasks.py").write_text(IN_THE_TREE)

    ran = project.run("-rP", GPU_TESTS_WORD="kept")

    assert ran.code == 0, ran.out
    assert set(ran.cases().values()) == {"passed"}
    _, _, shown = ran.out.partition("test_task _")
    own, _, _ = shown.partition("test_actor _")
    assert "printed by a task" in own, ran.out
    assert "and its error" in own, ran.out


LEAVING = """
import os
import pytest

def leave(name):
    import ray
    @ray.remote(num_gpus=2)
    class Left:
        def here(self):
            return True
    left = Left.options(name=name, lifetime="detached").remote()
    assert ray.get(left.here.remote())

@pytest.mark.ray(gpus=2)
def test_actor():
    import ray
    from ray.util.placement_group import placement_group
    ray.init()
    leave("detached")
    placement_group([{"CPU": 1}], name="bundle", lifetime="detached")

@pytest.mark.ray(gpus=2)
def test_actor_of_a_closed_connection():
    import ray
    ray.init(namespace="its own")
    leave("elsewhere")
    ray.shutdown()

@pytest.mark.ray(gpus=2)
def test_killed():
    import ray
    ray.init()
    leave("orphan")
    os._exit(3)

@pytest.mark.gpu(count=2)
def test_needs_the_devices():
    pass

@pytest.fixture(scope="module")
def service():
    import ray
    ray.init(namespace="shared")
    @ray.remote
    class Service:
        def here(self):
            return True
    Service.options(name="service", lifetime="detached").remote()
    yield "service"
    ray.kill(ray.get_actor("service"))
    ray.shutdown()

@pytest.mark.ray
@pytest.mark.parametrize("n", range(2))
def test_uses_a_service(service, n):
    import ray
    assert ray.get(ray.get_actor(service).here.remote())
"""


def test_what_a_test_left_in_ray_is_ended_and_named(project: Project) -> None:
    """A detached actor would hold the devices that the next test waits for."""
    project.write(test_left=LEAVING)

    ran = project.run("-p", "no:randomly", "-W", "error")

    assert ran.code == 1, ran.out  # by the process that was killed alone
    outcomes = {name: outcome for name, outcome in ran.cases().items() if "killed" not in name}
    assert len(ran.cases()) == 6
    assert len(outcomes) == 5
    assert set(outcomes.values()) == {"passed"}
    assert "'detached' (leave.<locals>.Left), 2 GPUs; placement group 'bundle'" in ran.out
    assert "'elsewhere' (leave.<locals>.Left), 2 GPUs" in ran.out
    assert ran.out.count("left in Ray") == 2  # the service of a fixture is none


@pytest.mark.slow  # Serve starts four actors
def test_an_application_that_is_still_served_is_ended_and_named(project: Project) -> None:
    """Serve's own actors are detached, and hold what their deployments hold."""
    project.write(test_serve=SERVING)

    ran = project.run()

    assert ran.code == 0, ran.out
    assert "Serve with the application echo" in ran.out


SERVING = """
import pytest

@pytest.mark.ray(gpus=1)
@pytest.mark.parametrize("n", range(2))
def test_serves(n):
    import ray
    from ray import serve
    ray.init()
    @serve.deployment(ray_actor_options={"num_gpus": 1})
    class Echo:
        def __call__(self, word):
            return word
    handle = serve.run(Echo.bind(), name="echo", route_prefix=None)
    assert handle.remote(n).result() == n
"""


def test_nothing_of_a_local_cluster_listens_beyond_loopback(project: Project) -> None:
    """Ray runs whatever it is sent: on a laptop in a café nobody else may send it something."""
    project.write(test_a="def test_a():\n    pass\n")
    ran = project.run()
    assert ran.code == 0, ran.out

    listening = set()
    for process in processes_below(keeper_of(ran.cluster)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            listening |= {
                (process.name(), connection.laddr.ip)
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            }

    assert any(name == "raylet" for name, _ in listening), listening
    beyond = {each for each in listening if each[1].removeprefix("::ffff:") != "127.0.0.1"}
    assert beyond == set()


def test_no_process_of_ray_runs_that_nobody_asks(project: Project) -> None:
    """Ray's dashboard, client and autoscaler are 290 MB of a laptop, and a part of its start."""
    project.write(test_a="def test_a():\n    pass\n")
    ran = project.run()
    assert ran.code == 0, ran.out

    commands = []
    for process in processes_below(keeper_of(ran.cluster)):
        with contextlib.suppress(psutil.NoSuchProcess):  # as above
            commands.append(" ".join(process.cmdline()))

    assert any("gcs_server" in command for command in commands)
    for unasked in ("dashboard/dashboard.py", "ray.util.client.server", "monitor.py"):
        assert not [command for command in commands if unasked in command]


def processes_below(pid: int) -> list[psutil.Process]:
    below: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    return below


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
