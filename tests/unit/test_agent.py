"""The agent's parts, fed with messages as processes send them: each end has its meaning.

Store, journal and books are real; there are no processes and no Ray.
"""

from __future__ import annotations

import json
import queue
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_gpu_cluster.agent.arrivals import Arrivals
from pytest_gpu_cluster.agent.cases import Resources
from pytest_gpu_cluster.agent.crash import crash_text, without_our_frames
from pytest_gpu_cluster.agent.limits import START_LIMIT_S, STOP_GRACE_S, TimeLimits
from pytest_gpu_cluster.agent.main import KeeperOrders
from pytest_gpu_cluster.agent.masking import JournalMask
from pytest_gpu_cluster.agent.node_answer import NodeAnswer
from pytest_gpu_cluster.agent.plan import Backlog, Case, Demand
from pytest_gpu_cluster.agent.processes import Launcher
from pytest_gpu_cluster.agent.ray_cluster import Cluster
from pytest_gpu_cluster.agent.selection import Selection, SelectionStage
from pytest_gpu_cluster.agent.state import SessionState
from pytest_gpu_cluster.agent.worker import Stage, Worker
from pytest_gpu_cluster.agent.workers import Workers
from pytest_gpu_cluster.contract.events import (
    Collected,
    Event,
    Interrupted,
    LateRecords,
    Notice,
    Output,
    Retry,
    TestFinished,
    TestStarted,
    UsageError,
    WorkerLost,
)
from pytest_gpu_cluster.contract.failures import FailureClass, StopReason
from pytest_gpu_cluster.contract.messages import (
    Collecting,
    Done,
    EndSession,
    Exit,
    Finished,
    PhaseStarted,
    Raw,
    Ready,
    Started,
    decode,
    encode,
)
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.records import ItemRow, TestRecord, crash_records
from pytest_gpu_cluster.contract.request import Limits, SessionRequest
from pytest_gpu_cluster.contract.selection import SelectionOptions
from pytest_gpu_cluster.contract.specs import AgentSpec
from pytest_gpu_cluster.contract.store import Store

SESSION = "20261127-000000-abcd"


def spec_of(directory: Path, *, env: dict[str, str] | None = None) -> AgentSpec:
    limits = Limits(max_s=60.0, idle_s=0.0, test_timeout_s=10.0, infra_retries=1, default_gpus=None)
    request = SessionRequest(
        session=SESSION,
        asked_at=0.0,
        provider="local",
        agent="pytest_gpu_cluster.agent.main:main",
        root_name="tree",
        origin="/home/me/tree",
        cwd=".",
        args=(),
        passed=(),
        limits=limits,
        code="c0de",
    )
    return AgentSpec(
        session=SESSION,
        cluster="c1",
        store=str(directory / "store"),
        node=directory / "node",
        scratch=directory / "scratch",
        code=directory / "code",
        request=request,
        env=env or {},
        credentials={},
        ray_token="",
        keeper_key="",
        test_user="",
        join_s=180.0,
        nodes=1,
        gpus=(),
        host="here",
        driver=None,
    )


def no_order() -> None:
    """Return no order: the client is content."""


