"""Processes that are stopped (SIGSTOP, a laptop's lid, a frozen container) and may come back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpu_tests.s3_server import S3Server
from pytest_gpu_cluster.contract.store import PATIENCE_S
from tests.acceptance.conftest import closed_project
from tests.acceptance.processes import (
    agent_of,
    eventually,
    keeper_of,
    left_of,
    pid_of,
    raylet_of,
    waits,
)
from tests.acceptance.project import Project, Ran, Running

GRACE_S = 6.0
PAUSE_S = PATIENCE_S + 8  # after it a request to S3 gives up
WAITS = waits(grace_s=GRACE_S)
QUICK = """
def test_quick():
    pass
"""
SLEEPS = """
import time
import pytest

@pytest.mark.parametrize("n", range({tests}))
def test_sleep(n, artifacts):
    time.sleep({seconds})
    with open(f"written-{{n}}.txt", "w") as file:
        file.write("from the cluster")
    assert n != 1, "one is bad"
"""
SUITE = QUICK + SLEEPS
# On the cluster alone: the conftest files of a project are not imported here.
SLOW_END = """
import time

def pytest_sessionfinish(session):
    time.sleep(60)
"""
RESULTS = {"test_quick": "passed", "test_sleep[0]": "passed", "test_sleep[1]": "failure"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project whose clusters have short waits; all that it starts ends with the module."""
    with closed_project(tmp_path_factory.mktemp("stopped")) as project:
        project.settings('outputs = ["written-*.txt"]')
        yield project


def stop_for(client: Running, until: Callable[[], object], *, at_least_s: float) -> None:
    """Stop the client for so long, and until something else has happened; then let it go on."""
    began = time.monotonic()
    client.process.send_signal(signal.SIGSTOP)
    try:
        assert eventually(until, within_s=60), client.so_far.out
        time.sleep(max(0.0, at_least_s - (time.monotonic() - began)))
    finally:
        client.process.send_signal(signal.SIGCONT)


def ends(project: Project, session: str) -> list[dict[str, object]]:
    return [event for event in project.events(session) if event["kind"] == "session_finished"]


def forget_written(project: Project) -> None:
    for path in project.root.glob("written-*"):
        path.unlink()


def case_texts(ran: Ran) -> dict[str, str]:
    return {name: ran.message(name) for name in ran.cases()}


def test_a_client_that_comes_back_takes_the_result_of_its_session(place: Project) -> None:
    """A lid that was closed over a run costs nothing: the run is over, and its result is there."""
    place.write(test_a=SUITE.format(tests=2, seconds=0.5))
    plain = place.plain("-v")
    forget_written(place)
    client = place.start("-v", **WAITS, GPU_CLUSTER_IDLE_MINUTES="5")
    session = client.until("test_quick PASSED").session

    stop_for(client, lambda: ends(place, session), at_least_s=GRACE_S + 2)
    ran = client.wait()

    assert (ran.code, ran.cases()) == (plain.code, RESULTS), ran.out
    assert case_texts(ran) == case_texts(plain)
    assert {path.read_text() for path in place.root.glob("written-*")} == {"from the cluster"}
    assert "infrastructure" not in ran.out
    assert "stays warm" in ran.out, "its cluster lost nothing, and serves the next run"


def test_a_session_that_ended_without_its_client_gives_what_had_finished(place: Project) -> None:
    """Nobody pays for tests whose client is gone; a client that comes back is told just that."""
    place.write(test_a=SLEEPS.format(tests=2, seconds=0.2) + UNFINISHED)
    forget_written(place)
    in_order = "--maxfail=99"  # the short ones first, also where history knows them
    client = place.start("-v", in_order, **WAITS, GPU_CLUSTER_IDLE_MINUTES="5")
    at = client.until("test_sleep[0] PASSED", "test_sleep[1] FAILED")

    stop_for(client, lambda: left_of(at.cluster) == [], at_least_s=GRACE_S + 2)
    ran = client.wait()

    lost = {f"test_long[{n}]": "error" for n in range(8)}
    assert ran.cases() == {"test_sleep[0]": "passed", "test_sleep[1]": "failure"} | lost, ran.out
    assert ran.code == 1, "a failed test wins"
    words = f"infrastructure: the client's heartbeat stopped for {GRACE_S:.0f} s: it was stopped, "
    assert words in ran.message("test_long[7]")
    assert f"gpu-cluster: {words}" in ran.out
    assert "remedy: run again, with this process" in ran.out
    assert (place.root / "written-0.txt").read_text() == "from the cluster"


