"""A session beside a provider that lies: results are right, and nothing is forgotten."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_gpu_cluster import liveness
from pytest_gpu_cluster.clusters.acquire import PROTOCOL, acquire, listed_clusters
from pytest_gpu_cluster.clusters.held_cluster import Hold
from pytest_gpu_cluster.clusters.sweep import sweep
from pytest_gpu_cluster.contract.cluster_record import (
    Announcement,
    ClusterDescription,
    ClusterRecord,
)
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.request import Limits, SessionRequest
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.waits import WAITS
from pytest_gpu_cluster.liveness import heartbeat
from pytest_gpu_cluster.providers import ClusterSpec
from tests.acceptance.lying import SOURCE, Lying
from tests.acceptance.processes import eventually, left_of, waits
from tests.acceptance.project import Project

PROVIDER = Lying(Settings(), os.environ)  # it lies nothing, and has no cluster of this id
PENDING, SESSION = "c0ffee", "20260101-000000-0001"
GREEN = "import os\n\ndef test_green():\n    assert os.environ['A_TOKEN'] == 'q7Zk-very-secret'\n"
SLOW = "import time\ndef test_slow():\n    print('begun', flush=True)\n    time.sleep(60)\n"


def request(session: str) -> SessionRequest:
    limits = Limits(max_s=60, idle_s=60, test_timeout_s=60, infra_retries=0, default_gpus=None)
    return SessionRequest(
        session=session,
        asked_at=0.0,
        provider=Lying.name,
        agent="a:b",
        root_name="p",
        origin="/p",
        cwd=".",
        args=(),
        passed=(),
        limits=limits,
    )


def lie(project: Project, words: str, more: str = "") -> None:
    project.write(lying=SOURCE)
    project.settings(f'provider = "lying:Lying"\n{more}\n"lying:Lying".lie = "{words}"')


@pytest.mark.parametrize(
    "words", ["pending", "found late", "throttled", "unreachable", "granted late"]
)
def test_what_a_provider_does_not_know_ends_no_session(lone: Project, words: str) -> None:
    """One throttled call ended a healthy session; a cluster that was not listed yet was gone."""
    lone.write(test_it=GREEN)
    lie(lone, words, "idle-minutes = 0\npass-env = ['A_TOKEN']")

    ran = lone.run("-v", A_TOKEN="q7Zk-very-secret")

    assert ran.code == 0, ran.out
    assert ran.cases() == {"test_green": "passed"}
    assert left_of(ran.cluster) == []
    assert lone.keys("clusters/") == []
    assert ("no capacity in zone b; the next is tried" in ran.out) is (words == "granted late")


def test_a_machine_that_runs_and_never_boots_is_given_up(lone: Project) -> None:
    """The client had no limit of its own, and waited until somebody looked."""
    lone.write(test_it=GREEN)
    lie(lone, "never boots")

    ran = lone.run()

    assert ran.code == 10, ran.out
    assert "has said nothing for 2 s since its launch; lying:Lying says: running" in ran.out
    assert lone.keys("clusters/") == []


def test_a_cluster_that_dies_is_lost_though_its_provider_calls_it_running(lone: Project) -> None:
    """Its heartbeat in the store is the truth. Here all of it freezes, as a machine does."""
    lone.write(test_it=SLOW)
    lie(lone, "dies late")
    running = lone.start("-s", **waits(grace_s=6))
    cluster = running.until("begun").cluster
    freeze(cluster)

    ran = running.wait()

    assert ran.code == 10, ran.out
    assert f"heartbeat of cluster {cluster} stopped for 6 s; lying:Lying says: running" in ran.out
    assert left_of(cluster) == []


def freeze(cluster: str) -> None:
    """Stop every process of a cluster."""
    for line in left_of(cluster):
        if (pid := line.split(" ", 1)[0]).isdigit():
            os.kill(int(pid), signal.SIGSTOP)


def test_a_cluster_that_refuses_to_die_is_not_forgotten(lone: Project) -> None:
    """Its record was deleted all the same, and nobody knew what to end. A sweep ended only what the
    provider called gone, and no orphan that runs: here one that is frozen.
    """
    lone.write(test_it=SLOW)
    lie(lone, "refuses to die")
    running = lone.start("-s", **waits(grace_s=60))
    cluster = running.until("begun").cluster
    freeze(cluster)
    running.process.send_signal(signal.SIGTERM)
    ran = running.wait()
    recorded = Path(lone.store, "clusters", cluster, "cluster.json").exists()
    lie(lone, "")

    swept = lone.command("sweep")

    assert ran.code == 2, ran.out
    assert "is still shutting down" in ran.out
    assert recorded
    assert f"cluster {cluster}: its keeper was silent; it is ended and removed" in swept.stdout
    assert eventually(lambda: left_of(cluster) == [], within_s=20)
    assert lone.keys("clusters/") == []


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with the record of a cluster that is about to start, for a client that waits."""
    monkeypatch.setattr(liveness, "WAITS", replace(WAITS, heartbeat_s=0.1, lost_s=0.5))
    store = Store.open(str(tmp_path / "store"), base=tmp_path)
    plan = PROVIDER.plan(spec(PENDING))
    ClusterRecord(store, PENDING).put_description(
        ClusterDescription(
            id=PENDING,
            provider=Lying.name,
            protocol=PROTOCOL,
            shape=plan.shape,
            session=SESSION,
            deadline_s=60,
        )
    )
    ClusterRecord(store, PENDING).offer(SESSION)
    return store


