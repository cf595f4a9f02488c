"""Ray as a session finds it: its address, and the part of it that is ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import ClassVar

from pytest_gpu_cluster.contract.fields import Noun
from pytest_gpu_cluster.contract.frozen import dataclass

NAMESPACE = "gpu-cluster"


@dataclass(frozen=True, kw_only=True)
class RayNode(Noun):
    """A node of a Ray that others use too, on which a keeper of ours runs."""

    id: str  # Ray's
    directory: str  # of the keeper, there
    gpus: tuple[str, ...]  # the ids that Ray has given to our bundle


@dataclass(frozen=True, kw_only=True)
class Scope(Noun):
    """The part of a Ray cluster that is ours: all of it, or what stands here.

    Of a Ray that others use too these are ours: the jobs of our agent and of our tests, which carry
    the session's mark, what those jobs have made, and the devices of one placement group.
    """

    namespace: str = NAMESPACE
    nodes: tuple[RayNode, ...] = ()  # in the order of their numbers; (): Ray is all ours
    bundle: Mapping[str, float] = field(default_factory=dict)  # the resources on each node
    group: str = ""  # the id of the placement group that holds the bundles for the first session
    wait_s: float = 0.0  # for the bundles, when they are taken again

    @property
    def shared(self) -> bool:
        """True where Ray was there before us, and may have other users."""
        return bool(self.nodes)


@dataclass(frozen=True, kw_only=True)
class RayPlace(Noun):
    """`ray.json` of a node's directory, and what a keeper is given of a Ray that is there."""

    sparse: ClassVar[bool] = True

    address: str
    scope: Scope = Scope()
