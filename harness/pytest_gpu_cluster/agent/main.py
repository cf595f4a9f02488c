"""The entry of an agent: a process that the keeper of the head node starts for a session."""

from __future__ import annotations

import contextlib
import json
import socket

from pytest_gpu_cluster.agent.loop import Agent
from pytest_gpu_cluster.contract import procfs
from pytest_gpu_cluster.contract.failures import StopReason
from pytest_gpu_cluster.contract.fields import JsonObject
from pytest_gpu_cluster.contract.messages import EndSession, decode
from pytest_gpu_cluster.contract.specs import AgentSpec


class KeeperOrders:
    """The order to stop, which the keeper passes on from the client. Asking does not wait."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel, self._partial = channel, b""

    def __call__(self) -> StopReason | None:
        """Return the reason of an order that has come since the last call."""
        with contextlib.suppress(OSError):  # nothing has come, or the keeper is gone
            self._partial += self._channel.recv(4096, socket.MSG_DONTWAIT)
        *lines, self._partial = self._partial.split(b"\n")
        orders = [order for line in lines if isinstance(order := decode(line), EndSession)]
        return orders[0].reason if orders else None


def main(specification: JsonObject, channel: socket.socket) -> int:
    """Run the session and tell the keeper whether the cluster may serve another; return 0."""
    procfs.forbid_inspection()
    agent = Agent(AgentSpec.from_json(specification), KeeperOrders(channel))
    try:
        cleanup = agent.run()
    except BaseException as problem:
        agent.fail(f"the agent failed: {type(problem).__name__}: {problem}")
        raise
    line = {"kind": "finished", "clean": cleanup.clean, "why": cleanup.message}
    channel.sendall(json.dumps(line).encode() + b"\n")
    return 0
