"""Admission is pure, so its promises are stated over arbitrary suites and clusters, without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpu_cluster.agent import admission, plan
from pytest_gpu_cluster.agent.admission import Cancel, Finish, Give, Open, Situation, WorkerView
from pytest_gpu_cluster.agent.plan import Backlog, Case, Demand
from pytest_gpu_cluster.agent.worker import Stage
from tests.unit.suites import a_case

ONE, TWO, HALF, NONE = (Demand(gpus=gpus) for gpus in (1.0, 2.0, 0.5, 0.0))
DRIVING = Demand(drives=True, ray_nodes=1, ray_gpus=2.0)
WIDE = Demand(drives=True, ray_nodes=2, ray_gpus=2.0, gpus=1.0)
demands = st.sampled_from([ONE, TWO, HALF, NONE, DRIVING, WIDE])
seconds = st.none() | st.sampled_from([0.0, 0.001, 0.01, 0.2, 1.0, 5.0])
clusters = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.integers(0, 4).map(float), min_size=1
)
suites = st.lists(st.tuples(demands, seconds, st.sets(st.sampled_from(["a", "b", "c"]))))


def cases_of(rows: Sequence[tuple[Demand, float | None, set[str]]]) -> list[Case]:
    return [
        replace(a_case(index, demand, expected_s), avoid=avoid)
        for index, (demand, expected_s, avoid) in enumerate(rows)
    ]


def situation(
    tests: Sequence[Case],
    workers: Sequence[WorkerView] = (),
    *,
    free: Mapping[str, float],
    capacity: Mapping[str, float] | None = None,
) -> Situation:
    return Situation(
        backlog=Backlog(tests),
        workers=workers,
        capacity=capacity if capacity is not None else free,
        free=free,
        cpus=2,
        mean_s=None,
        serial=False,
    )


def view(name: str, demand: Demand, stage: Stage, queue: Sequence[Case] = ()) -> WorkerView:
    return WorkerView(name=name, demand=demand, home="a", stage=stage, queue=queue)


@dataclass
class Cluster:
    """Carries decisions out as the agent's loop does; each process ends one test between them."""

    backlog: Backlog
    capacity: dict[str, float]
    serial: bool = False
    free: dict[str, float] = field(default_factory=dict)
    workers: list[WorkerView] = field(default_factory=list)
    devices: dict[str, Mapping[str, float]] = field(default_factory=dict)
    ran: list[int] = field(default_factory=list)
    opened: list[Demand] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.free = dict(self.capacity)

    def step(self) -> bool:
        """Decide once and let time pass; False when nothing is left to do."""
        for decision in admission.decide(
            Situation(
                backlog=self.backlog,
                workers=self.workers,
                capacity=self.capacity,
                free=self.free,
                cpus=2,
                mean_s=0.01 if self.ran else None,
                serial=self.serial,
            )
        ):
            match decision:
                case Open():
                    self.open(decision)
                case Give():
                    self.backlog.remove(decision.tests)
                    worker = self.find(decision.worker)
                    tests = [*worker.queue, *decision.tests]
                    self.update(decision.worker, stage=Stage.RUNNING, queue=tests)
                case Finish() | Cancel():
                    self.end(decision.worker)
        self.pass_time()
        return bool(self.backlog or self.workers)

    def open(self, opening: Open) -> None:
        name = f"gw{len(self.opened)}"
        self.opened.append(opening.demand)
        for node, count in opening.devices.items():
            self.free[node] -= count
        self.devices[name] = opening.devices
        home = next(iter(opening.devices))
        self.workers.append(replace(view(name, opening.demand, Stage.STARTING), home=home))

    def find(self, name: str) -> WorkerView:
        return next(worker for worker in self.workers if worker.name == name)

    def update(self, name: str, *, stage: Stage, queue: Sequence[Case]) -> None:
        index = self.workers.index(self.find(name))
        self.workers[index] = replace(self.workers[index], stage=stage, queue=queue)

    def end(self, name: str) -> None:
        worker = self.find(name)
        assert not worker.queue
        self.workers.remove(worker)
        for node, count in self.devices[name].items():
            self.free[node] += count

    def pass_time(self) -> None:
        for worker in list(self.workers):
            queue = list(worker.queue)
            if queue:
                self.ran.append(queue.pop(0).index)
            self.update(worker.name, stage=Stage.RUNNING if queue else Stage.IDLE, queue=queue)


