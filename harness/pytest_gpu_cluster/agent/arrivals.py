"""Arrivals of the agent's one queue: messages of test processes, and changes of the cluster."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, TypeAlias

from pytest_gpu_cluster.contract.events import Message, NodeReady
from pytest_gpu_cluster.contract.failures import StopReason
from pytest_gpu_cluster.contract.frozen import dataclass

if TYPE_CHECKING:
    from pytest_gpu_cluster.agent.worker import Worker


@dataclass(frozen=True, kw_only=True)
class ClusterReady:
    """All nodes have joined Ray."""

    seconds: float  # that joining took


@dataclass(frozen=True, kw_only=True)
class ClusterFailed:
    """Ray could not be joined, or does not give our devices back."""

    message: str
    reason: StopReason = StopReason.INFRASTRUCTURE


@dataclass(frozen=True, kw_only=True)
class NodeJoined:
    """A node other than the head has the session's trees."""

    node: NodeReady


@dataclass(frozen=True, kw_only=True)
class NodeLost:
    """A node has left Ray, or has no keeper any more, or could not be made ready."""

    node: str  # Ray's node id
    message: str = "it left the cluster"


@dataclass(frozen=True, kw_only=True)
class ReservationLost:
    """The actor that holds a worker's devices has died."""

    worker: Worker
    message: str


ClusterChange: TypeAlias = ClusterReady | ClusterFailed | NodeJoined | NodeLost | ReservationLost
# The messages of one process in order; None: the selecting one.
FromProcess: TypeAlias = "tuple[Worker | None, list[Message]]"
Arrivals: TypeAlias = "queue.SimpleQueue[FromProcess | ClusterChange]"
