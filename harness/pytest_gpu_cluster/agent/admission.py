"""Admission: which test processes are started, which tests each gets, and which are not needed.

`decide` is a pure function. Whoever carries its decisions out removes given tests from the backlog
and the devices of an opened process from the free ones, before the next call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from typing import TypeAlias

from pytest_gpu_cluster.agent import plan
from pytest_gpu_cluster.agent.plan import Backlog, Case, Demand, Durations
from pytest_gpu_cluster.agent.worker import Stage
from pytest_gpu_cluster.contract.frozen import dataclass


@dataclass(frozen=True, kw_only=True)
class WorkerView:
    """A test process as admission sees it."""

    name: str
    demand: Demand
    home: str  # the node of the process itself
    stage: Stage
    queue: Collection[Case]  # its tests, the running one included
    late: bool = False  # its test runs longer than the start of a process takes


@dataclass(frozen=True, kw_only=True)
class Situation:
    """All that the decisions depend on."""

    backlog: Backlog
    workers: Sequence[WorkerView]
    capacity: Mapping[str, float]  # devices by node
    free: Mapping[str, float]  # those that nobody holds; empty until Ray is joined
    cpus: int  # per node
    mean_s: float | None  # seconds per test so far; None before the first
    serial: bool  # one test at a time, as collected


@dataclass(frozen=True, kw_only=True)
class Open:
    """Start a process for tests of this demand. `devices` by node; the first is its own node."""

    demand: Demand
    devices: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Give:
    """Hand these tests to a process; with `last`, nothing will follow."""

    worker: str
    tests: Sequence[Case]
    last: bool


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Ask an idle process to end."""

    worker: str


@dataclass(frozen=True, kw_only=True)
class Cancel:
    """End a process that is still starting."""

    worker: str


Decision: TypeAlias = Open | Give | Finish | Cancel


def decide(situation: Situation) -> list[Decision]:
    """Return what to do now: processes to open, then at most one decision for each process."""
    if situation.serial:
        return _one_at_a_time(situation)
    openings, drain_for = _openings(situation)
    demands = Counter(worker.demand for worker in situation.workers)
    demands.update(opening.demand for opening in openings)
    decisions: list[Decision] = [*openings]
    planned: dict[Demand, set[int]] = {}  # tests of earlier decisions, by place in the collection
    for worker in situation.workers:
        elsewhere = planned.setdefault(worker.demand, set())
        feed = _Feed(
            situation=situation,
            worker=worker,
            sharers=demands[worker.demand],
            planned=elsewhere,
        )
        draining = drain_for is not None and worker.demand != drain_for
        decision = feed.decide(draining=draining)
        if isinstance(decision, Give):
            elsewhere.update(test.index for test in decision.tests)
        if decision is not None:
            decisions.append(decision)
    return decisions


def early(demand: Demand, history: Durations, width: int, free: Mapping[str, float]) -> list[Open]:
    """Return processes to open while the selection still runs.

    It is one, and more if the last runs took long. `width`: how many run at once at most.
    """
    expected_s = sum(plan.expected(history, nodeid) or 0.0 for nodeid in history)
    remaining, openings = dict(free), []
    for _ in range(min(width, 1 + int(expected_s / plan.START_S))):
        if (devices := _claim(demand, remaining)) is not None:
            openings.append(Open(demand=demand, devices=devices))
    return openings


def _claim(
    demand: Demand, free: dict[str, float], *, avoid: Collection[str] = ()
) -> dict[str, float] | None:
    """Take devices for this demand out of `free`; None when they are not there."""
    devices = plan.nodes_for(demand, free, avoid=avoid)
    for node, count in (devices or {}).items():
        free[node] -= count
    return devices


def _openings(situation: Situation) -> tuple[list[Open], Demand | None]:
    """Return processes to open, the biggest demand first.

    The second value is the biggest demand when one that has no process finds no devices: processes
    of other demands then get no further test, so that nothing smaller keeps it waiting for ever.
    """
    openings: list[Open] = []
    free, backlog = dict(situation.free), situation.backlog
    demands = backlog.demands()
    for demand in demands:
        count, target = _processes(situation, demand)
        avoid = _avoidable(situation, backlog.front(demand, 1)[0])
        while count < target:
            devices = _claim(demand, free, avoid=avoid)
            if devices is None and not count:
                return openings, demands[0]
            if devices is None:
                break
            openings.append(Open(demand=demand, devices=devices))
            count += 1
    return openings, None