class Recorder:
    """The transport of a process that does nothing: what it was told stays to be read."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def send(self, message: bytes) -> None:
        self.kinds.append(decode(message).kind)

    def signal(self, number: int) -> None:
        self.kinds.append(f"signal {number}")

    def kill(self) -> None:
        self.kinds.append("kill")

    def stacks(self) -> None:
        self.kinds.append("stacks")

    def receive(self, timeout_s: float) -> list[bytes]:
        raise NotImplementedError


class Parts:
    """An agent without its loop, with one process that is up."""

    def __init__(self, directory: Path, *, tests: int = 2) -> None:
        self.spec = spec_of(directory)
        store = Store.open(self.spec.store, base=directory)
        self.record = SessionRecord(store, SESSION)
        journal = self.record.writer("agent")
        self.state = SessionState(self.record, journal, self.spec.request.limits)
        arrivals: Arrivals = queue.SimpleQueue()
        cluster = Cluster(self.spec, store, arrivals)
        launcher = Launcher(self.spec, self.state, cluster, arrivals)
        self.workers = Workers(self.spec, self.state, cluster, launcher)
        self.selection = Selection(self.state, launcher)
        self.tests = [case(index) for index in range(tests)]
        self.transport = Recorder()
        self.worker = Worker("gw0", Demand(), {"a": 0.0})
        self.worker.transport = self.transport
        self.state.workers.append(self.worker)

    def run(self, *tests: Case) -> None:
        """Bring the process to the point where the first of these tests runs."""
        self.workers.on_messages(self.worker, [Ready()])
        self.worker.give(tests, last=False)
        message = Started(nodeid=tests[0].nodeid, attempt=0)
        self.workers.on_messages(self.worker, [message, PhaseStarted(when="call")])

    def events(self) -> list[Event]:
        self.state.journal.close()
        return self.record.reader().poll()

    def outcomes(self) -> dict[str, FailureClass | None]:
        return {
            event.nodeid: event.failure_class
            for event in self.events()
            if isinstance(event, TestFinished)
        }


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    parts = Parts(tmp_path)
    yield parts
    parts.state.journal.close()


def case(index: int) -> Case:
    return Case(
        index=index,
        nodeid=f"t.py::t{index}",
        occurrence=0,
        location=("t.py", index, f"t{index}"),
        demand=Demand(),
    )


def row(index: int, *, gpus: float | None = None) -> ItemRow:
    return {
        "nodeid": f"t.py::t{index}",
        "name": f"t{index}",
        "parent": 0,
        "location": ("t.py", index, f"t{index}"),
        "outside": None,
        "gpu": None if gpus is None else {"count": gpus},
        "ray": None,
    }


def failed(test: Case) -> list[TestRecord]:
    return crash_records(test.nodeid, test.location, when="call", text="assert 1 == 2")


def finished(test: Case, records: Sequence[TestRecord] = ()) -> Finished:
    return Finished(nodeid=test.nodeid, attempt=0, records=records, duration_s=0.1)


def resources() -> Resources:
    return Resources(nodes={"a": 2.0}, gpus=(), default_gpus=0.0)


# --- the end of a test process --------------------------------------------------------------------


def test_a_crash_is_the_failure_of_the_running_test_alone(parts: Parts) -> None:
    """The others were only in the same process: they run in the next one."""
    first, second = parts.tests
    parts.run(first, second)
    parts.workers.on_messages(parts.worker, [Exit(status=-11, err="Fatal Python error")])

    assert list(parts.state.backlog) == [second]
    assert (second.attempt, second.avoid) == (0, set())
    lost, outcome = (e for e in parts.events() if isinstance(e, WorkerLost | TestFinished))
    assert isinstance(lost, WorkerLost)
    assert lost.message == "crash: SIGSEGV in call of t.py::t0"
    assert isinstance(outcome, TestFinished)
    assert outcome.failure_class is FailureClass.CRASH
    assert "Process stderr" in json.dumps(outcome.to_json())


def test_a_test_that_had_not_begun_is_blamed_for_a_death_between_two(parts: Parts) -> None:
    """Its file may have been what ended the process, and it would end the next one as well."""
    first, second = parts.tests
    parts.run(first, second)
    parts.workers.on_messages(parts.worker, [finished(first), Exit(status=3)])

    assert parts.outcomes() == {first.nodeid: None, second.nodeid: FailureClass.CRASH}


@pytest.mark.parametrize("status", [-11, 1], ids=["crash", "exception"])
def test_a_process_that_dies_after_its_tests_fails_the_run(parts: Parts, status: int) -> None:
    """The teardown of a session's fixture, or a hook: it was green, for no test ran then."""
    first, _ = parts.tests
    parts.run(first)
    parts.workers.on_messages(parts.worker, [finished(first)])
    parts.worker.finish()
    parts.workers.on_messages(parts.worker, [Exit(status=status, err="what it said")])

    assert parts.state.ends.status == 1
    (notice,) = (event for event in parts.events() if isinstance(event, Notice))
    assert "after its tests" in notice.text
    assert "what it said" in notice.text


