"""The answer of a node's keeper to a request over its socket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pytest_gpu_cluster.contract.fields import Noun
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.gpus import Gpu
from pytest_gpu_cluster.contract.outputs import HeldBack


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
