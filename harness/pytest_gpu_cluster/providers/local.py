"""Ray on this machine: real nodes of a real cluster, as child processes with ports, a token and a directory of their own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from pytest_gpu_cluster.contract import procfs
from pytest_gpu_cluster.contract.errors import InfrastructureError, RequestError, TeardownError
from pytest_gpu_cluster.contract.gpus import by_nvml
from pytest_gpu_cluster.contract.model import STORE_CREDENTIALS
from pytest_gpu_cluster.contract.specs import BootSpec, KeeperSpec
from pytest_gpu_cluster.providers import (
    BootScript,
    ClusterRef,
    ClusterSpec,
    ClusterState,
    LaunchPlan,
)

GUARD = "pytest_gpu_cluster.node.guard"  # in the command lines of guard and keeper
CLOSE_LIMIT_S = 20.0  # for a keeper that was asked to close
KILL_LIMIT_S = 5.0  # for processes to go after SIGKILL
# What the nodes inherit; nothing else of this shell reaches them. Store credentials stop at the keeper.
INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "TZ",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "SSL_CERT_FILE",
    "XDG_CACHE_HOME",
    "VIRTUAL_ENV",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)


def base_directory() -> Path:
    """Where the clusters of this user live: short, for a socket's path holds 107 bytes, and private."""
    return Path(f"/tmp/gpu-cluster-{os.getuid()}")


class LocalProvider:
    name = "local"

    def plan(self, spec: ClusterSpec) -> LaunchPlan:
        real, _ = by_nvml(os.environ)
        offered = len(real) if spec.gpus_per_node == "auto" else min(len(real), spec.gpus_per_node)
        if spec.require_gpu and offered == 0:
            raise RequestError(
                "require-gpu is set, and NVML finds no GPU on this machine",
                remedy="run where a GPU is, or set require-gpu = false",
            )
        if real and spec.gpus_per_node != "auto" and spec.gpus_per_node > len(real):
            raise RequestError(
                f"gpus-per-node = {spec.gpus_per_node}, and this machine has {len(real)}",
                remedy=f"set it to {len(real)} or 'auto'",
            )
        simulated = (
            spec.simulated_gpus
            if spec.gpus_per_node == "auto" or spec.simulated_gpus == 0
            else spec.gpus_per_node
        )
        gpus = f"{offered} x {real[0].name}" if offered else f"{simulated} simulated GPUs"
        lines = (
            f"provider  local, {spec.nodes} Ray node(s) on this machine",
            f"gpus      {gpus} per node",
            f"python    {spec.python}",
            f"limits    {spec.deadline_s / 60:g} minutes, idle {spec.idle_s / 60:g} minutes",
        )
        return LaunchPlan(spec=spec, lines=lines, price_ceiling_usd=0.0)

    def launch(self, plan: LaunchPlan, boot: BootScript) -> ClusterRef:
        ref = ClusterRef(provider=self.name, id=plan.spec.token)
        directory = self._private(base_directory()) / ref.id
        if directory.exists():
            return ref
        directory.mkdir(mode=0o700)
        for relative, source in boot.code.items():
            target = directory / "code" / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        environment = {
            k: v
            for k, v in os.environ.items()
            if k in INHERITED or k.startswith(("LC_", "NVIDIA_", *STORE_CREDENTIALS))
        }
        guards = []
        for number in range(plan.spec.nodes):
            guards.append(self._start(directory, number, boot.spec, environment, plan.spec.python))
            (directory / "guards.json.new").write_text(
                json.dumps({"store": boot.spec.store, "guards": guards})
            )
            (directory / "guards.json.new").rename(directory / "guards.json")
        return ref

    def _start(
        self,
        directory: Path,
        number: int,
        boot: BootSpec,
        environment: Mapping[str, str],
        python: str,
    ) -> tuple[int, str | None]:
        node = directory / f"n{number}"
        (node / "handoff").mkdir(parents=True, mode=0o700)
        spec = KeeperSpec(
            boot=boot,
            directory=node,
            ray_directory=directory / "r",
            head=number == 0,
            ip="127.0.0.1",
        )
        path = node / "spec.json"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(spec.to_json(), file)
        argv = [python, "-m", GUARD, str(path)]
        with open(node / "keeper.log", "ab") as log:
            process = subprocess.Popen(
                argv,
                cwd=node,
                env={**environment, "PYTHONPATH": str(directory / "code")},
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        process.returncode = (
            0  # it outlives this process on purpose: nothing to wait for, nothing to warn about
        )
        return process.pid, procfs.start_time(process.pid)

    def hand_over(self, ref: ClusterRef, session: str, values: Mapping[str, str]) -> None:
        path = base_directory() / ref.id / "n0" / "handoff" / session
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump(dict(values), file)
        except FileNotFoundError as gone:
            raise InfrastructureError(
                f"cluster {ref.id} is gone", remedy="run again; a new one will be started"
            ) from gone

    def state(self, ref: ClusterRef) -> ClusterState:
        alive = self._alive(ref)
        if alive:
            return ClusterState(state="running")
        log = base_directory() / ref.id / "n0" / "keeper.log"
        with contextlib.suppress(OSError):
            return ClusterState(state="gone", why=log.read_text(errors="replace")[-2000:])
        return ClusterState(state="gone", why="its directory is gone")

    def close(self, ref: ClusterRef, *, now: bool = False) -> None:
        directory = base_directory() / ref.id
        for pid in self._alive(ref) if not now else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + CLOSE_LIMIT_S
        while (
            not now
            and (self._alive(ref) or self._keepers(directory))
            and time.monotonic() < deadline
        ):
            time.sleep(
                0.02
            )  # guard or keeper ends the rest; without either nobody is there to wait for
        deadline = time.monotonic() + KILL_LIMIT_S
        while (
            left := {*self._alive(ref), *self._below(directory)}
        ) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            base_directory().rmdir()
        if survivors := self._below(directory):
            raise TeardownError(
                f"processes {survivors} of cluster {ref.id} survived SIGKILL",
                remedy="gpu-cluster sweep, or end them by pid",
            )

    def owned(self) -> Iterable[ClusterRef]:
        if base_directory().is_dir():
            for path in sorted(base_directory().iterdir()):
                yield ClusterRef(provider=self.name, id=path.name)

    def _keepers(self, directory: Path) -> list[int]:
        """Guards and keepers, also those that have outlived the list of them."""
        return [pid for pid in self._below(directory) if GUARD.encode() in procfs.command_line(pid)]

    def _alive(self, ref: ClusterRef) -> list[int]:
        """Guards that run: by pid and start time, for pids come round again."""
        try:
            recorded = json.loads((base_directory() / ref.id / "guards.json").read_bytes())[
                "guards"
            ]
        except (OSError, ValueError):
            return []
        return [
            pid for pid, began in recorded if began is not None and procfs.start_time(pid) == began
        ]

    @staticmethod
    def _below(directory: Path) -> list[int]:
        """Return processes whose environment names the cluster's directory; after a double kill, all."""
        return procfs.with_environment(f"{directory}/".encode())

    @staticmethod
    def _private(path: Path) -> Path:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise RequestError(
                f"{path} belongs to somebody else or is open to others",
                remedy=f"remove it, or: chmod 700 {path}",
            )
        return path