def test_a_hook_at_the_end_of_a_process_fails_the_run_and_is_named(parts: Parts) -> None:
    """It may look for leaks, and only this process had the tests that leak."""
    parts.run(parts.tests[0])
    done = Done(exitstatus=7, tests_status=0)
    parts.workers.on_messages(parts.worker, [finished(parts.tests[0]), done])

    assert parts.state.ends.status == 7
    assert [e.text.partition(":")[0] for e in parts.events() if isinstance(e, Notice)] == ["gw0"]


def test_a_lost_machine_costs_the_running_test_an_attempt_and_the_waiting_one_none(
    parts: Parts,
) -> None:
    """No test is at fault, but one that takes its machine down each time must end some day."""
    first, second = parts.tests
    parts.run(first, second)
    parts.worker.lose("the node is gone")
    parts.workers.on_messages(parts.worker, [Exit(status=None)])

    assert (first.attempt, second.attempt) == (1, 0)
    assert first.avoid == second.avoid == {"a"}
    assert sorted(test.index for test in parts.state.backlog) == [0, 1]
    assert parts.state.damage == "the node is gone"
    assert [e.nodeid for e in parts.events() if isinstance(e, Retry)] == [
        first.nodeid,
        second.nodeid,
    ]


def test_attempts_end(parts: Parts) -> None:
    """A test whose machine is lost more often than `infra-retries` allows is an error by name."""
    test = replace(parts.tests[0], attempt=1)
    parts.run(test)
    parts.workers.on_messages(parts.worker, [Exit(status=None, why="its slot was lost")])

    assert not parts.state.backlog
    assert parts.state.outcomes.failure_class is FailureClass.INFRASTRUCTURE
    assert parts.outcomes() == {test.nodeid: FailureClass.INFRASTRUCTURE}


def test_a_timeout_is_the_failure_of_its_test(parts: Parts) -> None:
    """The stacks are written before the process is killed: they are what the reader needs."""
    first, second = parts.tests
    parts.run(first, second)
    parts.worker.since -= 11.0
    TimeLimits(parts.state, no_order).check()
    assert parts.worker.stage is Stage.TIMED_OUT
    deadline = time.monotonic() + 10.0
    while "kill" not in parts.transport.kinds and time.monotonic() < deadline:
        time.sleep(0.01)
    parts.workers.on_messages(parts.worker, [Exit(status=-9, ordered=True)])

    assert parts.transport.kinds[-2:] == ["stacks", "kill"]
    assert list(parts.state.backlog) == [second]
    assert parts.outcomes() == {first.nodeid: FailureClass.TIMEOUT}


def test_a_process_that_does_not_start_is_tried_again_while_a_machine_may_be_the_reason(
    parts: Parts,
) -> None:
    """The second loss is one more than `infra-retries` allows here."""
    parts.workers.on_messages(parts.worker, [Exit(status=None, why="TimeoutError: no actor")])
    first = parts.state.stop
    other = Worker("gw1", Demand(), {"a": 0.0})
    parts.state.workers.append(other)
    parts.workers.on_messages(other, [Exit(status=None, why="TimeoutError: no actor")])

    assert (first, parts.state.stop) == (None, StopReason.INFRASTRUCTURE)
    assert parts.state.stop_message == "no test process could be started: TimeoutError: no actor"


def test_a_process_that_is_killed_before_its_first_test_is_tried_again(parts: Parts) -> None:
    """The kernel kills one when memory is short; the tests must not end without a name."""
    parts.state.selected = True
    parts.state.tests, parts.state.backlog = parts.tests, Backlog(parts.tests)
    parts.workers.on_messages(parts.worker, [Exit(status=-9)])
    first, damage = parts.state.stop, parts.state.damage
    other = Worker("gw1", Demand(), {"a": 0.0})
    parts.state.workers.append(other)
    parts.workers.on_messages(other, [Exit(status=-9)])

    assert (first, damage, parts.state.stop) == (None, None, StopReason.INFRASTRUCTURE)
    assert "crash: SIGKILL (out of memory?) before its first test" in parts.state.stop_message
    named = dict.fromkeys((test.nodeid for test in parts.tests), FailureClass.INFRASTRUCTURE)
    assert parts.outcomes() == named


