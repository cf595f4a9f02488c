"""The nodes of a cluster that are ours: by their keepers' records, each with its id in Ray.

A Ray may have other nodes. Of a cluster of one node nothing need be read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from pytest_gpu_cluster.contract.cluster_record import ClusterRecord, NodePhase, NodeRecord
from pytest_gpu_cluster.contract.cpus import usable_cpus
from pytest_gpu_cluster.contract.specs import AgentSpec
from pytest_gpu_cluster.contract.store import Store

LOOK_S = 0.5  # between two looks at the records


def head_member(spec: AgentSpec, ray_node: str) -> NodeRecord:
    """Return the head, which the agent runs on."""
    return NodeRecord(
        name=spec.node.name,
        phase=NodePhase.READY,
        text="is in Ray",
        seconds=0.0,
        directory=spec.node,
        ray_node=ray_node,
        host=spec.host,
        gpus=spec.gpus,
        driver=spec.driver,
        cpus=usable_cpus(),
    )


def join_members(
    spec: AgentSpec,
    store: Store,
    head: str,
    alive: Callable[[], Collection[str]],
    *,
    deadline: float,
) -> dict[str, NodeRecord]:
    """Wait until every node of the cluster is in Ray; return their records by Ray's ids.

    `head` is Ray's id of this node, `alive` returns those of all that live in Ray. Raises
    RuntimeError when one has ended before, TimeoutError at `deadline` (monotonic); both with what
    the others said last. Raises StoreError.
    """
    members = {head: head_member(spec, head)}
    cluster = ClusterRecord(store, spec.cluster)
    while len(members) < spec.nodes:
        records = [record for record in cluster.nodes() if record.name != spec.node.name]
        if ended := [record for record in records if record.phase is NodePhase.ENDED]:
            raise RuntimeError(f"node {ended[0]}")
        living = alive()
        members |= {each.ray_node: each for each in records if each.ray_node in living}
        if len(members) < spec.nodes and time.monotonic() > deadline:
            words = "; ".join(map(str, records)) or "the others have said nothing"
            count = f"{len(members)} of {spec.nodes} nodes joined in {spec.join_s:.0f} s"
            raise TimeoutError(f"{count}: {words}")
        if len(members) < spec.nodes:
            time.sleep(0.1 if store.is_local else LOOK_S)
    return members
