"""The selecting process: collects once, and shows the session's end to the user's hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum, auto

from pytest_gpu_cluster.agent.cases import Cases, Resources, cases_of
from pytest_gpu_cluster.agent.crash import crash_text, was_killed, with_last_output
from pytest_gpu_cluster.agent.plan import Backlog
from pytest_gpu_cluster.agent.processes import SELECTING, Launcher, Opening
from pytest_gpu_cluster.agent.state import SessionState
from pytest_gpu_cluster.contract.events import (
    Collected,
    Event,
    InternalError,
    Message,
    Notice,
    Output,
    SelectionRestarted,
)
from pytest_gpu_cluster.contract.failures import FailureClass, StopReason
from pytest_gpu_cluster.contract.messages import (
    Collecting,
    Done,
    Exit,
    FinishSession,
    Order,
    Raw,
    Ready,
    ShowReports,
    encode,
)
from pytest_gpu_cluster.contract.selection import Ordering, SelectionOptions

STREAMS = {1: "out", 2: "err"}
UNUSED = 20  # tests that hold a GPU for nothing, from which on it is worth a word
REPORTS_AT_ONCE = 200  # tests whose reports travel in one message


class SelectionStage(Enum):
    """The stages of the selecting process."""

    COLLECTING = auto()
    COLLECTED = auto()  # its tests are planned
    FINISHING = auto()  # it was told that the session ends
    ENDED = auto()


class Selection:
    """The selecting process, which is started again when a file that it imports ends it."""

    def __init__(self, state: SessionState, launcher: Launcher) -> None:
        self._state, self._launcher = state, launcher
        self._process: Opening | None = None
        self._collecting = ""  # the file that is being imported
        self.stage = SelectionStage.COLLECTING
        self.result = Done(exitstatus=None)

    def start(self) -> None:
        self._process = self._launcher.start_selection()

    def send(self, order: Order) -> None:
        if self._process is not None:
            self._process.send(encode(order))

    def on_message(self, message: Message, resources: Callable[[], Resources]) -> None:
        """Act on a message of the process; every event is journaled."""
        match message:
            case Collecting():
                self._collecting = message.path
            case Raw():
                self._state.journal.append(raw_output(message, SELECTING))
            case Collected():
                self._state.options = message.options
                self._state.outcomes.wants_reports = message.options.wants_reports
                self._state.journal.append(message)
                self._take_items(message, resources())
            case Ready():
                self._state.selected = True
            case Done():
                self._on_done(message)
            case Exit():
                self._on_exit(message)
            case Event():
                self._state.journal.append(message)

    def _take_items(self, message: Collected, resources: Resources) -> None:
        """Plan the collected tests; those that this cluster can never run are errors."""
        state = self._state
        if self.stage is SelectionStage.COLLECTING:
            self.stage = SelectionStage.COLLECTED
        cases = cases_of(message.items, resources, state.history, message.options)
        state.tests = cases.tests
        if not message.run:
            return
        all_refused = len(cases.refused) == len(cases.tests)
        failure_class = FailureClass.REQUEST if all_refused else FailureClass.TEST
        for test, problem in cases.refused:
            advice = "ask for less, or raise nodes or gpus-per-node in [tool.gpu-cluster]"
            state.fail(test, f"demand: {problem}; {advice}", failure_class)
        state.serial = cases.ordering is Ordering.SERIAL
        for notice in notices(message.options, cases):
            state.journal.append(notice)
        if state.stop is None:
            state.backlog = Backlog(cases.runnable)
        else:  # the end came before the selection did
            state.discard(cases.runnable)

    def _on_done(self, message: Done) -> None:
        if not self._state.selected:  # refused, nothing to run, or no more than --collect-only
            self._state.end(StopReason.NOTHING_TO_RUN, "nothing to run")
        self.stage, self.result = SelectionStage.ENDED, message

    def _on_exit(self, ending: Exit) -> None:
        """Start again after a crash in an imported file; any other crash ends the session."""
        self._process = None
        if self.stage is SelectionStage.ENDED:
            return
        state, path = self._state, self._collecting
        first = self.stage is SelectionStage.COLLECTING and path and path not in state.crashed_files
        if first and state.stop is None:
            text = crash_text(ending, f"while {path} was imported")
            state.crashed_files[path] = with_last_output(text, ending)
            state.journal.append(SelectionRestarted(path=path))
            self.start()
            return
        place = "before any file was collected"
        if self.stage is SelectionStage.COLLECTED:
            place = "while the tests ran"
        elif self.stage is SelectionStage.FINISHING:
            place = "while the session was being finished"
        text = f"{ending.why or crash_text(ending, place)}"
        # No code of the user runs there while tests run, and no code kills its process in that way.
        lost = self.stage is SelectionStage.COLLECTED or was_killed(ending) or ending.status is None
        self.stage = SelectionStage.ENDED
        if lost:
            message = f"the process that selects the tests is lost: {text}"
            state.end(StopReason.INFRASTRUCTURE, message)
            return
        state.journal.append(InternalError(text=with_last_output(text, ending)))
        state.end(StopReason.CRASH, text)

    def finish(self) -> None:
        """Tell the process how the tests ended, once, so that the user's hooks see it."""
        if self.stage not in (SelectionStage.COLLECTING, SelectionStage.COLLECTED):
            return
        if self._process is None:  # the nodes that it waits for did not come
            self.stage = SelectionStage.ENDED
            return
        self.stage = SelectionStage.FINISHING
        state, feedback = self._state, self._state.outcomes.feedback
        for start in range(0, len(feedback), REPORTS_AT_ONCE):
            self.send(ShowReports(tests=feedback[start : start + REPORTS_AT_ONCE]))
        maxfail = state.stop is StopReason.MAXFAIL
        self.send(
            FinishSession(
                shouldfail=state.stop_message if maxfail else "",
                shouldstop="" if maxfail else state.stop_message,
                testsfailed=state.outcomes.failures,
                snapshots=tuple(state.ends.snapshots),
            )
        )