@pytest.mark.parametrize("status", [-9, -11])
def test_a_selection_that_is_lost_while_tests_run_names_those_without_a_turn(
    parts: Parts, status: int
) -> None:
    """No code of theirs runs in that process then, so it is not their fault: exit 10, not 3."""
    collected = Collected(items=[row(0), row(1)], collectors=[], parts=[])
    for message in (collected, Ready(), Exit(status=status)):
        parts.selection.on_message(message, resources)

    assert parts.state.stop is StopReason.INFRASTRUCTURE
    assert parts.state.stop_message.endswith("while the tests ran")
    assert set(parts.outcomes().values()) == {FailureClass.INFRASTRUCTURE}
    assert len(parts.outcomes()) == 2


def test_a_process_that_refuses_to_start_ends_the_session_with_its_words(parts: Parts) -> None:
    """Every other process would refuse the same arguments."""
    parts.state.selected = True
    messages = [UsageError(text="unknown option --x"), Exit(status=4)]
    parts.workers.on_messages(parts.worker, messages)

    assert (parts.state.stop, parts.state.stop_message) == (
        StopReason.NOT_STARTED,
        "unknown option --x",
    )


def test_a_cancelled_process_means_nothing(parts: Parts) -> None:
    """It was ended before its first message because nothing was left for it."""
    parts.worker.cancel()
    parts.workers.on_messages(parts.worker, [Exit(status=-9, ordered=True)])

    assert parts.state.stop is None
    assert parts.events() == []


def test_a_process_that_is_not_up_in_time_counts_as_lost(parts: Parts) -> None:
    """Its node may hang; the next process may be started on another one."""
    parts.worker.since -= START_LIMIT_S + 1
    TimeLimits(parts.state, no_order).check()
    parts.workers.on_messages(parts.worker, [Exit(status=-9, ordered=True)])

    assert parts.transport.kinds == ["kill"]
    assert parts.state.stop is None
    assert parts.state.damage == "it was not ready after 300 s"


# --- events of a test -----------------------------------------------------------------------------


def test_a_start_is_published_once_and_before_what_the_test_writes(parts: Parts) -> None:
    """A reader sees the name of a test above its output."""
    parts.state.options = SelectionOptions(capture="no")
    test = parts.tests[0]
    parts.workers.on_messages(parts.worker, [Ready()])
    parts.worker.give([test], last=True)
    raw = Raw(fd=1, text="hello\n")
    parts.workers.on_messages(parts.worker, [Started(nodeid=test.nodeid, attempt=0), raw])
    parts.workers.on_messages(parts.worker, [PhaseStarted(when="call")])

    assert [type(event) for event in parts.events()] == [TestStarted, Output]


def test_no_start_is_published_of_a_test_that_has_ended(parts: Parts) -> None:
    """For a thousand trivial tests it would be a thousand events that nobody can see."""
    test = parts.tests[0]
    parts.workers.on_messages(parts.worker, [Ready()])
    parts.worker.give([test], last=True)
    messages = [Started(nodeid=test.nodeid, attempt=0), finished(test)]
    parts.workers.on_messages(parts.worker, messages)

    assert [type(event) for event in parts.events()] == [TestFinished]
    assert parts.worker.stage is Stage.IDLE


def test_a_late_teardown_error_counts_towards_maxfail(parts: Parts) -> None:
    """Plain pytest would have stopped after it, too."""
    parts.state.options = SelectionOptions(maxfail=1)
    test = parts.tests[0]
    parts.run(test)
    late = LateRecords(nodeid=test.nodeid, records=failed(test))
    parts.workers.on_messages(parts.worker, [finished(test), late])

    assert parts.state.stop is StopReason.MAXFAIL
    assert [e.worker for e in parts.events() if isinstance(e, LateRecords)] == ["gw0"]


# --- the end of the session -----------------------------------------------------------------------


