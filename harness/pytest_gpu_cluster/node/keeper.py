"""The keeper of a node: as old as the cluster, owner of every process on the node.

    guard (parent) ── keeper (child) ─┬─ ray start --block
                                      ├─ fork server ── (forks)
                                      └─ supervisors ── agent, workers and all that they start

One loop watches the processes and does the duty of the node: `Head` on the first one, `Follower` on
the others. Time never crosses machines: heartbeats are counters judged by this clock, deadlines
arrive as seconds left.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable
from enum import Enum, auto
from typing import Protocol

from pytest_gpu_cluster.contract import procfs
from pytest_gpu_cluster.contract.cluster_record import NodePhase
from pytest_gpu_cluster.contract.errors import HarnessError
from pytest_gpu_cluster.contract.failures import KeeperStop
from pytest_gpu_cluster.contract.ray_place import RayPlace
from pytest_gpu_cluster.contract.specs import KeeperSpec
from pytest_gpu_cluster.node.context import Node, Shutdown
from pytest_gpu_cluster.node.follower import Follower
from pytest_gpu_cluster.node.forkserver import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    SERVER_NAME,
    SUPERVISOR_NAME,
    end_descendants,
    prctl,
    reap,
)
from pytest_gpu_cluster.node.head import Head, supervisors
from pytest_gpu_cluster.node.logs import Legacy, NodeLogs
from pytest_gpu_cluster.node.processes import (
    RAY_DAEMONS,
    ForkServer,
    GivenRay,
    NodeProcess,
    Ray,
    State,
    StoppedProcesses,
    stopped_for,
)
from pytest_gpu_cluster.node.progress import Progress, tell_failed_boot
from pytest_gpu_cluster.node.requests import RequestServer
from pytest_gpu_cluster.node.visits import Visits
from pytest_gpu_cluster.node.working_trees import WorkingTrees

BUSY_TICK_S = 0.1
LOOK_S = 1.0  # between two looks for processes that are orphans, or stopped

TOLD_TO_END = "its cluster was told to end: gpu-cluster down, or SIGTERM"


class Stage(Enum):
    """The life of a node."""

    STARTING = auto()  # Ray or the fork server is not up
    IDLE = auto()
    BUSY = auto()  # it is the head, and serves a session
    CLOSING = auto()


class Duty(Protocol):
    """The task of a node beside its two processes: that of the head, or of the others."""

    doing: str  # while Ray is not up, for people

    @property
    def busy(self) -> bool:
        """True while a session is served."""

    def begin(self) -> None:
        """Start what can start at once."""

    def on_ray_ready(self) -> None:
        """Act on Ray being up."""

    def tick(self) -> None:
        """Do what is due. Raises HarnessError when it has to be tried again."""

    def end(self) -> None:
        """End what the duty has begun; the processes of the node still run."""


class Keeper:
    """The loop of a node."""

    def __init__(self, node: Node, legacy: Legacy) -> None:
        self.node = node
        self.shutdown = Shutdown()
        self.progress = Progress(node)
        logs = NodeLogs(node.store, node.directory, legacy)
        given = node.spec.ray
        self.ray = GivenRay(node, given) if given is not None else Ray(node)
        self.fork_server = ForkServer(node)
        self.trees = WorkingTrees(node.store, node.directory, cache=node.cache, guest=node.guest)
        self.visits = None if node.spec.head else Visits(node, self.trees, logs)
        self.duty: Duty = (
            Head(node, self.trees, self.ray, self.fork_server, logs, self.shutdown)
            if self.visits is None
            else Follower(node, self.ray, self.visits, logs, self.shutdown)
        )
        self.began = self.store_answered = time.monotonic()
        self.stopped = StoppedProcesses(node.boot.waits.grace_s)
        self.looked = 0.0  # monotonic

    @property
    def stage(self) -> Stage:
        if self.shutdown.requested:
            return Stage.CLOSING
        if self.duty.busy:
            return Stage.BUSY
        ready = self.ray.state is self.fork_server.state is State.READY
        return Stage.IDLE if ready else Stage.STARTING

    def run(self) -> str:
        """Keep the node until there is a reason to close it; return the reason."""
        signal.signal(signal.SIGTERM, lambda *_: self.shutdown.request(TOLD_TO_END))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.node.guest is not None:
            self.node.guest.enter(self.node.directory)
        RequestServer(self.node, self.trees, self.visits).start()
        self.fork_server.start()
        self.duty.begin()
        self.progress.tell(NodePhase.BOOTING, self.duty.doing)
        idle_tick_s = 0.015 if self.node.store.is_local else 0.5
        while (stage := self.stage) is not Stage.CLOSING:
            time.sleep(BUSY_TICK_S if stage is Stage.BUSY else idle_tick_s)
            self.check_processes()
            self._tick()
            if time.monotonic() - self.began > self.node.boot.deadline_s:
                self.shutdown.request("the cluster's deadline passed", KeeperStop.DEADLINE)
        return self.shutdown.message

    def _tick(self) -> None:
        try:
            self.duty.tick()
            self.store_answered = time.monotonic()
        except HarnessError as problem:
            silent_s = time.monotonic() - self.store_answered
            limit_s = self.node.boot.waits.store_gone_s
            if not self.duty.busy and silent_s > limit_s:
                self.shutdown.request(
                    f"the store has been gone for {limit_s:.0f} s: {problem.what}"
                )

    def check_processes(self) -> None:
        """Notice which processes became ready, ended or stopped; end orphans. Raises StoreError."""
        exit_codes = reap()
        self.fork_server.becomes_ready()
        if self.ray.becomes_ready():
            self._publish_ray()
        for process in (self.fork_server, self.ray):
            if process.pid in exit_codes:
                self._on_end(process, exit_codes[process.pid])
        if time.monotonic() - self.looked >= LOOK_S:
            self.looked = time.monotonic()
            self._look_around()

    def _publish_ray(self) -> None:
        """Give Ray's address to the processes of this node, and to the other nodes."""
        path = self.node.directory / "ray.json"
        fresh = path.with_name("ray.json.new")
        place = RayPlace(address=self.ray.address, scope=self.ray.scope)
        fresh.write_text(json.dumps(place.to_json()))
        fresh.rename(path)
        self.duty.on_ray_ready()
        self.progress.tell(NodePhase.READY, "is in Ray", ray_node=self.ray.node_id())

    def _on_end(self, process: NodeProcess, status: int) -> None:
        """Request the end of a node that has lost one of its two processes."""
        if process is self.fork_server:
            message = f"the fork server ended with {status}: {process.log()[-2000:]}"
        else:
            verb = "died" if process.state is State.READY else "did not come up"
            message = f"Ray {verb} (exit {status}); its log ends:\n{process.log()[-3000:]}"
        process.state = State.ENDED
        self.shutdown.request(message)

    def _look_around(self) -> None:
        """End orphans, and look for stopped ones among the processes of the node."""
        living = [each for each in procfs.processes() if not each.zombie]
        own = [each for each in living if each.parent == os.getpid()]
        of_node = {self.fork_server.pid: "the fork server", self.ray.pid: "ray start"}
        self._end_orphans([each.pid for each in own if each.pid not in of_node])
        of_ray = [each for each in living if self.ray.pid and each.parent == self.ray.pid]
        names = {each.pid: procfs.kernel_name(each.pid) for each in of_ray if each.stopped}
        of_node |= {pid: name for pid, name in names.items() if name in RAY_DAEMONS}
        for pid in self.stopped.overdue(each.pid for each in (*own, *of_ray) if each.stopped):
            self._on_stopped(pid, of_node.get(pid, ""))

    @staticmethod
    def _end_orphans(pids: Iterable[int]) -> None:
        """End adopted processes: an orphan belongs to nobody once its owner is gone."""
        for pid in pids:
            # The fork server's name is also that of a fork on its way to be a supervisor.
            if procfs.kernel_name(pid) not in (SUPERVISOR_NAME, SERVER_NAME):
                kill(pid)

    def _on_stopped(self, pid: int, name: str) -> None:
        """Request the end of a node one of whose processes is stopped; end a stopped supervisor."""
        if name:
            stopped = stopped_for(name, pid, self.node.boot.waits.grace_s)
            self.shutdown.request(f"{stopped}; cluster {self.node.boot.cluster} ends")
        elif procfs.kernel_name(pid) == SUPERVISOR_NAME:
            kill(pid)  # its process ends with it

    def close(self) -> None:
        """End the session and everything below. Raises TimeoutError: something survived SIGKILL."""
        if self.ray.state is not State.READY:
            self.progress.tell(NodePhase.ENDED, self.shutdown.message)
        try:
            self.duty.end()
        finally:
            # Supervisors first: a process that dies before its supervisor would look like a crash.
            for pid in supervisors():
                kill(pid)
            end_descendants(os.getpid())


def kill(pid: int) -> None:
    """Send SIGKILL; quiet when the process is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def run_keeper(spec: KeeperSpec, legacy: Legacy) -> None:
    """Keep a node in this process until there is a reason to close it, and leave no process behind.

    The process ends itself, in order, when its parent does. Raises whatever made the keeper fail.
    """
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        node = Node.of(spec)
    except HarnessError as problem:
        tell_failed_boot(spec, problem)
        raise
    keeper = Keeper(node, legacy)
    try:
        print(f"keeper: {keeper.run()}", flush=True)
    except Exception as problem:
        keeper.shutdown.request(f"the keeper failed: {problem}")
        raise
    finally:
        keeper.close()