UNFINISHED = """
@pytest.mark.parametrize("n", range(8))
def test_long(n):
    time.sleep(300)
"""


def test_with_all_tests_finished_the_tests_decide(place: Project) -> None:
    """What came after the last test was cut off; that is no reason to hide a result."""
    place.write(test_a=SUITE.format(tests=1, seconds=0.2), conftest=SLOW_END)
    forget_written(place)
    client = place.start("-v", **WAITS, GPU_CLUSTER_IDLE_MINUTES="0")
    at = client.until("test_quick PASSED")

    stop_for(client, lambda: left_of(at.cluster) == [], at_least_s=GRACE_S + 2)
    ran = client.wait()
    (place.root / "conftest.py").unlink()

    assert ran.code == 0, ran.out
    assert ran.cases() == {"test_quick": "passed", "test_sleep[0]": "passed"}
    assert "all tests had finished when this session was ended: the client's heartbeat" in ran.out
    assert (place.root / "written-0.txt").read_text() == "from the cluster"


@pytest.mark.slow
def test_requests_that_the_pause_has_cut_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a request on its way to S3 a minute's pause is a timeout, and no try of it is left."""
    with S3Server() as server, closed_project(tmp_path) as place:
        server.make_bucket("tests")
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        place.store = "s3://tests/a"
        place.environ |= server.env | {"GPU_CLUSTER_STORE": place.store}
        place.write(test_a=SUITE.format(tests=1, seconds=0.5))
        long = waits(grace_s=300, store_patience_s=PAUSE_S / 2)
        client = place.start("-v", **long, GPU_CLUSTER_IDLE_MINUTES="0")
        session = client.until("test_quick PASSED").session
        server.throttle(get_s=1.0)  # so that one is on its way

        stop_for(client, lambda: ends(place, session), at_least_s=PAUSE_S)
        ran = client.wait()

        assert ran.code == 0, ran.out
        assert ran.cases() == {"test_quick": "passed", "test_sleep[0]": "passed"}


def gcs_of(cluster: str) -> int:
    return pid_of(cluster, "gcs_server")


def the_raylet_of(cluster: str) -> int:
    return raylet_of(cluster, "n0")


# By the words of the message.
VICTIMS: dict[str, Callable[[str], int]] = {
    "the keeper of the head node": keeper_of,
    "its agent": agent_of,
    "raylet": the_raylet_of,
    "gcs_server": gcs_of,
}


def test_processes_that_go_on_in_time_cost_nothing(place: Project) -> None:
    """A container that is frozen for a moment, a debugger: the run just goes on."""
    place.write(test_a=SUITE.format(tests=1, seconds=5))
    running = place.start("-v", **WAITS, GPU_CLUSTER_IDLE_MINUTES="5")
    cluster = running.until("test_quick PASSED").cluster

    pids = [find(cluster) for find in VICTIMS.values()]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            os.kill(pid, number)
        time.sleep(2.5)
    ran = running.wait()

    assert (ran.code, ran.cases()) == (0, {"test_quick": "passed", "test_sleep[0]": "passed"}), (
        ran.out
    )
    assert "stays warm" in ran.out


@pytest.mark.slow
@pytest.mark.parametrize("words", VICTIMS)
def test_a_stopped_process_is_named_and_its_cluster_ends(place: Project, words: str) -> None:
    """It has not died, so nothing but its silence tells; and nothing but SIGKILL ends it."""
    place.write(test_a=SUITE.format(tests=1, seconds=300))
    running = place.start("-v", **WAITS, GPU_CLUSTER_IDLE_MINUTES="5")
    cluster = running.until("test_quick PASSED").cluster
    pid = VICTIMS[words](cluster)

    os.kill(pid, signal.SIGSTOP)
    ran = running.wait()

    assert ran.code == 10, ran.out
    assert ran.cases() == {"test_quick": "passed", "test_sleep[0]": "error"}
    assert f"infrastructure: {words} (pid {pid}) was stopped" in ran.out
    assert eventually(lambda: left_of(cluster) == []), left_of(cluster)
    assert not Path(f"/proc/{pid}").exists()
