"""The entry of an agent: a process that the keeper of the head node starts for a session."""

from __future__ import annotations

import json
import socket

from pytest_gpu_cluster.agent.loop import Agent
from pytest_gpu_cluster.contract import procfs
from pytest_gpu_cluster.contract.fields import JsonObject
from pytest_gpu_cluster.contract.specs import AgentSpec


def main(specification: JsonObject, channel: socket.socket) -> int:
    """Run the session and tell the keeper whether the cluster may serve another; return 0."""
    procfs.forbid_inspection()
    agent = Agent(AgentSpec.from_json(specification))
    try:
        cleanup = agent.run()
    except BaseException as problem:
        agent.fail(f"the agent failed: {type(problem).__name__}: {problem}")
        raise
    line = {"kind": "finished", "clean": cleanup.clean, "why": cleanup.message}
    channel.sendall(json.dumps(line).encode() + b"\n")
    return 0
