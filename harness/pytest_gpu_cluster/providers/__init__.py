"""Who brings clusters about: one file per provider, one line in `REGISTRY`.

A provider starts what the boot script asks for, and can end it. It knows nothing of tests, events
or reports. Its SDK is imported inside its methods: every run imports the modules of the registry.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.failures import FailureClass
from pytest_gpu_cluster.contract.fields import shown
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.ids import check_id
from pytest_gpu_cluster.contract.request import Shape
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.contract.specs import BootSpec
from pytest_gpu_cluster.settings_keys import Key

REGISTRY = {
    "local": "pytest_gpu_cluster.providers.local:LocalProvider",
    "ray": "pytest_gpu_cluster.providers.ray:RayProvider",
}
ENTRY_POINTS = "pytest_gpu_cluster.providers"  # the group in which other packages name theirs
VERBS = ("plan", "launch", "state", "close", "owned")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """The cluster that a session needs; nothing of this machine's disk is in it."""

    token: str  # launching twice with one token makes one cluster, whose id it is
    nodes: int
    gpus_per_node: int | Literal["auto"]
    pytest_version: str  # of the client; the nodes need the same major.minor
    idle_s: float
    deadline_s: float


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long the client waits for a cluster of this kind, in seconds."""

    boot_s: float = 90.0  # from its launch to its first word, usually; twice as long at most
    ask_s: float = 2.0  # between two questions to the provider
    sure_s: float = 0.0  # until "gone" has to be said again to be believed
    grace_s: float = 0.0  # of silence of one that has spoken, where that is more than is usual


def _nothing() -> Sequence[str]:
    return ()


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """The exact request, and what is known of the cluster before it is there."""

    spec: ClusterSpec
    shape: Shape  # what a warm cluster must equal to stand in for it
    environment: str  # what will run the tests, in a line for people
    where: Mapping[str, str] = field(default_factory=dict)  # goes into the cluster's record
    price_ceiling_usd: float | None = 0.0  # None: not known
    simulated_gpus: int = 0  # that a node may make where NVML finds none
    require_gpu: bool = True  # a node without one is a failure
    patience: Patience = Patience()
    # Of clusters whose head runs on this machine: the directory that has theirs, by their ids.
    # Values of passed variables then go through a file; else they are sealed, through the store.
    directory: Path | None = None
    # Returns the lines of `--gpu-plan`. What has to be asked for is asked for here, and only where
    # something is to be launched or shown. Raises RequestError for what cannot be had.
    examine: Callable[[], Sequence[str]] = _nothing


@dataclass(frozen=True, kw_only=True)
class BootScript:
    """The keeper's code and its spec: all that a machine needs before it can reach the store.

    It is public: a machine's user data and a job's metadata can be read by others.
    """

    code: Mapping[str, Path]  # relative path -> file
    spec: BootSpec  # what every keeper of the cluster is told


@dataclass(frozen=True, kw_only=True)
class ClusterRef:
    """A cluster by its provider's own name, and the place where that provider finds it.

    `where` comes from a record that others may have written: a provider sends no credential to a
    place that its own settings do not name.
    """

    provider: str
    id: str  # that of its record in the store
    where: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise StoreError for an id that could lead elsewhere."""
        check_id(self.id, "cluster")


@dataclass(frozen=True, kw_only=True)
class ClusterState:
    """A cluster as its provider sees it.

    "unknown" (the provider could not be asked, or does not know yet) changes nothing; "gone" is a
    cluster that costs nothing any more.
    """

    state: Literal["starting", "running", "closing", "gone", "unknown"]
    reason: str = ""  # of one that is gone: the end of its log, where there is one
    failure_class: FailureClass = FailureClass.INFRASTRUCTURE  # of a session that was on it


@dataclass(frozen=True, kw_only=True)
class Owned:
    """A cluster of ours that exists."""

    ref: ClusterRef
    expires_in_s: float | None = None  # until its deadline, by the provider's own clock


class Provider(Protocol):
    """The verbs of a provider. `tests/contract` holds them for every provider.

    Every method raises errors of `contract.errors` alone.
    """

    name: str  # in settings and records: its name in the registry, or `package.module:Class`
    keys: ClassVar[Mapping[str, Key]]  # of its table, [tool.gpu-cluster.<name>]

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        """Start nothing. `settings.provider_settings[name]` has the values of its table."""
        ...

    def plan(self, spec: ClusterSpec) -> LaunchPlan:
        """Return the exact request; spend nothing, and take no time: every run asks for it.

        Raises RequestError for settings that cannot work, and for an environment in which a session
        cannot run; the remedy is the command that mends it.
        """
        ...

    def launch(self, plan: LaunchPlan, boot: BootScript, tell: Callable[[str], None]) -> None:
        """Start the cluster, once for each `spec.token`, marked as ours in the creating call.

        `tell` shows a line to the user: what is waited for. Raises InfrastructureError,
        CapacityError, EnvironmentBuildError or RequestError.
        """
        ...

    def state(self, ref: ClusterRef) -> ClusterState:
        """Return the state of a cluster; of one that was never launched, "gone".

        Raises nothing because of a network: then the state is "unknown".
        """
        ...

    def close(self, ref: ClusterRef, *, now: bool = False) -> None:
        """End a cluster, in order or `now`; return when it costs nothing any more.

        Quiet when repeated, and for a cluster that is gone. Raises TeardownError where that is not
        certain; its record is kept then.
        """
        ...

    def owned(self) -> Iterable[Owned]:
        """Return every cluster of ours that exists, found without local state of the session."""
        ...


def load_provider(name: str, settings: Settings, environ: Mapping[str, str]) -> Provider:
    """Return the provider of this name. Raises RequestError for an unknown one, or for none."""
    loaded = provider_class(name)
    if missing := [verb for verb in VERBS if not callable(getattr(loaded, verb, None))]:
        raise RequestError(
            f"provider {name!r} is none: it lacks {', '.join(missing)}",
            remedy="give it the verbs of pytest_gpu_cluster.providers.Provider",
        )
    return loaded(settings, environ)


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
