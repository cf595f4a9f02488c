"""Requests to the keeper of a node over its socket, and the answer to each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pytest_gpu_cluster.contract import signing
from pytest_gpu_cluster.contract.fields import Noun
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.gpus import Gpu
from pytest_gpu_cluster.contract.outputs import HeldBack
from pytest_gpu_cluster.contract.specs import AgentSpec
from pytest_gpu_cluster.node.lease import ask


@dataclass(frozen=True, kw_only=True)
class NodeAnswer(Noun):
    """The facts of a node, which answer every request that succeeded."""

    gpus: tuple[Gpu, ...]
    host: str
    driver: str | None
    held: tuple[HeldBack, ...] = ()  # files that were not stored

    @classmethod
    def parse(cls, answer: Mapping[str, object]) -> Self:
        """Return the facts. Raises RuntimeError with the keeper's message when it refused."""
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return cls.from_json(dict(answer))


def signed(spec: AgentSpec, request: Mapping[str, object]) -> str:
    """Return a request of this session as a keeper takes it."""
    return signing.signed(request, session=spec.session, key=spec.keeper_key)


def ask_head(spec: AgentSpec, request: Mapping[str, object]) -> NodeAnswer:
    """Send a request to the keeper of this node. Raises RuntimeError, OSError."""
    return NodeAnswer.parse(ask(spec.node, signed(spec, request)))