def _avoidable(situation: Situation, test: Case) -> Collection[str]:
    """Return the nodes that lost the test; none when no other node will ever have its devices."""
    fitting = {node for node, count in situation.capacity.items() if count >= test.demand.gpus}
    return test.avoid if fitting - test.avoid else ()


def _processes(situation: Situation, demand: Demand) -> tuple[int, int]:
    """Return how many processes this demand has, and how many it should have.

    Tests that are known to be short may not pay for one more process, unless one of them is long.
    """
    backlog = situation.backlog
    workers = [
        each
        for each in situation.workers
        if each.demand == demand and each.stage not in (Stage.FINISHING, Stage.STOPPING)
    ]
    tests = backlog.waiting(demand) + sum(bool(each.queue) for each in workers)
    target = min(tests, plan.slots(demand, situation.capacity, situation.cpus))
    late = any(each.late for each in workers)
    return len(workers), target if late else min(target, backlog.worth(demand) + 1)


@dataclass(frozen=True, kw_only=True)
class _Feed:
    """One process and the tests that it could get."""

    situation: Situation
    worker: WorkerView
    sharers: int  # processes of the same demand
    planned: Set[int]  # tests that others get

    def decide(self, *, draining: bool) -> Decision | None:
        worker = self.worker
        waiting = self.situation.backlog.waiting(worker.demand) - len(self.planned)
        match worker.stage:
            case Stage.STARTING:
                return None if waiting else Cancel(worker=worker.name)
            case Stage.IDLE if not waiting or draining:
                return Finish(worker=worker.name)
            case Stage.IDLE | Stage.RUNNING if waiting and not draining:
                return self._give(waiting)
            case _:
                return None

    def _give(self, waiting: int) -> Give | None:
        worker, situation = self.worker, self.situation
        backlog, mean_s = situation.backlog, situation.mean_s
        if plan.enough(worker.queue, mean_s=mean_s):
            return None
        front = backlog.front(worker.demand, plan.CHUNK_TESTS, planned=self.planned)
        count = plan.batch(front, waiting=waiting, mean_s=mean_s, sharers=self.sharers)
        tests = backlog.pick(worker.demand, count, home=worker.home, planned=self.planned)
        return Give(worker=worker.name, tests=tests, last=False)


def _one_at_a_time(situation: Situation) -> list[Decision]:
    """Return what to do where tests run one after the other, as collected.

    One process has tests at any time: all that come before the next test of another demand.
    Processes of demands that come later wait, unless their devices are needed.
    """
    backlog = situation.backlog
    front = backlog.leading()
    runner = _runner(situation, front[0]) if front else None
    decisions: list[Decision] = []
    blocked = False
    if front and runner is None:
        avoid = _avoidable(situation, front[0])
        devices = _claim(front[0].demand, dict(situation.free), avoid=avoid)
        blocked = devices is None
        if devices is not None:
            decisions.append(Open(demand=front[0].demand, devices=devices))
    kept = {front[0].demand} if front else set()
    busy = any(worker.queue for worker in situation.workers)
    for worker in situation.workers:
        if worker is runner:
            if worker.stage is Stage.IDLE and not busy:
                last = len(front) == len(backlog)
                decisions.append(Give(worker=worker.name, tests=front, last=last))
        elif not blocked and worker.demand not in kept and backlog.waiting(worker.demand) > 0:
            kept.add(worker.demand)
        elif worker.stage is Stage.IDLE:
            decisions.append(Finish(worker=worker.name))
        elif worker.stage is Stage.STARTING:
            decisions.append(Cancel(worker=worker.name))
    return decisions


def _runner(situation: Situation, test: Case) -> WorkerView | None:
    """Return the process that runs a test: one that is ready, on a node that has not lost it."""
    able = [
        worker
        for worker in situation.workers
        if worker.demand == test.demand
        and worker.stage in (Stage.IDLE, Stage.RUNNING, Stage.STARTING)
    ]
    return min(
        able,
        key=lambda worker: (worker.home in test.avoid, worker.stage is Stage.STARTING),
        default=None,
    )
