"""A cluster of two machines that share nothing: what one machine would hide is seen here.

The second one has another disk, user, HOME, hostname, /dev/shm and memory. Only a network joins
them, and a store that both reach over it.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract import procfs
from tests.acceptance.processes import eventually
from tests.acceptance.project import Project
from tests.rigs.hostile import HostileProvider
from tests.rigs.machine import GUARD, HOME, HOST, UID
from tests.rigs.world import REPOSITORY, World

pytestmark = pytest.mark.rig
SECRET = "s3cr3t-" + "of-the-rig"

TOOLS = """
import json, os, pathlib, socket

NODE = pathlib.Path(os.environ["TMPDIR"]).parent
CLUSTER = NODE.parent


def facts():
    shm = os.statvfs("/dev/shm")
    return {
        "host": socket.gethostname(),
        "uid": os.getuid(),
        "environ": {k: v for k, v in os.environ.items() if k != "RIG_TOKEN"},
        "temporary": os.path.isdir(os.environ["TMPDIR"]),
        "shm": shm.f_blocks * shm.f_frsize,
        "cwd": os.getcwd(),
    }
"""
DEVICES = """
import os, socket
import pytest

if not os.environ["CUDA_VISIBLE_DEVICES"]:
    pytest.skip("no GPU", allow_module_level=True)


@pytest.mark.gpu(count=2)
@pytest.mark.parametrize("device", os.environ["CUDA_VISIBLE_DEVICES"].split(","))
def test_of_device(device):
    assert socket.gethostname() == "second-machine"
"""
PLACES = """
import json, os, pathlib
import pytest
from tools import CLUSTER, NODE, facts


def test_on_second(artifacts):
    (artifacts / "second.json").write_text(json.dumps(facts()))
    pathlib.Path(os.environ["TMPDIR"], "left").write_text("by the first session")
    pathlib.Path("left.txt").write_text("in the tree")
    with open(NODE / "keeper.log", "a") as log:
        log.write("the token is " + os.environ["RIG_TOKEN"])


@pytest.mark.gpu(count=0)
def test_anywhere(artifacts):
    (artifacts / "anywhere.json").write_text(json.dumps(facts()))
"""
HOG = """
def test_is_modest():
    pass


def test_takes_all_memory():
    taken = []
    while True:
        taken.append(b"x" * (64 << 20))


def test_comes_after():
    pass
"""
WARM = """
import os, pathlib
from tools import CLUSTER, NODE


def test_finds_nothing_of_the_last_session():
    assert os.listdir(os.environ["TMPDIR"]) == []
    assert not pathlib.Path("left.txt").exists()
    assert len(os.listdir(CLUSTER / "n0" / "s")) == 1
"""
LONG = """
import pathlib, time
import pytest


def test_is_under_way():
    time.sleep(300)


def test_waits_for_its_gpu():
    time.sleep(300)


def test_waits_too():
    pass
"""


SPREAD = """
import pathlib, time
import pytest


@pytest.mark.gpu(count=2)
def test_fits_the_second_machine_alone():
    pass


@pytest.mark.ray
@pytest.mark.gpu(count=1)
def test_drives_ray_with_the_gpu_of_the_head():
    "The other machine could not be prepared for it: that must not hold its GPU."


@pytest.mark.parametrize("n", range(6))
def test_one_of_six(n):
    time.sleep(0.5)
