"""Compare a report with the last session of a branch, whose results the store keeps for it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Literal

from pytest_gpu_cluster.contract.bounded import DOCUMENT_BYTES, parse_json
from pytest_gpu_cluster.contract.errors import HarnessError
from pytest_gpu_cluster.contract.fields import JsonValue, Noun
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.record import branch_key
from pytest_gpu_cluster.contract.request import CI
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.report.model import Delta, Report, Result

SLOWER_TIMES = 1.5
SLOWER_MORE_S = 1.0
GOOD = ("passed", "xfailed", "xpassed")
BAD = ("failed", "error")


@dataclass(frozen=True, kw_only=True)
class Baseline(Noun):
    """The results of an earlier session as `results_of` wrote them."""

    v: Literal[1]
    branch: str
    session: str
    commit: str
    selection: JsonValue = None
    tests: Mapping[str, tuple[str, float]]  # outcome and seconds by node id

    def outcome(self, nodeid: str) -> str | None:
        return self.tests[nodeid][0] if nodeid in self.tests else None


def results_of(report: Report) -> bytes | None:
    """Return the results that a later report is compared with.

    None for a report that does not cover its tests as a whole.
    """
    complete = (
        report.verdict in ("passed", "failed", "teardown")
        and report.results
        and all(result.from_tests for result in report.results)
        and _is_complete(report)
    )
    if not complete:
        return None
    body = {
        "v": 1,
        "session": report.session,
        "commit": report.context.commit,
        "branch": report.context.branch,
        "selection": list(report.selection),
        "tests": {
            result.nodeid: [result.outcome, round(result.duration_s, 3)]
            for result in report.results
        },
    }
    return json.dumps(body, separators=(",", ":")).encode()


def compare(report: Report, before: bytes | None) -> Delta | None:
    """Return the differences from what `results_of` returned for an earlier report.

    None without an earlier one, for one that cannot be read, and for one of the same session.
    """
    baseline = _parse(before)
    if baseline is None or baseline.session == report.session:
        return None
    results = {result.nodeid: result for result in report.results if result.from_tests}
    return Delta(
        branch=baseline.branch,
        session=baseline.session,
        commit=baseline.commit,
        newly_failing=tuple(
            nodeid
            for nodeid, result in results.items()
            if result.outcome in BAD and baseline.outcome(nodeid) not in BAD
        ),
        fixed=tuple(
            nodeid
            for nodeid, result in results.items()
            if result.outcome in GOOD and baseline.outcome(nodeid) in BAD
        ),
        removed=_removed(report, baseline, results),
        slower=_slower(baseline, results),
        flaky=_flaky(report, baseline, results),
    )


def against_branch(report: Report, store: Store, ci: CI | None, suite: str) -> Delta | None:
    """Return the differences from the last session of the target branch, else of its own."""
    if ci is None or not (branch := ci.target or ci.branch):
        return None
    try:
        key = branch_key(branch, suite)
        return compare(report, store.get(key, limit_bytes=DOCUMENT_BYTES))
    except HarnessError:  # a store that is away is the session's own failure, and told elsewhere
        return None


def _parse(data: bytes | None) -> Baseline | None:
    """Return a stored baseline; None for one that is absent, broken, or of another version."""
    try:
        return Baseline.from_json(parse_json(data)) if data else None
    except ValueError:
        return None


def _removed(report: Report, baseline: Baseline, results: Mapping[str, Result]) -> tuple[str, ...]:
    """Return the tests of the baseline that are gone.

    Only a whole run of the same selection can miss a test.
    """
    same_selection = list(report.selection) == baseline.selection
    from_tests = all(result.from_tests for result in report.results)
    if not (same_selection and from_tests and _is_complete(report)):
        return ()
    hidden = _hidden_prefixes(report.results)
    missing = baseline.tests.keys() - results.keys()
    return tuple(sorted(nodeid for nodeid in missing if not nodeid.startswith(hidden)))


def _hidden_prefixes(results: Iterable[Result]) -> tuple[str, ...]:
    """Return the beginnings of node ids below files and directories that were not collected."""
    nodeids = [result.nodeid for result in results if not result.classname]
    return tuple(
        "" if nodeid in ("", ".") else f"{nodeid}{separator}"
        for nodeid in nodeids
        for separator in ("::", "/")
    )


def _slower(
    baseline: Baseline, results: Mapping[str, Result]
) -> tuple[tuple[str, float, float], ...]:
    """Return node id, seconds before and seconds now of slower tests, most seconds first."""
    timed = [
        (nodeid, baseline.tests[nodeid][1], result.duration_s)
        for nodeid, result in results.items()
        if nodeid in baseline.tests
    ]
    slower = [test for test in timed if _is_slower(before_s=test[1], now_s=test[2])]
    return tuple(sorted(slower, key=lambda test: test[1] - test[2]))


def _is_slower(*, before_s: float, now_s: float) -> bool:
    return now_s > SLOWER_TIMES * before_s and now_s - before_s > SLOWER_MORE_S


def _flaky(report: Report, baseline: Baseline, results: Mapping[str, Result]) -> tuple[str, ...]:
    """Return tests that passed in a rerun, or that ended otherwise on the same commit."""
    same_commit = bool(baseline.commit) and baseline.commit == report.context.commit
    return tuple(
        nodeid
        for nodeid, result in results.items()
        if (result.reruns and result.outcome in GOOD)
        or (same_commit and _changed(baseline.outcome(nodeid), result.outcome))
    )


def _changed(before: str | None, now: str) -> bool:
    """Return True for a test that failed and is good now, or the reverse; a skip is neither."""
    if before is None or now not in (*GOOD, *BAD):
        return False
    return (before in BAD) != (now in BAD)


def _is_complete(report: Report) -> bool:
    """Return True if every collected test has a result; a file has no class name."""
    tests = sum(bool(result.classname) for result in report.results)
    return report.collected is not None and tests >= report.collected
