"""Offers to a cluster: none is lost, whoever offers at once, and each is decided once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from gpu_tests.s3_server import S3Server
from pytest_gpu_cluster.contract.cluster_record import ClusterRecord
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.node.head import offer_pause_s
from tests.s3_stores import open_s3

SESSIONS = [f"s{number}" for number in range(12)]


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "file":
        return Store.open("store", base=tmp_path)
    request.getfixturevalue("s3")
    return open_s3(tmp_path.name)


def test_clients_that_offer_at_once_all_reach_the_keeper(store: Store) -> None:
    """A lost offer is a session that waits for nothing, and then rents a second cluster."""
    barrier = threading.Barrier(len(SESSIONS))

    def offer(session: str) -> None:
        barrier.wait()
        ClusterRecord(store, "c1").offer(session)

    threads = [threading.Thread(target=offer, args=(session,)) for session in SESSIONS]
    for thread in threads:
        thread.start()
    keeper, taken, first = ClusterRecord(store, "c1"), list[str](), 1
    while len(taken) < len(SESSIONS):  # it reads on while they offer
        for number, session in keeper.offers(first):
            assert number == first, "no number is passed over"
            taken.append(session)
            first = number + 1

    assert sorted(taken) == sorted(SESSIONS)
    assert [*keeper.offers(first)] == []


def test_an_offer_that_begins_at_an_old_number_comes_to_the_keeper(store: Store) -> None:
    """What a client has read of the keeper may be minutes old when it offers."""
    ClusterRecord(store, "c1").offer("s1")
    ClusterRecord(store, "c1").offer("s2")

    ClusterRecord(store, "c1").offer("s3", first=1)

    assert [*ClusterRecord(store, "c1").offers(3)] == [(3, "s3")]


def test_a_lost_answer_does_not_make_two_offers(s3: S3Server, tmp_path: Path) -> None:
    """The keeper would begin the session, and later reject its double."""
    store = open_s3(tmp_path.name, patience_s=20)
    s3.fault("drop-after", times=1, method="PUT")

    ClusterRecord(store, "c1").offer("s1")

    assert [*ClusterRecord(store, "c1").offers()] == [(1, "s1")]


def test_a_keeper_that_asks_again_knows_its_own_decision(store: Store) -> None:
    """After a failure it tries again; taken for the client's, its own would lose the session."""
    keeper, client = ClusterRecord(store, "c1"), ClusterRecord(store, "c1")

    assert keeper.decide("s1", taken=True)
    assert keeper.decide("s1", taken=True)
    assert not client.decide("s1", taken=False)
    assert client.decision("s1") is True


def test_a_minute_of_waiting_for_an_offer_has_its_price() -> None:
    """An idle cluster pays for each look: at most 70 reads a minute, the first one included."""
    idle_s, looks = 0.0, 0
    while idle_s < 60:
        idle_s += offer_pause_s(idle_s)
        looks += 1

    assert looks <= 70
