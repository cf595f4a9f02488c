"""The nouns of a report: frozen, keyword-only, units in the names. No text holds a secret."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal
from urllib.parse import quote

from pytest_gpu_cluster.contract.failures import FailureClass
from pytest_gpu_cluster.contract.fields import Noun
from pytest_gpu_cluster.contract.frozen import dataclass

# Explanations of the failure classes that are never the tests' fault. Each is also a verdict.
NOT_TESTS: Mapping[str, str] = {
    FailureClass.INFRASTRUCTURE: "a machine, Ray, the agent or the store failed",
    FailureClass.ENVIRONMENT: "the environment of the cluster could not be built",
    FailureClass.CAPACITY: "no machine could be had",
    FailureClass.LIMIT: "the session's limit was reached",
    FailureClass.TEARDOWN: "the results stand, but something of the cluster may still be running",
}
When = Literal["collect", "setup", "call", "teardown"]
Outcome = Literal["passed", "failed", "error", "skipped", "xfailed", "xpassed"]
COUNTED: tuple[Outcome, ...] = ("failed", "error", "passed", "skipped", "xfailed", "xpassed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A failure in one phase of a test, or of the machine that ran it."""

    when: When
    failure_class: str  # test, crash, timeout, infrastructure, limit …
    message: str  # one line
    text: str  # traceback
    line: int = 0  # 1-based, in the test's own file; 0 for a failure in another file
    subtest: str = ""  # name of the subtest that failed

    @property
    def from_tests(self) -> bool:
        """True for a failure of the tests, False for one of NOT_TESTS."""
        return self.failure_class not in NOT_TESTS


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The result of one test, or of one file that could not be collected."""

    nodeid: str
    file: str  # relative to the repository; "" if unknown
    line: int  # 1-based; 0 if unknown
    classname: str  # "" for a file
    name: str
    outcome: Outcome
    duration_s: float = 0.0
    problems: tuple[Problem, ...] = ()
    reason: str = ""  # of a skip or an expected failure
    output: str = ""  # captured, of a test with a problem
    properties: tuple[tuple[str, str], ...] = ()
    reruns: int = 0  # failures before this outcome
    attempts: int = 1  # on different machines

    @property
    def from_tests(self) -> bool:
        """True unless a problem of this result is one of NOT_TESTS."""
        return all(problem.from_tests for problem in self.problems)


@dataclass(frozen=True, kw_only=True)
class Delta(Noun):
    """The differences from the last session of a branch."""

    branch: str
    session: str
    commit: str = ""
    newly_failing: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    slower: tuple[tuple[str, float, float], ...] = ()  # node id, seconds before, seconds now
    flaky: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.newly_failing or self.fixed or self.removed or self.slower or self.flaky)


@dataclass(frozen=True, kw_only=True)
class ReportContext:
    """The part of a report that is in no event: its name, its links, and the tested code."""

    suite: str
    link: str = ""  # a page that others can open; "" if there is none
    own_page: bool = False  # the link is this session's page, which has an anchor for each test
    record: str = ""  # URL of the session in the store
    branch: str = ""
    commit: str = ""


@dataclass(frozen=True, kw_only=True)
class Machines:
    """The machines on which a session ran, as far as they are known."""

    gpus: tuple[str, ...] = ()  # names, one for each
    simulated: bool = False
    cluster: str = ""
    provider: str = ""
    environment: str = ""  # digest
    price_usd: float | None = None  # None: unknown, which is not 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """A session as people read of it: at its start, while it runs, and at its end."""

    session: str
    context: ReportContext
    verdict: str  # running, passed, failed, cancelled, request, or one of NOT_TESTS
    message: str = ""  # the reason, where it was not the tests
    remedy: str = ""
    exit_code: int | None = None
    started: float = 0.0  # unix seconds
    duration_s: float = 0.0
    collected: int | None = None  # None until the selection is complete
    deselected: int = 0
    results: tuple[Result, ...] = ()
    machines: Machines = Machines()
    selection: tuple[str, ...] = ()  # the arguments of pytest
    delta: Delta | None = None
    troubles: tuple[str, ...] = ()  # what could not be reported, and the remedy

    @property
    def counts(self) -> dict[str, int]:
        """Number of tests for each outcome; outcomes that did not occur are absent."""
        counts: dict[str, int] = {}
        for result in self.results:
            counts[result.outcome] = counts.get(result.outcome, 0) + 1
        return {outcome: counts[outcome] for outcome in COUNTED if outcome in counts}

    def link_to(self, result: Result) -> str:
        """Return the link to one test; "" when there is no link."""
        if not self.context.own_page:
            return self.context.link
        return f"{self.context.link}#{quote(result.nodeid, safe='', errors='surrogatepass')}"

    @property
    def bad(self) -> tuple[Result, ...]:
        """Results with a problem: failures of the tests first, then those of machines."""
        bad = [result for result in self.results if result.problems]
        return tuple(sorted(bad, key=lambda result: not result.problems[0].from_tests))
