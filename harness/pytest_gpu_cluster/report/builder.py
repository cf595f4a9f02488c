"""Build a `Report` of the events of a session, live or from the store, complete or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from _pytest.junitxml import mangle_test_address

from pytest_gpu_cluster.contract.events import (
    Collected,
    CollectorFinished,
    Deselected,
    Event,
    Hello,
    InternalError,
    Interrupted,
    LateRecords,
    Requested,
    SelectionRestarted,
    SessionFinished,
    TestFinished,
    UsageError,
)
from pytest_gpu_cluster.contract.failures import NOT_TESTS, FailureClass, StopReason
from pytest_gpu_cluster.contract.record import Ending
from pytest_gpu_cluster.contract.records import ItemRow, ReportData, TestRecord
from pytest_gpu_cluster.contract.request import SessionRequest
from pytest_gpu_cluster.report.facts import SessionFacts
from pytest_gpu_cluster.report.model import Machines, Problem, Report, ReportContext, Result
from pytest_gpu_cluster.report.results import ResultBuilder
from pytest_gpu_cluster.report.texts import ReportTexts, last_line, usage_error_line

VERDICTS = {
    0: "passed",
    **{each.exit_code: each for each in (FailureClass.REQUEST, *NOT_TESTS)},
}
CLIENT_LOST = "the client was lost"
NO_RESULT = f"{CLIENT_LOST} before this test had a result"


class ReportBuilder:
    """Takes events in the order of their journal, and returns a `Report` at any time.

    `facts` takes the same events, before this. `mask` takes secrets out of a text.
    """

    def __init__(
        self, request: SessionRequest, facts: SessionFacts, *, mask: Callable[[str], str]
    ) -> None:
        self._request, self._facts = request, facts
        self._texts = ReportTexts(mask, origin=request.origin, prefix=request.prefix)
        self._items: Sequence[ItemRow] | None = None  # None until the selection is complete
        self._index: dict[str, int] = {}  # of the last item with a node id
        self._results: dict[int, Result] = {}  # by index of the item
        self._files: dict[str, Result] = {}  # failed or skipped as a whole, by node id
        self._deselected = 0
        self._times: tuple[float, float] | None = None  # of the first and the last event
        self._error = ""  # that ended pytest on the cluster
        self._cancelled = False

    def add(self, event: Event) -> None:
        """Add one event; kinds that a report does not need are ignored."""
        if event.t:
            first, last = self._times or (event.t, event.t)
            self._times = min(first, event.t), max(last, event.t)
        match event:
            case TestFinished():
                self._add_result(event)
            case LateRecords():
                self._add_late(event.nodeid, _reports(event.records))
            case Requested():
                self._request = replace(event.request, session=self._request.session)
            case Hello():
                self._texts.map_paths(event.root)
            case SelectionRestarted():
                self._restart_selection()
            case CollectorFinished():
                self._add_collect_report(event.report)
            case Deselected():
                self._deselected += len(event.nodeids)
            case Collected():
                self._add_items(event.items)
            case InternalError():
                self._add_error(last_line(self._texts.clean(event.text)))
            case UsageError():
                self._add_error(usage_error_line(self._texts.clean(event.text)))
            case Interrupted():
                self._add_error(last_line(self._texts.clean(event.text)))
                by_tests = event.shouldfail or event.shouldstop or event.exit
                self._cancelled = self._cancelled or not by_tests

    def _add_error(self, line: str) -> None:
        """Keep the first error that ended pytest on the cluster."""
        self._error = self._error or line

    def _restart_selection(self) -> None:
        """Forget the files and tests that will be reported again."""
        self._files.clear()
        self._deselected = 0

    def _add_items(self, items: Sequence[ItemRow]) -> None:
        self._items = items
        self._index = {item["nodeid"]: index for index, item in enumerate(items)}

    def _add_collect_report(self, report: ReportData) -> None:
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
        result = ResultBuilder(blank, self._texts, failure_class=FailureClass.TEST)
        result.add({**report, "when": "collect"})
        self._files[nodeid] = result.result(attempts=1)

    def _add_result(self, event: TestFinished) -> None:
        """Add the result of a test; only the first result of a test counts."""
        items, index = self._items or (), event.index
        if index is None or index in self._results or index >= len(items):
            return
        failure_class = event.failure_class or FailureClass.TEST
        blank = self._blank_result(items[index])
        result = ResultBuilder(blank, self._texts, failure_class=failure_class)
        for report in _reports(event.records):
            result.add(report)
        self._results[index] = result.result(attempts=event.attempt + 1)

    def _add_late(self, nodeid: str, reports: Iterable[ReportData]) -> None:
        """Add reports that came after the end of their test, such as of a module's fixture."""
        index = self._index.get(nodeid, -1)
        base = self._results.get(index)
        if base is None:
            return
        result = ResultBuilder(base, self._texts, failure_class=FailureClass.TEST)
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
            session=request.session,
            context=context,
            verdict=verdict,
            message=clean(ending.message) or self._unexplained_end(ending.exit_code),
            remedy=clean(ending.remedy),
            exit_code=ending.exit_code,
            started=request.asked_at,
            duration_s=last - first,
            collected=None if self._items is None else len(self._items),
            deselected=self._deselected,
            results=tuple(results),
            machines=Machines(
                gpus=tuple(self._facts.gpus),
                simulated=self._facts.simulated,
                cluster=self._facts.cluster,
                provider=request.provider,
                environment=request.shape.environment if request.shape is not None else "",
            ),
            selection=tuple(clean(argument) for argument in request.args),
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
        end = self._facts.ended or SessionFinished()
        if end.failure_class is not None and end.failure_class.not_of_tests:
            message = end.message or ending.message
            return replace(ending, exit_code=None, failure_class=end.failure_class, message=message)
        missing = len(self._items or ()) - len(self._results)
        stopped = end.stop is StopReason.CLIENT_LOST
        if end.pytest_status is None or (missing and (end.pytest_status == 0 or stopped)):
            return replace(
                ending,
                exit_code=None,
                failure_class=ending.failure_class or FailureClass.INFRASTRUCTURE,
                message=ending.message or f"{CLIENT_LOST}; {missing} tests have no result",
            )
        message = f"{CLIENT_LOST}; this is how the tests ended on the cluster"
        return replace(ending, exit_code=end.pytest_status, failure_class=None, message=message)

    def _missing_results(self, failure_class: FailureClass, message: str) -> Iterable[Result]:
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

    def _blank_result(self, item: ItemRow) -> Result:
        """Return the result of a test before its first report."""
        file, line, _ = item["location"]
        number = line + 1 if isinstance(line, int) else 0
        *parents, name = mangle_test_address(item["nodeid"])
        return Result(
            nodeid=self._texts.clean(item["nodeid"]),
            file=self._texts.file(str(file)),
            line=number,
            classname=self._texts.clean(".".join(parents)),
            name=self._texts.clean(name),
            outcome="passed",
        )


def _reports(records: Iterable[TestRecord]) -> Iterator[ReportData]:
    return (record["report"] for record in records if record["kind"] == "report")
