"""The files that tests wrote into the tree, stored by every node before the session ends."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_gpu_cluster.agent.node_answer import ask_head
from pytest_gpu_cluster.agent.ray_cluster import Cluster
from pytest_gpu_cluster.agent.reservations import SHOWN_ID
from pytest_gpu_cluster.contract.events import Notice
from pytest_gpu_cluster.contract.fields import JsonObject
from pytest_gpu_cluster.contract.outputs import HEAD, OutputsOrder
from pytest_gpu_cluster.contract.specs import AgentSpec


def store_outputs(spec: AgentSpec, cluster: Cluster) -> Iterator[Notice]:
    """Have each node store what the tests wrote there; yield what could not be.

    Results do not depend on these files, so nothing is raised.
    """
    reservations, living = cluster.reservations, cluster.capacity()
    for home in (HEAD, *reservations.other_nodes()):
        node = home[:SHOWN_ID]
        if home != HEAD and home not in living:
            yield Notice(name="outputs", text=f"what the tests wrote on {node} is lost with it")
            continue
        try:
            if home == HEAD:
                answer = ask_head(spec, _request(spec, node))
            else:
                answer = reservations.ask_node(home, _request(spec, node))
        except Exception as problem:  # noqa: BLE001 - the node is lost, or its keeper or the store
            first = f"{problem}".partition("\n")[0]
            text = f"what the tests wrote on {node} could not be stored: {first}"
            yield Notice(name="outputs", text=text)
        else:
            yield from (Notice(name="outputs", text=str(held)) for held in answer.held)


def _request(spec: AgentSpec, node: str) -> JsonObject:
    order = OutputsOrder(
        session=spec.session,
        node=node,
        root=spec.tree_root,
        tree=spec.request.tree,
        globs=spec.request.outputs,
        passed=spec.passed,
    )
    return {"op": "outputs", **order.to_json()}
