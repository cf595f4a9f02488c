"""Runs on a Ray cluster that somebody else has started, and uses."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract import procfs
from tests.acceptance.processes import eventually
from tests.acceptance.project import Project, Running
from tests.rigs.ray_cluster import RayRig, Stranger, ray_rig

RETURN_S = 5.0  # until the devices of a cluster that has ended are free again
SETTINGS = """
provider = "ray"
nodes = 2
gpus-per-node = 2
idle-minutes = 0
[tool.gpu-cluster.ray]
wait-minutes = 1
"""
TESTS = """
import os, socket, time, pytest

@pytest.mark.parametrize("n", range(4))
def test_device(n, cluster):
    assert len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")) == 1
    time.sleep(0.3)

@pytest.mark.gpu(2)
def test_pair():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"

@pytest.mark.ray(gpus=4, nodes=2)
def test_drives():
    import ray
    ray.init()

    @ray.remote(num_gpus=1)
    def node():
        time.sleep(1)
        return ray.get_runtime_context().get_node_id()

    assert len(set(ray.get([node.remote() for _ in range(4)]))) == 2
    Holder = ray.remote(num_gpus=1)(type("Holder", (), {"ping": lambda self: 1}))
    left = Holder.options(name="left", lifetime="detached").remote()
    assert ray.get(left.ping.remote()) == 1

@pytest.mark.skipif("not os.environ['CUDA_VISIBLE_DEVICES']")
def test_selected_where_there_is_a_gpu():
    assert os.environ["CUDA_VISIBLE_DEVICES"]
"""
HALF = """
import os, time, pytest

@pytest.mark.parametrize("n", range(4))
def test_device(n):
    assert os.environ["CUDA_VISIBLE_DEVICES"] in ("0", "1")
    time.sleep(1)

@pytest.mark.ray(gpus=1)
def test_drives():
    import ray
    ray.init()
    assert ray.get(ray.remote(num_gpus=1)(lambda: 7).remote()) == 7
"""
LONG = """
import time

def test_short():
    pass

def test_long():
    time.sleep(100)
"""


SLOW = [pytest.param(way, marks=pytest.mark.slow) for way in ("actor", "guard", "keeper", "client")]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayRig]:
    with ray_rig(Path(f"/tmp/gpu-rig-{os.getpid()}")) as ray:
        yield ray


@pytest.fixture(scope="module")
def stranger(rig: RayRig) -> Iterator[Stranger]:
    other = Stranger(rig)
    yield other
    other.end()


@pytest.fixture
def on_ray(tmp_path: Path, rig: RayRig) -> Iterator[Project]:
    """A project with a store of its own whose clusters are jobs on the rig's Ray."""
    project = project_on(rig, tmp_path)
    yield project
    project.command("down")


def project_on(rig: RayRig, tmp_path: Path) -> Project:
    """Return a project with a store of its own whose clusters are jobs on a Ray."""
    project = Project(tmp_path / "project", str(tmp_path / "store"))
    project.settings(SETTINGS)
    project.environ |= {"RAY_API_SERVER_ADDRESS": rig.address, "RAY_AUTH_TOKEN": rig.token}
    return project


def ours(cluster: str) -> list[int]:
    """Return the processes of a cluster on the nodes."""
    return procfs.with_environment(f"/gpu-ray-{os.getuid()}/{cluster}/".encode())


def left(cluster: str) -> list[str]:
    return [str(path) for path in Path("/tmp", f"gpu-ray-{os.getuid()}").glob(f"{cluster}*")]


def assert_nothing_left(cluster: str, stranger: Stranger, before: dict[str, object]) -> None:
    """What was there before is there, and nothing else: devices within seconds."""
    assert eventually(lambda: stranger.look() == before, within_s=RETURN_S), stranger.look()
    assert eventually(lambda: not ours(cluster) and not left(cluster)), (
        [procfs.command_line(pid) for pid in ours(cluster)],
        left(cluster),
    )


def test_a_session_runs_there_and_touches_nothing_of_others(
    on_ray: Project, rig: RayRig, stranger: Stranger
) -> None:
    """Tests on both nodes, and one that drives Ray; a stranger's actor, group and job stay.

    What stays warm holds no device, and takes them again for the next session.
    """
    before = stranger.look()
    on_ray.write(test_there=TESTS)
    on_ray.environ["GPU_CLUSTER_IDLE_MINUTES"] = "3"

    cold = on_ray.run("-v")
    between = stranger.look()
    warm = on_ray.run("-v")

    for ran in (cold, warm):
        assert ran.code == 0, ran.out
        assert set(ran.cases().values()) == {"passed"}
        assert "SIMULATED" in ran.out
        assert "left in Ray" in ran.out
    assert warm.cluster == cold.cluster
    idle = [f"gpu-cluster-{cold.cluster} NodeActor"] * 2
    of_ray = "SUPERVISOR_ACTOR_RAY_NAMESPACE JobSupervisor"
    assert between == before | {"actors": [of_ray, *idle, "production Trainer"]}
    job = rig.get(f"/api/jobs/{cold.cluster}").json()
    assert rig.token not in str(job)
    assert on_ray.command("down").returncode == 0
    assert_nothing_left(cold.cluster, stranger, before)


def started(running: Running, count: int = 1) -> str:
    """Wait until the long test runs; return the cluster's id."""
    running.until("test_short")
    return running.so_far.cluster