def spec(token: str) -> ClusterSpec:
    return ClusterSpec(
        token=token,
        nodes=1,
        gpus_per_node="auto",
        pytest_version=pytest.__version__,
        idle_s=60,
        deadline_s=60,
    )


def test_the_record_of_a_cluster_that_is_about_to_start_is_left_alone(store: Store) -> None:
    """Another client took "not there yet" for "gone", and deleted it with the inbox: the session
    was never taken.
    """
    before = store.list("clusters/")

    plan, listed = PROVIDER.plan(spec("c2")), listed_clusters(store)
    held = acquire(store, PROVIDER, plan, "20260101-000000-abcd", {}, listed)
    with heartbeat(SessionRecord(store, SESSION)):
        SessionRecord(store, SESSION).put_request(request(SESSION))
        swept = sweep(store, PROVIDER)

    assert held.stage is Hold.PLANNED
    assert swept == []
    assert store.list("clusters/") == before


def test_the_record_of_a_cluster_that_never_started_goes_with_its_client(store: Store) -> None:
    """Nobody waits for it: the list of clusters would only grow."""
    SessionRecord(store, SESSION).put_request(request(SESSION))

    swept = sweep(store, PROVIDER)

    assert f"cluster {PENDING}: struck off the store's list" in swept
    assert any(line.startswith(f"session {SESSION}: its client was lost") for line in swept)
    assert store.list("clusters/") == []


def test_a_cluster_whose_keeper_beats_is_not_gone_because_its_provider_says_so(
    store: Store,
) -> None:
    """Such an answer has to be given again to be believed; and a record names what may live."""
    record, ended = ClusterRecord(store, PENDING), threading.Event()
    SessionRecord(store, SESSION).put_request(request(SESSION))

    def beat() -> None:
        for count in itertools.count(1):
            record.announce(Announcement(beats=count))
            if ended.wait(0.1):
                return

    keeper = threading.Thread(target=beat)
    keeper.start()
    try:
        assert eventually(record.heartbeat)
        acquire(
            store,
            PROVIDER,
            PROVIDER.plan(spec("c2")),
            "20260101-000000-abcd",
            {},
            listed_clusters(store),
        )
        swept = sweep(store, PROVIDER)
    finally:
        ended.set()
        keeper.join()

    assert not any(PENDING in line for line in swept), swept
    assert record.description() is not None
