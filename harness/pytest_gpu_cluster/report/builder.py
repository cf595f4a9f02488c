"""Build a `Report` of the events of a session, live or from the store, complete or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypedDict

from _pytest.junitxml import mangle_test_address

from pytest_gpu_cluster.contract.codec import Event
from pytest_gpu_cluster.contract.errors import EXIT_CODES
from pytest_gpu_cluster.contract.model import CLIENT_LOST
from pytest_gpu_cluster.report.model import (
    NOT_TESTS,
    Ending,
    Problem,
    Report,
    ReportContext,
    Result,
)
from pytest_gpu_cluster.report.results import ResultBuilder
from pytest_gpu_cluster.report.texts import (
    ReportTexts,
    SerializedReport,
    last_line,
    usage_error_line,
)

VERDICTS = {
    0: "passed",
    **{exit_code: failure_class for failure_class, exit_code in EXIT_CODES.items()},
}
NO_RESULT = f"{CLIENT_LOST} before this test had a result"


class CollectedItem(TypedDict):
    """A test as the event `collected` lists it."""

    nodeid: str
    location: tuple[str, int | None, str]  # file in the tree, line from 0, name


class Gpu(TypedDict):
    """A GPU as the event `node` lists it."""

    name: str


class Record(TypedDict, total=False):
    """One record of a test: a report of pytest, or another kind that the report does not need."""

    kind: str
    report: SerializedReport


@dataclass(frozen=True, kw_only=True)
class RemoteEnd:
    """The end of a session as its last writer on the cluster recorded it."""

    exit_code: int | None = None
    failure_class: str | None = None
    message: str = ""
    shouldstop: str | Literal[False] | None = None

    @classmethod
    def of(cls, event: Event) -> RemoteEnd:
        return cls(
            exit_code=event.get("exitstatus"),
            failure_class=event.get("failure_class"),
            message=event.get("message") or "",
            shouldstop=event.get("shouldstop"),
        )

    @property
    def stopped_for_lost_client(self) -> bool:
        return CLIENT_LOST in (self.message, self.shouldstop)


class ReportBuilder:
    """Takes events in the order of their journal, and returns a `Report` at any time.

    `request` is the session's `request.json`, which may grow until the first event. `mask` takes
    secrets out of a text. `prefix` is the path from the repository to the tree.
    """

    def __init__(
        self, request: Mapping[str, object], *, mask: Callable[[str], str], prefix: str = ""
    ) -> None:
        self._request = request
        self._texts = ReportTexts(mask, origin=str(request.get("origin", "")), prefix=prefix)
        self._items: Sequence[CollectedItem] | None = None  # None until the selection is complete
        self._index: dict[str, int] = {}  # of the last item with a node id
        self._results: dict[int, Result] = {}  # by index of the item
        self._files: dict[str, Result] = {}  # failed or skipped as a whole, by node id
        self._deselected = 0
        self._gpus: list[str] = []
        self._simulated = False
        self._cluster = ""
        self._times: tuple[float, float] | None = None  # of the first and the last event
        self._error = ""  # that ended pytest on the cluster
        self._cancelled = False
        self._end: RemoteEnd | None = None

    def add(self, event: Event) -> None:
        """Add one event; kinds that a report does not need are ignored."""
        if event.t:
            first, last = self._times or (event.t, event.t)
            self._times = min(first, event.t), max(last, event.t)
        match event.kind:
            case "hello":
                self._texts.map_paths(event["root"])
            case "node":
                self._add_node(event["gpus"], event["simulated"], event.get("cluster") or "")
            case "selection_restarted":
                self._restart_selection()
            case "collectreport":
                self._add_collect_report(event["report"])
            case "deselected":
                self._deselected += len(event["nodeids"])
            case "collected":
                self._add_items(event["items"])
            case "test_finished":
                self._add_result(
                    event.get("index"),
                    _reports(event["records"]),
                    failure_class=event.get("failure_class") or "test",
                    attempts=event.get("attempt", 0) + 1,
                )
            case "late":
                self._add_late(event["nodeid"], _reports(event["records"]))
            case "internal_error":
                self._add_error(last_line(self._text(event)))
            case "usage_error":
                self._add_error(usage_error_line(self._text(event)))
            case "interrupted":
                self._add_error(last_line(self._text(event)))
                by_tests = event.get("shouldfail") or event.get("shouldstop") or event.get("exit")
                self._cancelled = self._cancelled or not by_tests
            case "session_finished" if self._end is None or event.writer == "agent":
                # The agent's end takes precedence over that of a keeper which missed the agent.
                self._end = RemoteEnd.of(event)

    def _text(self, event: Event) -> str:
        return self._texts.clean(str(event.get("text", "")))

    def _add_error(self, line: str) -> None:
        """Keep the first error that ended pytest on the cluster."""
        self._error = self._error or line

    def _restart_selection(self) -> None:
        """Forget the files and tests that will be reported again."""
        self._files.clear()
        self._deselected = 0

    def _add_node(self, gpus: Iterable[Gpu], simulated: bool, cluster: str) -> None:
        self._gpus += (gpu["name"] for gpu in gpus)
        self._simulated = self._simulated or simulated
        self._cluster = cluster or self._cluster

    def _add_items(self, items: Sequence[CollectedItem]) -> None:
        self._items = items
        self._index = {item["nodeid"]: index for index, item in enumerate(items)}

    def _add_collect_report(self, report: SerializedReport) -> None:
        """Add a file that could not be collected, or was skipped as a whole."""
        if report["outcome"] not in ("failed", "skipped"):
            return
        nodeid = str(report["nodeid"])
        module = self._texts.clean(nodeid.removesuffix(".py").replace("/", ".")).strip(".")
        blank = Result(
            nodeid=self._texts.clean(nodeid),
            file=self._texts.file(nodeid.partition("::")[0]),
            line=0,
            classname="",
            name=module or "collection",
            outcome="passed",
        )
        result = ResultBuilder(blank, self._texts, failure_class="test")
        result.add({"when": "collect", "duration": 0.0, **report})
        self._files[nodeid] = result.result(attempts=1)

    def _add_result(
        self,
        index: int | None,
        reports: Iterable[SerializedReport],
        *,
        failure_class: str,
        attempts: int,
    ) -> None:
        """Add the result of a test; only the first result of a test counts."""
        items = self._items or ()
        if index is None or index in self._results or index >= len(items):
            return
        result = ResultBuilder(
            self._blank_result(items[index]), self._texts, failure_class=failure_class
        )
        for report in reports:
            result.add(report)
        self._results[index] = result.result(attempts=attempts)

    def _add_late(self, nodeid: str, reports: Iterable[SerializedReport]) -> None:
        """Add reports that came after the end of their test, such as of a module's fixture."""
        index = self._index.get(nodeid, -1)
        base = self._results.get(index)
        if base is None:
            return
        result = ResultBuilder(base, self._texts, failure_class="test")
        for report in reports:
            result.add(report)
        self._results[index] = result.result(attempts=base.attempts)

    # -- the report ------------------------------------------------------------------------------

    def report(self, context: ReportContext, ending: Ending | None = None) -> Report:
        """Return the report of a session with this ending; None stands for a running session."""
        results = [*self._files.values(), *(self._results[i] for i in sorted(self._results))]
        if ending is None:
            return self._report(context, "running", Ending(), results)
        if ending.exit_code is None:
            ending = self._ending_without_client(ending)
        if ending.failure_class is not None and not ending.cancelled:
            results += self._missing_results(ending.failure_class, ending.message)
        return self._report(context, self._verdict(ending, results), ending, results)

    def _report(
        self, context: ReportContext, verdict: str, ending: Ending, results: Iterable[Result]
    ) -> Report:
        request, clean = self._request, self._texts.clean
        first, last = self._times or (0.0, 0.0)
        return Report(
            session=str(request["session"]),
            suite=context.suite,
            verdict=verdict,
            message=clean(ending.message) or self._unexplained_end(ending.exit_code),
            remedy=clean(ending.remedy),
            exit_code=ending.exit_code,
            link=context.link,
            own_page=context.own_page,
            record=context.record,
            started=_number(request["asked_at"]),
            duration_s=last - first,
            collected=None if self._items is None else len(self._items),
            deselected=self._deselected,
            results=tuple(results),
            gpus=tuple(self._gpus),
            simulated=self._simulated,
            cluster=self._cluster,
            provider=str(request.get("provider", "")),
            environment=_environment(request),
            branch=context.branch,
            commit=context.commit,
            selection=tuple(clean(argument) for argument in _strings(request.get("args"))),
        )

    def _verdict(self, ending: Ending, results: Iterable[Result]) -> str:
        if ending.cancelled or self._cancelled:
            return "cancelled"
        if ending.exit_code is not None:
            return VERDICTS.get(ending.exit_code, "failed")
        tests_failed = any(problem.from_tests for result in results for problem in result.problems)
        return "failed" if tests_failed else str(ending.failure_class)

    def _ending_without_client(self, ending: Ending) -> Ending:
        """Return the ending of a session whose client was lost, by its end on the cluster.

        Tests without a result are a failure of the infrastructure, unless the tests themselves
        stopped the session.
        """
        end = self._end or RemoteEnd()
        if end.failure_class in NOT_TESTS:
            message = end.message or ending.message
            return replace(ending, exit_code=None, failure_class=end.failure_class, message=message)
        missing = len(self._items or ()) - len(self._results)
        incomplete = missing and (end.exit_code == 0 or end.stopped_for_lost_client)
        if end.exit_code is None or incomplete:
            return replace(
                ending,
                exit_code=None,
                failure_class=ending.failure_class or "infrastructure",
                message=ending.message or f"{CLIENT_LOST}; {missing} tests have no result",
            )
        message = f"{CLIENT_LOST}; this is how the tests ended on the cluster"
        return replace(ending, exit_code=end.exit_code, failure_class=None, message=message)

    def _missing_results(self, failure_class: str, message: str) -> Iterable[Result]:
        """Yield an error for each test without a result."""
        text = f"{failure_class}: {self._texts.clean(message) or NO_RESULT}"
        problem = Problem(
            when="setup", failure_class=failure_class, message=text.partition("\n")[0], text=text
        )
        for index, item in enumerate(self._items or ()):
            if index not in self._results:
                yield replace(self._blank_result(item), outcome="error", problems=(problem,))

    def _unexplained_end(self, exit_code: int | None) -> str:
        """Return the reason of an end that no test and no client explains."""
        if self._error and exit_code != 0:
            return self._error
        return "no tests were collected" if exit_code == 5 else ""

    def _blank_result(self, item: CollectedItem) -> Result:
        """Return the result of a test before its first report."""
        file, line, _ = item["location"]
        *parents, name = mangle_test_address(item["nodeid"])
        return Result(
            nodeid=self._texts.clean(item["nodeid"]),
            file=self._texts.file(file),
            line=line + 1 if line is not None else 0,
            classname=self._texts.clean(".".join(parents)),
            name=self._texts.clean(name),
            outcome="passed",
        )


def _reports(records: Iterable[Record]) -> Iterable[SerializedReport]:
    return (record["report"] for record in records if record["kind"] == "report")


def _number(value: object) -> float:
    return value if isinstance(value, int | float) else 0.0


def _strings(value: object) -> Iterable[str]:
    return (str(item) for item in value) if isinstance(value, list | tuple) else ()


def _environment(request: Mapping[str, object]) -> str:
    """Return the digest of the environment; "" before the cluster's shape is known."""
    shape = request.get("shape")
    return str(shape.get("environment", "")) if isinstance(shape, dict) else ""