@pytest.mark.parametrize("way", ["driver", "stop", *SLOW])
def test_whatever_is_killed_there_nothing_of_ours_is_left(
    on_ray: Project, rig: RayRig, stranger: Stranger, way: str
) -> None:
    """Nobody of the owners of that Ray cleans up after us."""
    before = stranger.look()
    on_ray.write(test_long=LONG)
    running = on_ray.start("-v")
    cluster = started(running)

    if way == "stop":
        rig.post(f"/api/jobs/{cluster}/stop")
    elif way == "client":
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        running.process.send_signal(signal.SIGINT)
    else:
        os.kill(victim(way, cluster), signal.SIGKILL)
    ran = running.wait()

    assert ran.code != 0
    assert "test_short PASSED" in ran.out
    assert_nothing_left(cluster, stranger, before)


def victim(way: str, cluster: str, node: int = 0) -> int:
    """Return a process of a cluster: of one of its nodes, or the driver."""
    processes = list(procfs.processes())
    lines = {each.pid: procfs.command_line(each.pid) for each in processes}
    parents = {each.pid: each.parent for each in processes}
    guarded = [
        pid for pid, line in lines.items() if f"/{cluster}/n{node}/spec.json".encode() in line
    ]
    (keeper,) = [pid for pid in guarded if parents[pid] in guarded]
    guard = parents[keeper]
    if way == "driver":
        mark = f'"cluster": "{cluster}"'.encode()
        return next(pid for pid, line in lines.items() if b"node.job" in line and mark in line)
    actor = parents[guard]
    return {"keeper": keeper, "guard": guard, "actor": actor, "raylet": parents[actor]}[way]


def test_too_few_gpus_are_no_capacity_and_say_what_is_free(
    on_ray: Project, stranger: Stranger
) -> None:
    """Whoever waits on a shared cluster wants to know for what."""
    before = stranger.look()
    on_ray.settings(SETTINGS.replace("gpus-per-node = 2", "gpus-per-node = 3"))
    on_ray.write(test_there="def test_it(): pass")

    ran = on_ray.run(GPU_CLUSTER_RAY_WAIT_MINUTES="0.05")

    assert ran.code == 12, ran.out
    assert "GPU 3" in ran.out
    assert "free GPUs:" in ran.out
    assert_nothing_left(ran.cluster, stranger, before)


@pytest.mark.slow
def test_two_sessions_share_a_cluster_and_wait_for_nothing_that_is_free(
    on_ray: Project, stranger: Stranger, tmp_path: Path
) -> None:
    """Each has its own half of the devices, its own tests marked `ray`, and an end of its own."""
    before = stranger.look()
    other = Project(tmp_path / "other", str(tmp_path / "other-store"))
    other.environ = on_ray.environ | {"GPU_CLUSTER_STORE": other.store}
    for project in (on_ray, other):
        project.settings(SETTINGS.replace("gpus-per-node = 2", "gpus-per-node = 1"))
        project.write(test_half=HALF)

    both = [project.start("-v") for project in (on_ray, other)]
    first, second = (each.wait() for each in both)

    assert (first.code, second.code) == (0, 0), first.out + second.out
    for ran in (first, second):
        assert set(ran.cases().values()) == {"passed"}
        assert_nothing_left(ran.cluster, stranger, before)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["raylet", "head"])
def test_a_dead_ray_leaves_nothing_of_ours(tmp_path: Path, way: str) -> None:
    """A node of it dies, or the process that has its books."""
    with ray_rig(Path(f"/tmp/gpu-rig-{os.getpid()}-d")) as doomed:
        project = project_on(doomed, tmp_path)
        project.write(test_long=LONG.replace("100", "30"))
        running = project.start("-v")
        cluster = started(running)
        if way == "head":
            doomed.kill_head()
        else:
            os.kill(victim("raylet", cluster, node=1), signal.SIGKILL)
        ran = running.wait()

        # Where the second node of ours was on Ray's head, the job died with it.
        assert ran.code == 10 or (way == "raylet" and ran.code == 0), ran.out
        assert ran.cases()["test_short"] == "passed", ran.out
        assert eventually(lambda: not ours(cluster) and not left(cluster), within_s=90.0), (
            [(pid, procfs.command_line(pid)) for pid in ours(cluster)],
            left(cluster),
        )


def test_the_five_minutes_of_the_readme(
    on_ray: Project, rig: RayRig, stranger: Stranger, repository: Path
) -> None:
    """Its settings as they stand, but for the addresses and a store that a test can have."""
    before = stranger.look()
    readme = (repository / "README.md").read_text("utf-8")
    section = readme.partition("## On your Ray cluster")[2].partition("\n## ")[0]
    (toml,) = re.findall(r"^```toml\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    toml = toml.replace("http://head:8265", rig.address)
    (on_ray.root / "pyproject.toml").write_text(toml)
    del on_ray.environ["RAY_API_SERVER_ADDRESS"]
    on_ray.write(test_it="def test_it(): pass")

    plan = on_ray.run("--gpu-plan")
    ran = on_ray.run(GPU_CLUSTER_IDLE_MINUTES="0")

    assert "store = " in toml
    assert plan.code == 0, plan.out
    assert "each gives GPU 1, CPU 1" in plan.out
    assert ran.code == 0, ran.out
    assert_nothing_left(ran.cluster, stranger, before)
