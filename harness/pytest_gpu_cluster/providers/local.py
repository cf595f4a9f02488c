"""Ray on this machine: the nodes of a cluster as processes.

Each cluster has ports, a token and a directory of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

from pytest_gpu_cluster import environment
from pytest_gpu_cluster.contract import procfs
from pytest_gpu_cluster.contract.cluster_directory import (
    is_foreign,
    is_own,
    is_private,
    make_directory,
    own_directories,
    remove_directory,
)
from pytest_gpu_cluster.contract.errors import InfrastructureError, RequestError, TeardownError
from pytest_gpu_cluster.contract.gpus import by_nvml
from pytest_gpu_cluster.contract.request import Shape
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.contract.specs import BootSpec, ClusterSecrets, KeeperSpec
from pytest_gpu_cluster.contract.store import credentials
from pytest_gpu_cluster.providers import (
    BootScript,
    ClusterRef,
    ClusterSpec,
    ClusterState,
    LaunchPlan,
    Owned,
    Patience,
)
from pytest_gpu_cluster.settings_keys import Key, read_text

GUARD = "pytest_gpu_cluster.node.guard"  # in the command lines of guard and keeper
BOOT_S = 60.0  # for Ray and the fork server to be up, on a busy machine
CLOSE_LIMIT_S = 20.0  # for a keeper that was asked to close
LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND
KILL_LIMIT_S = 5.0  # for processes to go after SIGKILL
# Variables that the nodes inherit, and no others.
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


class Guard(NamedTuple):
    """The process of a node that `launch` started, which runs the keeper."""

    pid: int
    started: str | None


def base_directory() -> Path:
    """Return the directory of this user's clusters: private and short.

    A socket's path holds 107 bytes. Our own tests give each of their processes another directory,
    where no other's sweep looks.
    """
    default = f"/tmp/gpu-cluster-{os.getuid()}"
    return Path(os.environ.get("GPU_CLUSTER_INTERNAL_CLUSTERS", default))


class LocalProvider:
    """Clusters of Ray nodes on this machine."""

    name = "local"
    keys: ClassVar[Mapping[str, Key]] = {
        "python": Key(
            expected="the path of a Python interpreter",
            read=read_text,
            resolve=environment.resolve_interpreter,
        )
    }

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        table = settings.provider_settings.get("local", {})  # also of a subclass
        self._python = str(table.get("python", sys.executable))
        self._settings, self._environ = settings, environ
        # Our own tests' way to what rented machines do: tests run as another user than the keeper.
        self._test_user = environ.get("GPU_CLUSTER_INTERNAL_TEST_USER", "")
        self._mode = 0o711 if self._test_user else 0o700  # of the directories above a node's

    def plan(self, spec: ClusterSpec) -> LaunchPlan:
        """Return the plan of processes on this machine, whose price is 0.

        Raises RequestError for an interpreter that cannot run a session.
        """
        installed = environment.describe(self._python)
        environment.check(installed, pytest_version=spec.pytest_version)
        settings = self._settings
        return LaunchPlan(
            spec=spec,
            shape=Shape(
                owner=owner(),
                environment=installed.digest,
                nodes=spec.nodes,
                gpus_per_node=spec.gpus_per_node,
                facts={
                    "python": installed.python,
                    "simulated_gpus": str(settings.simulated_gpus),
                    "require_gpu": str(settings.require_gpu),
                },
            ),
            environment=f"{installed.python} ({installed.digest})",
            simulated_gpus=settings.simulated_gpus,
            require_gpu=settings.require_gpu,
            patience=Patience(boot_s=BOOT_S),
            directory=base_directory(),
            examine=partial(self._examine, spec, installed),
        )

    def _examine(self, spec: ClusterSpec, installed: environment.Environment) -> tuple[str, ...]:
        """Count the GPUs; return the lines of the plan. Raises RequestError."""
        settings = self._settings
        real, _ = by_nvml(self._environ)
        offered = len(real) if spec.gpus_per_node == "auto" else min(len(real), spec.gpus_per_node)
        if settings.require_gpu and offered == 0:
            raise RequestError(
                "require-gpu is set, and NVML finds no GPU on this machine",
                remedy="run on a machine with a GPU, or set require-gpu = false",
            )
        if real and spec.gpus_per_node != "auto" and spec.gpus_per_node > len(real):
            raise RequestError(
                f"gpus-per-node = {spec.gpus_per_node}, and this machine has {len(real)}",
                remedy=f"set it to {len(real)} or 'auto'",
            )
        simulated = (
            settings.simulated_gpus
            if spec.gpus_per_node == "auto" or settings.simulated_gpus == 0
            else spec.gpus_per_node
        )
        gpus = f"{offered} x {real[0].name}" if offered else f"{simulated} simulated GPUs"
        most = spec.deadline_s / 60  # max-minutes, idle-minutes, and a margin
        return (
            f"provider  local, Ray nodes on this machine: {spec.nodes}",
            f"gpus      {gpus} per node",
            f"python    {installed.summary}",
            f"limits    ends after {spec.idle_s / 60:g} idle minutes, after {most:g} in any case",
        )

    def launch(self, plan: LaunchPlan, boot: BootScript, tell: Callable[[str], None]) -> None:
        """Start a guard for each node, unless the cluster's directory exists already."""
        cluster = plan.spec.token
        base = _private(base_directory(), self._mode)
        if is_own(base / cluster):
            return
        try:
            self._start_guards(boot, make_directory(base, cluster, self._mode))
        except OSError as error:
            raise InfrastructureError(
                f"cluster {cluster} cannot be started on this machine: {error}",
                remedy="look at the disk below /tmp, and at the interpreter; then run again",
            ) from error

    def _start_guards(self, boot: BootScript, directory: Path) -> None:
        for relative, source in boot.code.items():
            target = directory / "code" / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        guards, secrets = list[Guard](), ClusterSecrets.new()
        for number in range(boot.spec.nodes):
            guards.append(self._start_guard(directory, number, boot.spec, secrets))
            (directory / "guards.json.new").write_text(
                json.dumps({"store": boot.spec.store, "guards": guards})
            )
            (directory / "guards.json.new").rename(directory / "guards.json")

    def _start_guard(
        self, directory: Path, number: int, spec: BootSpec, secrets: ClusterSecrets
    ) -> Guard:
        node = directory / f"n{number}"
        (node / "handoff").mkdir(parents=True, mode=0o700)
        node_spec = KeeperSpec(
            boot=spec,
            secrets=secrets,
            directory=node,
            ray_directory=self._ray_directory(directory),
            head=number == 0,
            ip="127.0.0.1",
            credentials=credentials(self._environ),
            test_user=self._test_user,
        )
        path = node / "spec.json"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(node_spec.to_json(), file)
        with open(os.open(node / "keeper.log", LOG_FLAGS, 0o600), "ab") as log:
            process = subprocess.Popen(
                [self._python, "-m", GUARD, str(path)],
                cwd=node,
                env={**self._inherited(), "PYTHONPATH": str(directory / "code")},
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        process.returncode = 0  # it outlives this process on purpose: Popen must not warn
        return Guard(process.pid, procfs.start_time(process.pid))

    def _ray_directory(self, directory: Path) -> Path:
        """Return the directory for Ray, which opens it to everybody."""
        if not self._test_user:
            return directory / "r"
        (directory / "r").mkdir(mode=0o700, exist_ok=True)
        return directory / "r" / "r"

    def _inherited(self) -> dict[str, str]:
        return {
            name: value
            for name, value in self._environ.items()
            if name in INHERITED or name.startswith(("LC_", "NVIDIA_"))
        }

    def state(self, ref: ClusterRef) -> ClusterState:
        """Return "running" while a guard runs; else "gone" with the end of the keeper's log."""
        if _running_guards(ref):
            return ClusterState(state="running")
        directory = base_directory() / ref.id
        if is_own(directory):
            with contextlib.suppress(OSError):
                log = (directory / "n0" / "keeper.log").read_text(errors="replace")
                return ClusterState(state="gone", reason=log[-2000:])
        return ClusterState(state="gone", reason="its directory is gone")

    def close(self, ref: ClusterRef, *, now: bool = False) -> None:
        """Have the guards end their nodes, then kill what remains. Raises TeardownError."""
        directory = base_directory() / ref.id
        if is_foreign(directory):
            raise TeardownError(
                f"{directory} has no mark of a cluster of this user; it was left alone",
                remedy="look at what it is, and remove it by hand",
            )
        if not now:
            _end_guards(ref, directory)
        deadline = time.monotonic() + KILL_LIMIT_S
        while (
            pids := {*_running_guards(ref), *_processes_of(directory)}
        ) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        remove_directory(directory)
        with contextlib.suppress(OSError):
            base_directory().rmdir()
        if survivors := _processes_of(directory):
            raise TeardownError(
                f"processes {survivors} of cluster {ref.id} survived SIGKILL",
                remedy="gpu-cluster sweep, or end them by pid",
            )

    def owned(self) -> Iterable[Owned]:
        """Yield a cluster for each directory that `launch` has made."""
        for path in own_directories(base_directory()):
            yield Owned(ref=ClusterRef(provider=self.name, id=path.name))


def owner() -> str:
    """Return this user on this machine since its last start."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    boot_id = boot.read_text().strip()[:8] if boot.exists() else ""
    return f"{os.getuid()}@{socket.gethostname()}/{boot_id}"


def _end_guards(ref: ClusterRef, directory: Path) -> None:
    """Send SIGTERM to the guards, and wait while guards and keepers close the cluster."""
    _ask_to_end(_running_guards(ref))
    deadline = time.monotonic() + CLOSE_LIMIT_S
    while (pids := {*_running_guards(ref), *_keepers(directory)}) and time.monotonic() < deadline:
        if not directory.exists():  # such a guard only waits for a client that may be lost
            _ask_to_end(pids)
        time.sleep(0.02)


def _ask_to_end(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _running_guards(ref: ClusterRef) -> list[int]:
    """Return the pids of running guards, matched by start time because pids are reused."""
    directory = base_directory() / ref.id
    if not is_own(directory):
        return []
    try:
        document = json.loads((directory / "guards.json").read_bytes())
        guards = [Guard(*pair) for pair in document["guards"]]
    except (OSError, ValueError):
        return []
    return [
        guard.pid
        for guard in guards
        if guard.started is not None and procfs.start_time(guard.pid) == guard.started
    ]


def _keepers(directory: Path) -> list[int]:
    """Return the pids of guards and keepers, also of those that `guards.json` does not have."""
    name = GUARD.encode()
    return [pid for pid in _processes_of(directory) if name in procfs.command_line(pid)]


def _processes_of(directory: Path) -> list[int]:
    """Return the pids of processes whose environment names the cluster's directory.

    This finds what outlived a guard and a keeper that were both killed.
    """
    return procfs.with_environment(f"{directory}/".encode())


def _private(path: Path, mode: int) -> Path:
    with contextlib.suppress(FileExistsError):  # what is there is judged next
        path.mkdir(mode=mode)
    if not is_private(path):
        raise RequestError(
            f"{path} belongs to somebody else or is open to others",
            remedy=f"remove it, or: chmod 700 {path}",
        )
    return path
