"""The node actor: on each node of a Ray that is there, the parent of our guard and keeper.

    job: driver ── node actor (an actor of Ray, without CPUs) ── guard ── keeper

The guard's stdin is its life line. It ends with the actor, however that ends: with its job, with
the driver, with the raylet of its node. A death signal would not do: an actor runs in threads, and
the signal comes at the end of a thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from pytest_gpu_cluster.contract import procfs
from pytest_gpu_cluster.contract.cluster_directory import is_own, make_directory
from pytest_gpu_cluster.contract.fields import JsonObject, Noun
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.specs import KeeperSpec
from pytest_gpu_cluster.node import node_facts
from pytest_gpu_cluster.node.guard import remove_node
from pytest_gpu_cluster.node.processes import private

GUARD = "pytest_gpu_cluster.node.guard"
CLOSE_LIMIT_S = 20.0  # for a guard whose life line has ended
KILL_LIMIT_S = 5.0  # for processes to go after SIGKILL
MARK_S = 10.0  # for the directory of a cluster, which nodes of one machine share, to be marked
TAIL_CHARS = 4000
# Of the actor's process. Ray would have it and its children run at a lower priority than others,
# and would kill the guard with it, which has to clean up.
VARIABLES: Mapping[str, str] = {
    "RAY_worker_niceness": "0",
    "RAY_kill_child_processes_on_worker_exit": "0",
}
# What a process of Ray has for itself, and no other is to have.
OF_RAY = ("RAY_JOB_", "RAY_RAYLET_", "RAY_CLIENT_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class GuardEnd(Noun):
    """The end of a node's guard."""

    status: int  # exit code; that of a failure class where the keeper failed
    tail: str  # of the keeper's log


class NodeActor:
    """The actor of one node. Ray calls its methods; each returns what Ray can send."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._guard: subprocess.Popen[bytes] | None = None
        self._directory = Path()
        self._log: BinaryIO | None = None  # of guard and keeper
        self._closing = False
        self._asked = time.monotonic()  # when the driver has last called
        self._raylet = os.getppid()

    def facts(self) -> JsonObject:
        """Return the Facts of this node."""
        import ray

        ip: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return node_facts.facts(ip).to_json()

    def start(self, body: JsonObject) -> None:
        """Start the guard of a KeeperSpec, in a directory that is made. Raises OSError."""
        spec = KeeperSpec.from_json(body)
        _make_node(spec.directory)
        self._directory = spec.directory
        try:
            self._start_guard(spec)
        except BaseException:
            remove_node(spec.directory)
            raise

    def _start_guard(self, spec: KeeperSpec) -> None:
        package = Path(__file__).parents[1]
        code = spec.directory / "package"
        shutil.copytree(package, code / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        path = spec.directory / "spec.json"
        with open(path, "w", opener=private) as file:
            json.dump(spec.to_json(), file)
        inherited = {n: v for n, v in os.environ.items() if not n.startswith(OF_RAY)}
        # It stays open: the guard removes the directory before it ends.
        self._log = open(spec.directory / "keeper.log", "a+b", opener=private)  # noqa: SIM115
        self._guard = subprocess.Popen(
            [sys.executable, "-m", GUARD, str(path)],
            cwd=spec.directory,
            env=inherited | {"PYTHONPATH": str(code)},
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
        )
        threading.Thread(target=self._watch_driver, name="driver", daemon=True).start()

    def ended(self) -> JsonObject | None:
        """Return the GuardEnd once there is one. The driver asks, and so shows that it lives."""
        self._asked = time.monotonic()
        status = self._guard.poll() if self._guard is not None else None
        return None if status is None else self._end(status).to_json()

    def close(self) -> JsonObject | None:
        """End the node in order, then by force; return its GuardEnd, None where nothing began."""
        guard, self._closing = self._guard, True
        if guard is None:
            return None
        if guard.stdin is not None:
            guard.stdin.close()
        try:
            status = guard.wait(timeout=CLOSE_LIMIT_S)
        except subprocess.TimeoutExpired:
            guard.kill()
            status = guard.wait()
        return self._end(status).to_json()

    def _end(self, status: int) -> GuardEnd:
        """Return how the guard ended, and clean up what it could not."""
        tail = ""
        if self._log is not None:
            self._log.seek(0)
            tail = self._log.read().decode(errors="replace")[-TAIL_CHARS:]
        if status < 0:  # it was killed: the keeper cleans up, unless it was killed too
            _end_processes(self._directory)
            remove_node(self._directory)
        return GuardEnd(status=status, tail=tail)

    def _watch_driver(self) -> None:
        """Close the node when the driver asks no more, or when Ray's node is gone.

        Not each of these deaths ends this process in time.
        """
        while not self._closing:
            time.sleep(1.0)
            if os.getppid() != self._raylet:
                self.close()
                os._exit(1)
            if time.monotonic() - self._asked > self._silence_s:
                self.close()


def _make_node(directory: Path) -> None:
    """Make the directory of a node, and before it that of the cluster, which nodes may share."""
    cluster = directory.parent
    cluster.parent.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        make_directory(cluster.parent, cluster.name)
    deadline = time.monotonic() + MARK_S
    while not is_own(cluster):  # another node has made it, and marks it next
        if time.monotonic() > deadline:
            raise PermissionError(f"{cluster} is not ours")
        time.sleep(0.02)
    (directory / "handoff").mkdir(parents=True, mode=0o700)


def _end_processes(directory: Path) -> None:
    """Kill the processes of a node whose guard was killed, after the keeper had its time."""
    mark = f"{directory}/".encode()
    began = time.monotonic()
    while pids := procfs.with_environment(mark):
        waited_s = time.monotonic() - began
        if waited_s > CLOSE_LIMIT_S + KILL_LIMIT_S:
            return
        if waited_s > CLOSE_LIMIT_S:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
        time.sleep(0.05)