def notices(options: SelectionOptions, cases: Cases) -> Iterator[Notice]:
    """Yield what the user should know of the order and the places in which tests run."""
    if options.unused:
        text = "no effect here: the number of processes follows the devices"
        yield Notice(name="xdist", text=f"{', '.join(options.unused)}: {text}")
    for remark in options.remarks:
        yield Notice(name="plugin", text=remark)
    if cases.ordering is Ordering.KEPT:
        yield Notice(name="order", text=f"handed out as collected, for {options.ordering_reason}")
    elif options.ordering is Ordering.SERIAL:
        advice = "" if options.ordering_fixed else '; distribute = "test" runs them side by side'
        text = f"one test at a time, as collected, for {options.ordering_reason}{advice}"
        yield Notice(name="order", text=text)
    if cases.mixed:
        more = f" and {len(cases.mixed) - 1} more" if len(cases.mixed) > 1 else ""
        text = "tests that ask for different devices run in different processes"
        yield Notice(name="distribute", text=f"{cases.mixed[0]}{more}: {text}")
    for scope, seconds in cases.apart.items():
        text = f"{scope} takes {seconds:.0f} s in one process, and is taken apart"
        yield Notice(name="distribute", text=f'{text}; distribute = "file" keeps it whole')


def unused_gpus(unused: int, ran: int) -> Iterator[Notice]:
    """Yield that most tests wait for a GPU and do not touch it; nothing where they are few."""
    if unused >= UNUSED and unused > ran / 2:
        advice = "mark them gpu(count=0), or set default-gpus = 0"
        yield Notice(name="gpu", text=f"{unused} of {ran} tests never touch a GPU: {advice}")


def raw_output(message: Raw, worker: str) -> Output:
    """Return the event of a text that a process wrote past pytest's capture."""
    return Output(text=message.text, via=STREAMS[message.fd], fd=message.fd, worker=worker)
