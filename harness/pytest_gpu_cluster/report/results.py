"""One test's `Result`, put together from the reports that pytest made of its phases."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from pytest_gpu_cluster.contract.codec import from_wire
from pytest_gpu_cluster.contract.failures import FailureClass
from pytest_gpu_cluster.contract.records import ReportData
from pytest_gpu_cluster.report.model import Outcome, Problem, Result
from pytest_gpu_cluster.report.texts import ReportTexts, plain_text

# The failure that pytest adds to a test for its failed subtests. It has no mark but its text.
SUBTESTS = re.compile(r"contains \d+ failed subtests?")


class ResultBuilder:
    """Adds reports to `base`, a test's result so far.

    `failure_class` is the class of the problems that failed reports add.
    """

    def __init__(self, base: Result, texts: ReportTexts, *, failure_class: FailureClass) -> None:
        self._base, self._texts, self._failure_class = base, texts, failure_class
        self._problems: list[Problem] = list(base.problems)
        self._outcome: Outcome = base.outcome
        self._reason = base.reason
        self._duration_s = base.duration_s
        self._reruns = base.reruns
        self._properties = base.properties
        self._sections: Iterable[tuple[str, object]] = ()

    def add(self, report: ReportData) -> None:
        """Add one report, whose sections and properties replace those of earlier ones."""
        self._duration_s += report.get("duration") or 0.0
        self._sections = from_wire(report.get("sections")) or self._sections
        properties = tuple(self._texts.properties(report.get("user_properties")))
        self._properties = properties or self._properties
        match report["outcome"]:
            case "failed":
                self._add_failure(report)
            case "rerun":
                self._reruns += 1
            case _ if "_subtest.context" in report:
                pass  # a subtest that was skipped or expected to fail does not decide its test
            case outcome if "wasxfail" in report:
                self._outcome = "xfailed" if outcome == "skipped" else "xpassed"
                self._reason = self._texts.clean(str(report["wasxfail"]))
            case "skipped":
                self._outcome = "skipped"
                self._reason = self._texts.skip_reason(report["longrepr"])

    def _add_failure(self, report: ReportData) -> None:
        if not self._only_counts_subtests(report):
            problem = self._texts.problem(report, self._failure_class, self._base.file)
            self._problems.append(problem)
        in_call = report["when"] == "call"
        self._outcome = "failed" if in_call or self._outcome == "failed" else "error"

    def _only_counts_subtests(self, report: ReportData) -> bool:
        """Return True for a failure that repeats the failed subtests, each a problem already."""
        if not any(problem.subtest for problem in self._problems):
            return False
        return SUBTESTS.fullmatch(plain_text(report["longrepr"]).strip()) is not None

    def result(self, *, attempts: int) -> Result:
        """Return the result after all reports that were added."""
        output = self._texts.output(self._sections) if self._problems else ""
        return replace(
            self._base,
            outcome=self._outcome,
            duration_s=self._duration_s,
            problems=tuple(self._problems),
            reason=self._reason,
            output=output or self._base.output,
            properties=self._properties,
            reruns=self._reruns,
            attempts=attempts,
        )