def test_maxfail_asks_running_tests_to_stop_and_drops_their_outcomes(parts: Parts) -> None:
    """Plain pytest would not have run them; the selecting process is told as pytest words it."""
    parts.state.options = SelectionOptions(maxfail=1)
    first, second = parts.tests
    other, transport = Worker("gw1", Demand(), {"a": 0.0}), Recorder()
    other.transport = transport
    parts.state.workers.append(other)
    parts.workers.on_messages(other, [Ready()])
    other.give([second], last=False)
    parts.workers.on_messages(other, [Started(nodeid=second.nodeid, attempt=0)])
    parts.run(first)
    parts.workers.on_messages(parts.worker, [finished(first, failed(first))])
    parts.workers.on_messages(other, [finished(second), Exit(status=0)])

    assert parts.state.stop_message == "stopping after 1 failures"
    assert transport.kinds[-3:] == ["stop", "signal 2", "finish"]
    assert parts.outcomes() == {first.nodeid: None}


def test_the_deadline_names_every_test_that_has_no_outcome(parts: Parts) -> None:
    """A missing test must not look like a passed one."""
    first, second = parts.tests
    parts.state.backlog = Backlog([second])
    parts.run(first)
    parts.state.end(StopReason.LIMIT, "the session's limit of 1 minutes was reached")
    parts.workers.on_messages(parts.worker, [finished(first), Exit(status=0)])

    assert parts.state.outcomes.failure_class is FailureClass.LIMIT
    assert parts.outcomes() == dict.fromkeys((first.nodeid, second.nodeid), FailureClass.LIMIT)


@pytest.mark.parametrize("reason", [r for r in StopReason if r.discards or r is StopReason.CRASH])
def test_tests_that_are_just_not_run_get_no_outcome(parts: Parts, reason: StopReason) -> None:
    """The reason decides, whatever the sentence says: only machines and limits are errors."""
    parts.state.backlog = Backlog(parts.tests)
    parts.state.end(reason, "x")

    assert parts.outcomes() == {}
    assert parts.state.outcomes.failure_class is None


def test_the_first_reason_to_stop_is_the_reason(parts: Parts) -> None:
    """Anything that follows is a consequence of it."""
    parts.run(parts.tests[0])
    parts.workers.on_messages(parts.worker, [Interrupted(text="!!! exit !!!", exit=True)])
    parts.state.end(StopReason.LIMIT, "too late")

    assert (parts.state.stop, parts.state.stop_message) == (
        StopReason.INTERRUPTED,
        "!!! exit !!!",
    )


def test_an_order_of_the_client_stops_the_session(parts: Parts) -> None:
    """The order holds the reason; the sentence for people is the agent's."""
    keeper, agent = socket.socketpair()
    limits = TimeLimits(parts.state, KeeperOrders(agent))
    limits.check()
    before = parts.state.stop

    keeper.sendall(encode(EndSession(reason=StopReason.CLIENT_DONE)))
    limits.check()

    assert (parts.state.stop, parts.state.stop_message) == (
        StopReason.CLIENT_DONE,
        "the client needs no more results",
    )
    assert before is None
    keeper.close()
    limits.check()  # a keeper that is gone has no orders
    agent.close()


def test_a_process_that_does_not_stop_is_killed(parts: Parts) -> None:
    """A test may ignore the interrupt."""
    parts.run(parts.tests[0])
    parts.state.end(StopReason.CLIENT_LOST, "x")
    assert parts.worker.stopped_at is not None
    parts.worker.stopped_at -= STOP_GRACE_S + 1
    TimeLimits(parts.state, no_order).check()

    assert parts.transport.kinds[-1] == "kill"


# --- the selection --------------------------------------------------------------------------------


def test_a_demand_that_can_never_be_met_is_the_error_of_its_test(parts: Parts) -> None:
    """The others run: one test's mark is no reason to lose a suite."""
    message = Collected(items=[row(0), row(1, gpus=4.0)], collectors=[], parts=[])
    parts.selection.on_message(message, resources)

    assert parts.selection.stage is SelectionStage.COLLECTED
    assert [test.nodeid for test in parts.state.backlog] == ["t.py::t0"]
    assert parts.outcomes() == {"t.py::t1": FailureClass.TEST}


