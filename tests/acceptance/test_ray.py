"""The devices of each process, Ray of two nodes, and the user's own Ray."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.processes import eventually, left_of
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
