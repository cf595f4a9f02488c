"""Who rents us machines: one file per provider, one line in `REGISTRY`.

A provider starts machines with one boot script and can end them. It knows nothing of tests, events or reports.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.specs import BootSpec

REGISTRY = {"local": "pytest_gpu_cluster.providers.local:LocalProvider"}


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """The cluster that a session needs. Clusters whose `shape()` is equal may stand in for each other."""

    token: str  # launching twice with one token makes one cluster
    owner: str
    python: str  # interpreter of the nodes
    environment: str  # digest of what is installed for it
    nodes: int
    gpus_per_node: int | Literal["auto"]
    simulated_gpus: int
    require_gpu: bool
    deadline_s: float
    idle_s: float

    def shape(self) -> dict[str, Any]:
        names = (
            "owner",
            "python",
            "environment",
            "nodes",
            "gpus_per_node",
            "simulated_gpus",
            "require_gpu",
        )
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """The exact request, spelled out, and what it can cost at most."""

    spec: ClusterSpec
    lines: tuple[str, ...]
    price_ceiling_usd: float


@dataclass(frozen=True, kw_only=True)
class BootScript:
    """What a machine needs before it can reach the store: the keeper's code, and what the keeper reads."""

    code: Mapping[str, Path]  # relative path -> file
    spec: BootSpec


@dataclass(frozen=True, kw_only=True)
class ClusterRef:
    """A cluster by its provider's own name."""

    provider: str
    id: str


@dataclass(frozen=True, kw_only=True)
class ClusterState:
    state: Literal["running", "gone"]
    why: str = ""


class Provider(Protocol):
    """Six verbs. The contract test holds them for every provider."""

    name: str

    def plan(self, spec: ClusterSpec) -> LaunchPlan:
        """The exact request and its price; spends nothing. Raises RequestError when it cannot be met."""
        ...

    def launch(self, plan: LaunchPlan, boot: BootScript) -> ClusterRef:
        """Start the machines, idempotent by `spec.token`, marked as ours in the creating call. Raises InfrastructureError."""
        ...

    def hand_over(self, ref: ClusterRef, session: str, values: Mapping[str, str]) -> None:
        """Bring the values of passed variables to the head, outside the record; read once there."""
        ...

    def state(self, ref: ClusterRef) -> ClusterState:
        """Asked when the journal is silent: is it there, and if not, why?"""
        ...

    def close(self, ref: ClusterRef, *, now: bool = False) -> None:
        """End it, politely or `now`; returns when nothing is left. Quiet when repeated or already gone. Raises TeardownError."""
        ...

    def owned(self) -> Iterable[ClusterRef]:
        """Everything of ours that exists, found without local state of the session."""
        ...


def provider(name: str) -> Provider:
    """The provider of this name (or `package.module:Class`). Raises RequestError for an unknown one."""
    target = REGISTRY.get(name, name)
    module, colon, attribute = target.partition(":")
    if not colon:
        raise RequestError(
            f"unknown provider {name!r}",
            remedy=f"use one of: {', '.join(REGISTRY)}, or package.module:Class",
        )
    try:
        made: Provider = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as problem:
        raise RequestError(
            f"provider {name!r} cannot be loaded: {problem}",
            remedy="install its package, or correct the name",
        ) from problem
    return made
