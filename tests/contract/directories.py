"""A provider from outside the package: its clusters are directories that hold the boot script."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

from pytest_gpu_cluster.contract.errors import InfrastructureError, RequestError
from pytest_gpu_cluster.contract.request import Shape
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.providers import (
    BootScript,
    ClusterRef,
    ClusterSpec,
    ClusterState,
    LaunchPlan,
    Owned,
)
from pytest_gpu_cluster.settings_keys import Key, read_text, whole

GPUS = 8


class DirectoryProvider:
    """Nothing runs in these clusters; the rest of the contract holds."""

    name = "tests.contract.directories:DirectoryProvider"
    keys: ClassVar[Mapping[str, Key]] = {
        "folder": Key(expected="the directory of the clusters", read=read_text),
        "price-cents": whole(0),
    }

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        table = settings.provider_settings.get(self.name, {})
        self._folder = Path(str(table.get("folder", environ.get("TMPDIR", "/tmp"))))
        self._cents = int(str(table.get("price-cents", 0)))

    def plan(self, spec: ClusterSpec) -> LaunchPlan:
        """Return the plan. Raises RequestError for another version of pytest."""
        if spec.pytest_version.startswith("0."):
            raise RequestError(f"pytest is {spec.pytest_version}", remedy="pip install -U pytest")
        return LaunchPlan(
            spec=spec,
            shape=Shape(
                owner=str(self._folder),
                environment="d",
                nodes=spec.nodes,
                gpus_per_node=spec.gpus_per_node,
            ),
            environment="no test can run there",
            where={"folder": str(self._folder)},
            price_ceiling_usd=self._cents / 100,
            examine=partial(self._examine, spec),
        )

    def _examine(self, spec: ClusterSpec) -> tuple[str, ...]:
        if spec.gpus_per_node != "auto" and spec.gpus_per_node > GPUS:
            raise RequestError(
                f"gpus-per-node = {spec.gpus_per_node}, and a directory has {GPUS}",
                remedy=f"set it to {GPUS}",
            )
        return (f"directory {self._folder / spec.token}",)

    def launch(self, plan: LaunchPlan, boot: BootScript, tell: Callable[[str], None]) -> None:
        """Write the boot script into a new directory. Raises InfrastructureError."""
        directory = self._folder / plan.spec.token
        tell(f"a directory is made in {self._folder}")
        try:
            if not directory.exists():
                directory.mkdir(parents=True)
                for relative, source in boot.code.items():
                    target = directory / relative
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, target)
                (directory / "spec.json").write_text(json.dumps(boot.spec.to_json()))
        except OSError as error:
            raise InfrastructureError(f"{directory}: {error}", remedy="run again") from error

    def state(self, ref: ClusterRef) -> ClusterState:
        """Return "running" while the directory exists."""
        if (self._folder / ref.id).is_dir():
            return ClusterState(state="running")
        return ClusterState(state="gone", reason="its directory is gone")

    def close(self, ref: ClusterRef, *, now: bool = False) -> None:
        """Delete the directory."""
        shutil.rmtree(self._folder / ref.id, ignore_errors=True)

    def owned(self) -> Iterable[Owned]:
        """Return a cluster for each directory."""
        paths = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        return [Owned(ref=ClusterRef(provider=self.name, id=path.name)) for path in paths]
