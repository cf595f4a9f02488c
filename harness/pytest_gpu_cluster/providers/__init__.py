"""Machines to run a cluster on: one file per provider, one line in `REGISTRY`.

A provider starts machines with one boot script and can end them. It knows nothing of tests, events
or reports. Its SDK is imported inside its methods: every run imports the modules of the registry.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.fields import shown
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.ids import check_id
from pytest_gpu_cluster.contract.request import Shape
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.contract.specs import BootSpec
from pytest_gpu_cluster.environment import Environment
from pytest_gpu_cluster.settings_keys import Key

REGISTRY = {"local": "pytest_gpu_cluster.providers.local:LocalProvider"}
ENTRY_POINTS = "pytest_gpu_cluster.providers"  # the group in which other packages name theirs
_TARGET = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """The cluster that a session needs. Clusters of equal `shape()` may stand in for each other."""

    token: str  # launching twice with one token makes one cluster
    owner: str
    python: str  # interpreter of the nodes
    environment: str  # digest of what is installed for it
    code: str  # digest of this package's code, for its keepers; "" in a plan that is only shown
    nodes: int
    gpus_per_node: int | Literal["auto"]
    simulated_gpus: int
    require_gpu: bool
    deadline_s: float
    idle_s: float

    def shape(self) -> Shape:
        """Return the properties that a warm cluster must share."""
        return Shape(
            owner=self.owner,
            python=self.python,
            environment=self.environment,
            nodes=self.nodes,
            gpus_per_node=self.gpus_per_node,
            simulated_gpus=self.simulated_gpus,
            require_gpu=self.require_gpu,
        )


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """The exact request, spelled out, and what it can cost at most."""

    spec: ClusterSpec
    lines: tuple[str, ...]
    price_ceiling_usd: float


@dataclass(frozen=True, kw_only=True)
class BootScript:
    """The keeper's code and its spec: all that a machine needs before it can reach the store."""

    code: Mapping[str, Path]  # relative path -> file
    spec: BootSpec  # what every keeper of the cluster is told


@dataclass(frozen=True, kw_only=True)
class ClusterRef:
    """A cluster by its provider's own name."""

    provider: str
    id: str  # that of its record in the store

    def __post_init__(self) -> None:
        """Raise StoreError for an id that could lead elsewhere."""
        check_id(self.id, "cluster")


@dataclass(frozen=True, kw_only=True)
class ClusterState:
    """A cluster as its provider sees it."""

    state: Literal["running", "gone"]
    reason: str = ""  # of a cluster that is gone: the end of its log, where there is one


class Provider(Protocol):
    """The verbs of a provider. `tests/contract` holds them for every provider.

    Every method raises errors of `contract.errors` alone.
    """

    name: str  # in settings and records: its name in the registry, or `package.module:Class`
    keys: ClassVar[Mapping[str, Key]]  # of its table, [tool.gpu-cluster.<name>]

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        """Start nothing. `settings.provider_settings[name]` has the values of its table."""
        ...

    def environment(self, *, pytest_version: str) -> Environment:
        """Return what is installed on the nodes. Raises RequestError if a session cannot run there.

        The remedy is the command that mends it.
        """
        ...

    def owner(self) -> str:
        """Return who may reuse a cluster: clusters of different owners never serve each other."""
        ...

    def plan(self, spec: ClusterSpec) -> LaunchPlan:
        """Return the exact request and its price; spend nothing. Raises RequestError."""
        ...

    def launch(self, plan: LaunchPlan, boot: BootScript) -> ClusterRef:
        """Start the machines, once for each `spec.token`, marked as ours in the creating call.

        Raises InfrastructureError, CapacityError or EnvironmentBuildError.
        """
        ...

    def hand_over(self, ref: ClusterRef, session: str, values: Mapping[str, str]) -> None:
        """Bring the values of passed variables to the head, outside the record; it reads them once.

        Raises InfrastructureError when the cluster is gone.
        """
        ...

    def state(self, ref: ClusterRef) -> ClusterState:
        """Return the state of a cluster; an unknown one is "gone"."""
        ...

    def close(self, ref: ClusterRef, *, now: bool = False) -> None:
        """End a cluster, in order or `now`; return when nothing of it remains.

        Quiet when repeated, and for a cluster that is gone. Raises TeardownError.
        """
        ...

    def owned(self) -> Iterable[ClusterRef]:
        """Return every cluster of ours that exists, found without local state of the session."""
        ...


def load_provider(name: str, settings: Settings, environ: Mapping[str, str]) -> Provider:
    """Return the provider of this name. Raises RequestError for an unknown one."""
    return provider_class(name)(settings, environ)


def load_recorded(name: str, settings: Settings, environ: Mapping[str, str]) -> Provider:
    """Return the provider that a record of the store names.

    To load one is to run its code, so a record cannot choose it: it is one of the registry, or one
    that the settings name. Raises RequestError for any other, without an import.
    """
    if not (name in REGISTRY or name == settings.provider or name in settings.provider_settings):
        raise RequestError(
            f"provider {shown(name)} is not of this project",
            remedy="if the cluster is yours, name its provider in [tool.gpu-cluster];"
            " else remove its record from the store",
        )
    return load_provider(name, settings, environ)


def provider_class(name: str) -> type[Provider]:
    """Import the class of a provider. Raises RequestError for an unknown one."""
    target = provider_target(name)
    if target is None:
        raise RequestError(
            f"unknown provider {name!r}",
            remedy=f"use one of: {', '.join(REGISTRY)}, or package.module:Class",
        )
    module, _, attribute = target.partition(":")
    try:
        loaded: type[Provider] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as problem:
        raise RequestError(
            f"provider {name!r} cannot be loaded: {problem}",
            remedy="install its package, or correct the name",
        ) from problem
    return loaded


def provider_target(name: str) -> str | None:
    """Return `package.module:Class` of a provider, or None for an unknown name.

    Entry points are read only for a name that is not in the registry.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    if _TARGET.fullmatch(name):
        return name
    from importlib.metadata import entry_points

    return next((point.value for point in entry_points(group=ENTRY_POINTS, name=name)), None)
