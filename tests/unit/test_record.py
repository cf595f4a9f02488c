"""What the store holds is read with care: of another version, or of nobody's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract.cluster_record import (
    ClusterDescription,
    ClusterRecord,
    cluster_ids,
    clusters,
)
from pytest_gpu_cluster.contract.errors import InfrastructureError, UnreadableRecordError
from pytest_gpu_cluster.contract.events import NodeLost
from pytest_gpu_cluster.contract.failures import Closer, FailureClass
from pytest_gpu_cluster.contract.record import Ending, SessionRecord
from pytest_gpu_cluster.contract.request import Shape
from pytest_gpu_cluster.contract.store import Store

SHAPE = Shape(
    owner="me",
    environment="abc",
    nodes=1,
    gpus_per_node="auto",
    facts={"python": "/usr/bin/python"},
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"), base=tmp_path)


def describe(store: Store, name: str) -> None:
    description = ClusterDescription(
        id=name, provider="local", protocol=2, shape=SHAPE, deadline_s=60.0
    )
    ClusterRecord(store, name).put_description(description)


def test_a_cluster_of_another_version_hides_no_other(store: Store) -> None:
    """A team shares one bucket; a colleague's newer version must not end everybody's `ls`."""
    describe(store, "c1")
    body = json.loads(store.get("clusters/c1/cluster.json") or b"")
    store.put("clusters/c2/cluster.json", json.dumps({**body, "new": 1}).encode())

    assert [description.id for description, _ in clusters(store)] == ["c1"]
    assert cluster_ids(store) == ["c1", "c2"]
    with pytest.raises(UnreadableRecordError, match="unknown key 'new'"):
        ClusterRecord(store, "c2").description()


def test_events_before_an_unreadable_one_are_read(store: Store) -> None:
    """The results that were told before it are the tests' results all the same."""
    record = SessionRecord(store, "s1")
    journal = record.writer("agent")
    journal.append(NodeLost(node="n1", message="first"))
    journal._journal.append("of_tomorrow", key=1)
    journal.append(NodeLost(node="n2", message="last"))
    journal.close()

    reader = record.reader()
    read = reader.poll()

    assert [event.kind for event in read] == ["node_lost"]
    for _ in range(2):
        with pytest.raises(InfrastructureError, match="of_tomorrow"):
            reader.poll()


def test_a_record_is_closed_once(store: Store) -> None:
    """The client and the keeper may both believe that it is theirs to do."""
    record = SessionRecord(store, "s1")

    first = record.close(Ending(exit_code=0), by=Closer.CLIENT)
    second = record.close(Ending(failure_class=FailureClass.LIMIT), by=Closer.KEEPER)

    result = record.result()
    assert (first, second) == (True, False)
    assert result is not None
    assert (result.exit_code, result.closed_by, result.v) == (0, Closer.CLIENT, 1)


def test_a_request_says_its_version_and_no_tree_before_there_is_one(store: Store) -> None:
    """A later version tells formats apart by it, and a follower waits for the key `tree`."""
    from tests.unit.test_sinks import request

    SessionRecord(store, "s1").put_request(request("s1"))

    body = json.loads(store.get("sessions/s1/request.json") or b"")
    assert body["v"] == 1
    assert "tree" not in body