@given(suites, clusters, st.booleans())
def test_no_test_is_lost_or_given_twice(
    rows: list[tuple[Demand, float | None, set[str]]], capacity: dict[str, float], serial: bool
) -> None:
    """A lost test is a green run that never happened; one that nobody starts is a hang."""
    tests = [test for test in cases_of(rows) if plan.impossible(test.demand, capacity) is None]
    cluster = Cluster(Backlog(tests), capacity, serial=serial)

    steps = 0
    while cluster.step():
        steps += 1
        assert steps <= 10 * len(tests) + 10, "tests wait that nothing starts"
        assert all(count >= -1e-9 for count in cluster.free.values())

    assert sorted(cluster.ran) == sorted(test.index for test in tests)
    assert cluster.free == pytest.approx(capacity)


@given(suites, clusters)
def test_a_serial_run_has_one_test_at_a_time_as_collected(
    rows: list[tuple[Demand, float | None, set[str]]], capacity: dict[str, float]
) -> None:
    """`-x` and stepwise are promises about the order, whatever devices the tests need."""
    tests = [test for test in cases_of(rows) if plan.impossible(test.demand, capacity) is None]
    cluster = Cluster(Backlog(tests), capacity, serial=True)

    while cluster.step():
        assert sum(bool(worker.queue) for worker in cluster.workers) <= 1

    assert cluster.ran == sorted(cluster.ran)


@given(suites, clusters, st.data())
def test_nothing_is_opened_beyond_what_is_free(
    rows: list[tuple[Demand, float | None, set[str]]],
    capacity: dict[str, float],
    data: st.DataObject,
) -> None:
    """Ray would leave the second reservation of a device pending, and its tests with it."""
    free = {node: data.draw(st.floats(0, count), label=node) for node, count in capacity.items()}
    decisions = admission.decide(situation(cases_of(rows), free=free, capacity=capacity))

    opened = [decision for decision in decisions if isinstance(decision, Open)]
    for node, count in free.items():
        assert sum(opening.devices.get(node, 0.0) for opening in opened) <= count + 1e-6
    for demand in {opening.demand for opening in opened}:
        processes = sum(opening.demand == demand for opening in opened)
        assert processes <= plan.slots(demand, capacity, 2)


@given(suites, clusters, st.lists(st.tuples(demands, st.sampled_from(Stage)), max_size=4))
def test_deciding_changes_nothing(
    rows: list[tuple[Demand, float | None, set[str]]],
    free: dict[str, float],
    processes: list[tuple[Demand, Stage]],
) -> None:
    """A decision can be made twice, or dropped: the backlog is the only place where tests wait."""
    workers = [view(f"gw{n}", demand, stage) for n, (demand, stage) in enumerate(processes)]
    state = situation(cases_of(rows), workers, free=free)
    before = [test.index for test in state.backlog], dict(free)

    assert admission.decide(state) == admission.decide(state)
    assert ([test.index for test in state.backlog], dict(free)) == before


@given(st.integers(1, 40), st.integers(1, 3))
def test_a_bigger_demand_is_not_starved_by_smaller_ones(small: int, gpus: int) -> None:
    """Many small tests would otherwise keep one device busy until the last of them is over."""
    big = Demand(gpus=float(gpus))
    capacity = {"a": float(gpus)}
    tests = [a_case(n, HALF, 1.0) for n in range(small)]
    cluster = Cluster(Backlog(tests), capacity)
    cluster.step()
    cluster.backlog.put_back([a_case(small, big, 1.0)])

    running = sum(len(worker.queue) for worker in cluster.workers)
    for _ in range(running + 3):
        cluster.step()

    assert small in cluster.ran


def test_draining_ends_idle_processes_and_gives_the_others_nothing() -> None:
    """A running test may end; only then are the devices of the bigger demand free."""
    tests = [a_case(0, TWO), a_case(1, ONE), a_case(2, ONE)]
    workers = [view("gw0", ONE, Stage.IDLE), view("gw1", ONE, Stage.RUNNING, [a_case(3, ONE)])]
    decisions = admission.decide(situation(tests, workers, free={"a": 0.0}, capacity={"a": 2.0}))

    assert decisions == [Finish(worker="gw0")]