def test_a_selection_of_nothing_but_impossible_demands_is_a_wrong_request(parts: Parts) -> None:
    """Nothing that was asked for can be done, and the exit code says so."""
    parts.selection.on_message(
        Collected(items=[row(0, gpus=4.0)], collectors=[], parts=[]), resources
    )

    assert parts.outcomes() == {"t.py::t0": FailureClass.REQUEST}


def test_a_selection_that_ends_by_itself_leaves_nothing_to_run(parts: Parts) -> None:
    """A usage error, `--version`: pytest ends without a collection."""
    parts.selection.on_message(Done(exitstatus=4), resources)

    assert parts.state.stop is StopReason.NOTHING_TO_RUN
    assert parts.selection.result.exitstatus == 4


@pytest.mark.parametrize("collecting", [[], [Collecting(path="a.py")]])
def test_a_selection_that_dies_a_second_time_ends_the_session(
    parts: Parts, collecting: list[Collecting]
) -> None:
    """A first death at the import of a file is that file's error; after it, nothing helps."""
    parts.state.crashed_files["a.py"] = "crash: SIGSEGV while a.py was imported"
    for message in [*collecting, Exit(status=-11)]:
        parts.selection.on_message(message, resources)

    assert parts.state.stop is StopReason.CRASH
    assert parts.state.stop_message == "crash: SIGSEGV before any file was collected"


# --- texts of others ------------------------------------------------------------------------------


def test_a_secret_that_is_a_word_of_events_breaks_no_event(tmp_path: Path) -> None:
    """A token "passed" would otherwise take the outcome out of every report."""
    spec = spec_of(tmp_path, env={"A_TOKEN": "passed", "B_TOKEN": "abcdefgh1"})
    records = crash_records("t.py::a", ("t.py", 0, "a"), when="call", text="passed with abcdefgh1")
    event = TestFinished(nodeid="t.py::a", records=records)

    masked = TestFinished.from_json(JournalMask(spec.passed.masker())(event))

    text = json.dumps(masked.to_json())
    assert "abcdefgh1" not in text
    assert "*** with ***" in text
    assert [each["report"]["outcome"] for each in masked.records if each["kind"] == "report"] == [
        each["report"]["outcome"] for each in records if each["kind"] == "report"
    ]


def test_a_refusal_of_the_keeper_is_raised_with_its_words() -> None:
    """The remedy is in them."""
    with pytest.raises(RuntimeError, match="no space"):
        NodeAnswer.parse({"error": "no space left", "remedy": "see the node's log"})
    answer = NodeAnswer.parse({"gpus": [], "host": "n1", "driver": None})

    assert (answer.gpus, answer.host) == ((), "n1")


def test_a_dead_process_shows_the_test_and_not_what_called_it() -> None:
    """Below the test's own frames its reader finds nothing of their own."""
    frames = ("tree/t.py", "site/pytest_gpu_cluster/worker/run.py", "site/_pytest/main.py")
    trace = "".join(f'  File "/{path}", line 1 in f\n' for path in frames)
    text = f"Fatal Python error\n\nCurrent thread 0x1:\n{trace}Extension modules: a\nafter\n"

    assert without_our_frames(text) == (
        'Fatal Python error\n\nCurrent thread 0x1:\n  File "/tree/t.py", line 1 in f\nafter\n'
    )


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        (Exit(status=3), "crash: exit 3 x"),
        (Exit(status=-9), "crash: SIGKILL (out of memory?) x"),
        (Exit(status=-9, ordered=True), "crash: SIGKILL x"),
        (Exit(status=-250), "crash: signal 250 x"),
        (Exit(status=None), "crash: exit None x"),
    ],
)
def test_a_death_is_named_by_its_signal(ending: Exit, text: str) -> None:
    """Out of memory is the usual reason of a kill that nobody ordered."""
    assert crash_text(ending, "x") == text
