"""Which nodes of a Ray are ours, and what is said of those that do not come."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_gpu_cluster.agent.members import join_members
from pytest_gpu_cluster.contract.cluster_record import ClusterRecord, NodePhase, NodeRecord
from pytest_gpu_cluster.contract.gpus import Gpu
from pytest_gpu_cluster.contract.specs import AgentSpec
from pytest_gpu_cluster.contract.store import Store
from tests.unit.test_agent import spec_of

BIG = Gpu(id="0", name="H100", memory_gib=80.0, simulated=False)
SECOND = NodeRecord(
    name="n1",
    phase=NodePhase.READY,
    text="is in Ray",
    seconds=3.0,
    directory=Path("/elsewhere/n1"),
    ray_node="b",
    gpus=(BIG,),
)


class Cluster:
    """The agent of a cluster of two nodes, and its record."""

    def __init__(self, top: Path) -> None:
        self.spec: AgentSpec = replace(spec_of(top), nodes=2)
        self.store = Store.open(self.spec.store, base=top)
        self.record = ClusterRecord(self.store, self.spec.cluster)

    def join(self, *alive: str, patience_s: float = 5.0) -> dict[str, NodeRecord]:
        deadline = time.monotonic() + patience_s
        return join_members(self.spec, self.store, "a", lambda: alive, deadline=deadline)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_a_node_without_a_keeper_of_ours_is_not_counted(cluster: Cluster) -> None:
    """Somebody else's machines are in a shared Ray too; and each of ours has its own devices."""
    cluster.record.put_node(SECOND)

    members = cluster.join("a", "stranger", "b")

    assert members.keys() == {"a", "b"}
    assert members["b"].gpus == (BIG,)
    assert members["b"].directory == Path("/elsewhere/n1")


def test_a_node_that_has_ended_is_not_waited_for(cluster: Cluster) -> None:
    """Its machine will not come back, and it has said why."""
    cluster.record.put_node(replace(SECOND, phase=NodePhase.ENDED, text="Ray did not come up"))

    with pytest.raises(RuntimeError, match="node n1 ended after 3 s: Ray did not come up"):
        cluster.join("a", patience_s=3600)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (replace(SECOND, phase=NodePhase.BOOTING, text="waits for the head's Ray"), "n1 booting"),
        (None, "the others have said nothing"),
    ],
)
def test_who_does_not_come_in_time_is_named_with_its_last_words(
    cluster: Cluster, said: NodeRecord | None, words: str
) -> None:
    """The words "1 of 2 nodes joined" alone sends its reader to a machine that is gone."""
    if said is not None:
        cluster.record.put_node(said)

    with pytest.raises(TimeoutError, match=f"1 of 2 nodes joined in 180 s: {words}"):
        cluster.join("a", patience_s=-1)