@given(st.lists(seconds, min_size=1, max_size=30))
def test_one_slot_keeps_the_order(durations: list[float | None]) -> None:
    """With one process the output is that of plain pytest, so it gets all tests in order."""
    tests = [a_case(n, ONE, expected_s) for n, expected_s in enumerate(durations)]
    cluster = Cluster(Backlog(tests), {"a": 1.0}, serial=True)
    while cluster.step():
        pass

    assert cluster.ran == list(range(len(tests)))
    assert cluster.opened == [ONE]


def test_a_lost_test_goes_to_another_node_than_the_one_that_lost_it() -> None:
    """The node may be what killed it, and its next process is opened elsewhere, too."""
    burnt = replace(a_case(0), avoid={"a"})
    workers = [view("gw0", ONE, Stage.IDLE), replace(view("gw1", ONE, Stage.IDLE), home="b")]
    decisions = admission.decide(situation([burnt, a_case(1)], workers, free={"a": 0.0, "b": 0.0}))
    opened = admission.decide(situation([burnt], free={"a": 1.0, "b": 1.0}))

    assert [d.tests[0].index for d in decisions if isinstance(d, Give)] == [1, 0]
    assert [d.devices for d in opened if isinstance(d, Open)] == [{"b": 1.0}]


def test_a_lost_test_goes_back_where_no_other_node_has_its_devices() -> None:
    """It would wait for ever, and every smaller test with it."""
    burnt = replace(a_case(0, TWO), avoid={"a"})
    opened = admission.decide(situation([burnt], free={"a": 2.0, "b": 1.0}))
    waits = admission.decide(
        situation([burnt], free={"a": 2.0, "b": 1.0}, capacity={"a": 2.0, "b": 2.0})
    )

    assert [d.devices for d in opened if isinstance(d, Open)] == [{"a": 2.0}]
    assert waits == []


def test_a_process_without_a_use_is_ended_before_it_is_up() -> None:
    """The session would otherwise wait for its start only to end it."""
    workers = [view("gw0", ONE, Stage.STARTING), view("gw1", ONE, Stage.IDLE)]

    assert admission.decide(situation([], workers, free={"a": 0.0})) == [
        Cancel(worker="gw0"),
        Finish(worker="gw1"),
    ]


@pytest.mark.parametrize("stage", [Stage.FINISHING, Stage.STOPPING, Stage.TIMED_OUT, Stage.LOST])
def test_a_process_that_ends_gets_nothing(stage: Stage) -> None:
    """Its tests would have to be given to another one a moment later."""
    decisions = admission.decide(
        situation([a_case(0)], [view("gw0", ONE, stage)], free={"a": 0.0}, capacity={"a": 1.0})
    )

    assert decisions == []


def test_one_long_test_among_short_ones_opens_a_second_process() -> None:
    """Tests that are known to be short do not pay for another process, until one of them is not."""
    tests = [a_case(n, ONE, 0.001) for n in range(5)]
    busy = view("gw0", ONE, Stage.RUNNING, [a_case(9, ONE, 1.0)])

    def opened(worker: WorkerView) -> int:
        decisions = admission.decide(
            situation(tests, [worker], free={"a": 1.0}, capacity={"a": 2.0})
        )
        return sum(isinstance(decision, Open) for decision in decisions)

    assert (opened(busy), opened(replace(busy, late=True))) == (0, 1)


def test_processes_open_early_by_what_the_last_runs_took() -> None:
    """One always pays, for the selection takes longer; more would only be closed again."""
    free = {"a": 2.0, "b": 2.0}

    def count(history: dict[str, list[float]], width: int = 4) -> int:
        return len(admission.early(ONE, history, width, free))

    assert count({}) == 1
    assert count({"t.py::t": [plan.START_S]}) == 2
    assert count({"t.py::t": [100.0]}) == 4
    assert count({"t.py::t": [100.0]}, width=9) == 4
    assert free == {"a": 2.0, "b": 2.0}
