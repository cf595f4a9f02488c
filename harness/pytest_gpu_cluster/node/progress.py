"""How far a node has come, in the record of its cluster: whoever waits for it can say what it does.

Nothing depends on it but words, so a store that is away is no failure here.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from pytest_gpu_cluster.contract.cluster_record import ClusterRecord, NodePhase, NodeRecord
from pytest_gpu_cluster.contract.cpus import usable_cpus
from pytest_gpu_cluster.contract.errors import HarnessError
from pytest_gpu_cluster.contract.failures import KeeperStop
from pytest_gpu_cluster.contract.masking import masker
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.specs import KeeperSpec
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.node.context import Node, Stop
from pytest_gpu_cluster.node.session import append_lost_end


class Progress:
    """The record of a node while its keeper runs."""

    def __init__(self, node: Node) -> None:
        self._node, self._began = node, time.monotonic()

    def tell(self, phase: NodePhase, text: str, *, ray_node: str = "") -> None:
        """Put down how far the node is. That it has ended is for those who still wait for it."""
        node = self._node
        record = NodeRecord(
            name=node.directory.name,
            phase=phase,
            text=text,
            seconds=time.monotonic() - self._began,
            directory=node.directory,
            ray_node=ray_node,
            host=node.host,
            gpus=node.gpus,
            driver=node.driver,
            cpus=usable_cpus(),
        )
        print(f"keeper: {record}", flush=True)
        with contextlib.suppress(HarnessError):
            if phase is not NodePhase.ENDED or node.cluster.description() is not None:
                node.cluster.put_node(record)


def tell_failed_boot(spec: KeeperSpec, problem: HarnessError) -> None:
    """Say why a machine is no node: to its head, or as the head to the sessions that wait for it.

    Raises no HarnessError.
    """
    text = f"{spec.directory.name}: {problem.what}; {problem.remedy}"
    with contextlib.suppress(HarnessError):
        store = Store.open(spec.boot.store, base=Path("/"), make=False)
        cluster = ClusterRecord(store, spec.boot.cluster)
        if not spec.head:
            ended = NodeRecord(
                name=spec.directory.name,
                phase=NodePhase.ENDED,
                text=problem.what,
                seconds=0.0,
                directory=spec.directory,
            )
            cluster.put_node(ended)
        for _, session in cluster.offers() if spec.head else ():
            append_lost_end(
                SessionRecord(store, session),
                Stop(kind=KeeperStop.NOT_BEGUN, message=text),
                mask=masker({}),
                timeout_s=spec.boot.waits.store_patience_s,
            )