"""


@pytest.fixture(scope="module")
def new_project(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Project]]:
    """Return a function that makes a project, whose cluster is of the two machines of the world."""
    projects: list[Project] = []

    def make(name: str, **environ: str) -> Project:
        top = tmp_path_factory.mktemp(name)
        project = Project(top / "p", f"s3://bucket/{name}")
        project.within = world.within
        cgroup = {"RIG_CGROUP": str(world.cgroup)} if world.cgroup is not None else {}
        project.environ |= world.environ | cgroup | environ
        project.environ |= {
            "PYTHONPATH": str(REPOSITORY),
            "XDG_CACHE_HOME": "/first/cache",
            "RIG_LOG": str(top / "second.log"),
        }
        projects.append(project)
        return project

    yield make
    for project in projects:
        argv = ("-m", "pytest_gpu_cluster.cli", "down")
        world.run(*argv, cwd=project.root, environ=project.environ)


def settings(**more: object) -> str:
    """Return the settings of a cluster of the two machines."""
    values = {"provider": HostileProvider.name, "nodes": 2, **more}
    return "\n".join(
        f"{name.replace('_', '-')} = {json.dumps(value)}" for name, value in values.items()
    )


@pytest.fixture(scope="module")
def headless(new_project: Callable[..., Project]) -> Project:
    """A project whose cluster has GPUs on the second machine alone, and stays warm."""
    project = new_project("headless", RIG_HEAD_GPUS="0", RIG_TOKEN=SECRET)
    project.settings(settings(idle_minutes=2, pass_env=["RIG_TOKEN"], distribute="test"))
    project.write(tools=TOOLS)
    return project


def left_of(world: World, cluster: str) -> list[object]:
    """Return the remains of a cluster on both machines: its directory, and processes."""
    directory = world.clusters / cluster
    pids = procfs.with_environment(f"{directory}/".encode())
    return [*pids, directory] if directory.exists() else [*pids]


def second_keeper(world: World, cluster: str) -> int:
    """Return the pid of the keeper of the second machine, as this process sees it."""
    mark = f"{world.clusters}/{cluster}/n1/spec.json".encode()
    pair = {each.pid: each.parent for each in procfs.processes() if is_guard(each.pid, mark)}
    (keeper,) = [pid for pid, parent in pair.items() if parent in pair]
    return keeper


def is_guard(pid: int, mark: bytes) -> bool:
    """Return True for a guard, or the keeper that it was forked into, with this argument."""
    line = procfs.command_line(pid)
    return GUARD.encode() in line and mark in line


def started(segments: Iterable[str]) -> str:
    """Return the lines of a journal that say that a test runs."""
    lines = (line for segment in segments for line in segment.splitlines())
    return "\n".join(line for line in lines if '"test_started"' in line)


def artifacts_of(world: World, project: Project, session: str) -> dict[str, str]:
    """Return the artifacts of a session by the name of the file."""
    found = world.objects(project.store, f"sessions/{session}/artifacts/")
    return {Path(key).name: text for key, text in found.items()}


def test_tests_are_selected_and_run_where_the_gpus_are_with_what_is_there(
    world: World, headless: Project
) -> None:
    """A head without a GPU would skip the module: green, and nothing was tried. And a path of the
    head's environment leads nowhere on another machine.
    """
    headless.write(test_devices=DEVICES, test_places=PLACES)

    ran = headless.run()

    assert ran.code == 0, ran.out
    assert ran.cases() == dict.fromkeys(
        ("test_of_device[0]", "test_of_device[1]", "test_on_second", "test_anywhere"), "passed"
    )
    assert ran.out.count(f"on {HOST}: 2 x simulated GPU") == 1
    written = artifacts_of(world, headless, ran.session)
    second = json.loads(written["second.json"])
    assert (second["host"], second["uid"], second["shm"]) == (HOST, UID, 64 << 20)
    assert second["temporary"], "TMPDIR is a directory of another machine"
    environ = second["environ"]
    assert (environ["HOME"], environ["ONLY_ON_SECOND"]) == (str(HOME), "yes")
    assert "XDG_CACHE_HOME" not in environ
    anywhere = json.loads(written["anywhere.json"])
    if anywhere["host"] != HOST:
        assert anywhere["environ"]["XDG_CACHE_HOME"] == "/first/cache"


def test_a_session_leaves_nothing_but_its_record_on_the_second_machine(
    world: World, headless: Project
) -> None:
    """User source on somebody's disk; and the next session must not see what the last one wrote.

    What the node logged is in the record, without the secrets that tests wrote there.
    """
    headless.write(test_places=PLACES)
    first = headless.run("test_places.py")
    headless.write(test_places=WARM)

    ran = headless.run("test_places.py")

    assert first.code == ran.code == 0, ran.out
    assert ran.cluster == first.cluster
    logs = world.objects(headless.store, f"sessions/{first.session}/logs/")
    assert "the token is ***" in logs[f"sessions/{first.session}/logs/n1/keeper.log"]
    later = world.objects(headless.store, f"sessions/{ran.session}/logs/")
    assert SECRET not in "".join([*logs.values(), *later.values()])


def test_a_test_that_takes_all_memory_is_named(headless: Project, world: World) -> None:
    """It is no failure of the infrastructure, and nothing beside it is lost: not its neighbour, not
    the reservations, not the node.
    """
    if world.cgroup is None:
        pytest.skip("no memory cgroup here")
    headless.write(test_places=HOG)

    ran = headless.run("-v", "test_places.py")

    assert ran.code == 1, ran.out
    assert ran.cases() == {
        "test_is_modest": "passed",
        "test_takes_all_memory": "failure",
        "test_comes_after": "passed",
    }
    assert ran.message("test_takes_all_memory").startswith("crash: SIGKILL (out of memory?)")
    assert "is lost" not in ran.out


def test_a_machine_that_dies_leaves_its_logs_and_no_test_without_an_end(
    world: World, headless: Project
) -> None:
    """Its keeper is killed. The guard beside it stores what was logged; nothing waits for GPUs that
    are gone, and nothing of the cluster stays on either machine.
    """
    headless.write(test_places=LONG)
    running = headless.start("-v", "test_places.py")
    session = running.until("gpu-cluster: cluster ").session
    events = f"sessions/{session}/events/"
    assert eventually(
        lambda: "test_is_under_way" in started(world.objects(headless.store, events).values())
    )
    os.kill(second_keeper(world, running.so_far.cluster), signal.SIGKILL)

    ended = running.wait()

    assert ended.code == 10, ended.out
    assert ended.cases() == dict.fromkeys(
        ("test_is_under_way", "test_waits_for_its_gpu", "test_waits_too"), "error"
    )
    logs = world.objects(headless.store, f"sessions/{ended.session}/logs/n1/")
    assert any(key.endswith("/keeper.log") for key in logs), logs.keys()
    assert eventually(lambda: left_of(world, ended.cluster) == []), left_of(world, ended.cluster)
    assert world.objects(headless.store, "clusters/") == {}


def test_a_machine_on_which_nothing_can_be_prepared_costs_what_it_alone_could_run(
    world: World, new_project: Callable[..., Project]
) -> None:
    """A full disk, a broken mount: its GPUs are not waited for, and the rest of the suite is as
    green as on the other machine alone.
    """
    project = new_project("spoiled", RIG_SPOILED="1", RIG_HEAD_GPUS="1")
    project.settings(settings(idle_minutes=0, distribute="test"))
    project.write(test_a=SPREAD)

    ran = project.run("-v")

    assert ran.code == 10, ran.out
    cases = ran.cases()
    assert cases.pop("test_fits_the_second_machine_alone") == "error"
    assert len(cases) == 7
    assert set(cases.values()) == {"passed"}
    message = ran.message("test_fits_the_second_machine_alone")
    assert "could not be prepared" in message
    assert "the largest node has 1" in message
    assert eventually(lambda: left_of(world, ran.cluster) == []), left_of(world, ran.cluster)
    assert world.objects(project.store, "clusters/") == {}
