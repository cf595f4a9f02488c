"""A provider whose answers cannot be trusted: a copy of this file stands in a test's project.

Its clusters are real ones of this machine; `lie` says what it tells of them, or does with them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from pytest_gpu_cluster.contract.errors import InfrastructureError, TeardownError
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.providers import (
    BootScript,
    ClusterRef,
    ClusterSpec,
    ClusterState,
    LaunchPlan,
    Owned,
    Patience,
)
from pytest_gpu_cluster.providers.local import LocalProvider
from pytest_gpu_cluster.settings_keys import Key, read_text

LATE_S = 3.0  # how long what is there is not seen


class Lying(LocalProvider):
    """The provider `lying:Lying`."""

    name = "lying:Lying"
    keys: ClassVar[Mapping[str, Key]] = {
        **LocalProvider.keys,
        "lie": Key(expected="a lie", read=read_text),
    }

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        super().__init__(settings, environ)
        self._lie = str(settings.provider_settings.get(self.name, {}).get("lie", ""))
        self._launched = time.monotonic()

    @property
    def _early(self) -> bool:
        return time.monotonic() - self._launched < LATE_S

    def plan(self, spec: ClusterSpec) -> LaunchPlan:
        """Return a plan with little patience, so that a test has to have little too.

        As on a machine elsewhere, values of variables are sealed.
        """
        boot_s = 1.0 if self._lie == "never boots" else 30.0
        patience = Patience(boot_s=boot_s, ask_s=0.2, sure_s=LATE_S + 2)
        return replace(super().plan(spec), patience=patience, directory=None)

    def launch(self, plan: LaunchPlan, boot: BootScript, tell: Callable[[str], None]) -> None:
        """Launch the cluster, or say so."""
        self._launched = time.monotonic()
        if self._lie == "never boots":
            return
        if self._lie == "granted late":
            for zone in ("a", "b"):
                tell(f"no capacity in zone {zone}; the next is tried")
        start = super().launch
        if self._lie == "pending":
            threading.Timer(LATE_S, start, (plan, boot, tell)).start()
        else:
            start(plan, boot, tell)

    def state(self, ref: ClusterRef) -> ClusterState:
        """Return the state, or something else. Raises InfrastructureError where it lies so."""
        if self._lie == "unreachable":
            raise InfrastructureError("connection refused", remedy="wait")
        if self._lie == "throttled":
            return ClusterState(state="unknown", reason="RequestLimitExceeded")
        if self._lie == "found late" and self._early:
            return ClusterState(state="gone", reason="no such cluster")
        if self._lie == "pending" and self._early:
            return ClusterState(state="starting", reason="waiting for capacity")
        if self._lie in ("never boots", "dies late"):
            return ClusterState(state="running")
        return super().state(ref)

    def close(self, ref: ClusterRef, *, now: bool = False) -> None:
        """End the cluster, or not. Raises TeardownError."""
        if self._lie == "refuses to die":
            raise TeardownError(f"cluster {ref.id} is still shutting down", remedy="wait")
        super().close(ref, now=now)

    def owned(self) -> Iterable[Owned]:
        """Return what is found, perhaps nothing yet."""
        return () if self._lie == "found late" and self._early else super().owned()


SOURCE = Path(__file__).read_text()
