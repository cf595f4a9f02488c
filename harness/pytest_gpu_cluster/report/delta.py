"""What is different from the last session of a branch, whose results `history/branches/<branch>.json` keeps."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from pytest_gpu_cluster.contract.model import NOT_TESTS, Delta, Report

SLOWER = (1.5, 1.0)  # times, and seconds more
GOOD = ("passed", "xfailed", "xpassed")
BAD = ("failed", "error")


def key(branch: str, suite: str) -> str:
    """Where the store keeps a branch's last results. `~`, which no branch's name has, sets another suite apart.

    >>> key("feature/x", "gpu-cluster"), key("main", "nightly")
    ('history/branches/feature%2Fx.json', 'history/branches/main~nightly.json')
    """
    other = "" if suite == "gpu-cluster" else f"~{suite}"
    return f"history/branches/{quote(branch, safe='', errors='surrogatepass')}{other}.json"


def results_of(report: Report) -> bytes | None:
    """The report as a later one compares itself with; None when it says nothing of its tests as a whole."""
    own = all(
        problem.failure_class not in NOT_TESTS
        for result in report.results
        for problem in result.problems
    )
    if (
        report.verdict not in ("passed", "failed", "teardown")
        or not own
        or not report.results
        or not _whole(report)
    ):
        return None
    tests = {
        result.nodeid: [result.outcome, round(result.duration_s, 3)] for result in report.results
    }
    said = {
        "v": 1,
        "session": report.session,
        "commit": report.commit,
        "branch": report.branch,
        "selection": list(report.selection),
        "tests": tests,
    }
    return json.dumps(said, separators=(",", ":")).encode()


def compare(report: Report, before: bytes | None) -> Delta | None:
    """`report` against what `results_of` gave for an earlier one; None without one, or when it is the same session."""
    try:
        old: dict[str, Any] = json.loads(before) if before else {}
        if old["v"] != 1:
            return None
        known = {
            nodeid: (str(outcome), float(seconds))
            for nodeid, (outcome, seconds) in old["tests"].items()
        }
        branch, session, commit = str(old["branch"]), str(old["session"]), str(old["commit"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # nothing there, or of another version: as if there were none
    if session == report.session:
        return None
    own = [
        r
        for r in report.results
        if all(problem.failure_class not in NOT_TESTS for problem in r.problems)
    ]
    now = {result.nodeid: result for result in own}
    failing = {n for n, r in now.items() if r.outcome in BAD}
    was = {n: known[n][0] for n in now if n in known}
    flaky = {n for n, r in now.items() if r.reruns and r.outcome in GOOD}
    if commit and commit == report.commit:  # the same code, another outcome
        flaky |= {
            n
            for n, outcome in was.items()
            if (outcome in BAD) != (n in failing) and now[n].outcome in (*GOOD, *BAD)
        }
    whole = (
        _whole(report)
        and len(own) == len(report.results)
        and list(report.selection) == old.get("selection")
    )
    unseen = [
        result.nodeid for result in own if not result.classname
    ]  # files and directories whose tests nobody could see
    broken = tuple(
        "" if nodeid in ("", ".") else f"{nodeid}{sign}"
        for nodeid in unseen
        for sign in ("::", "/")
    )
    slower = [
        (n, known[n][1], r.duration_s)
        for n, r in now.items()
        if n in known and _slower(known[n][1], r.duration_s)
    ]
    return Delta(
        branch=branch,
        session=session,
        commit=commit,
        newly_failing=tuple(n for n in now if n in failing and was.get(n, "passed") not in BAD),
        fixed=tuple(n for n, r in now.items() if r.outcome in GOOD and was.get(n) in BAD),
        removed=tuple(sorted(n for n in known.keys() - now.keys() if not n.startswith(broken)))
        if whole
        else (),
        slower=tuple(sorted(slower, key=lambda each: each[1] - each[2])),
        flaky=tuple(n for n in now if n in flaky),
    )


def _whole(report: Report) -> bool:
    """Whether every test that was collected has a result; a file has no class name."""
    return (
        report.collected is not None
        and sum(bool(result.classname) for result in report.results) >= report.collected
    )


def _slower(before_s: float, now_s: float) -> bool:
    times, more_s = SLOWER
    return now_s > times * before_s and now_s - before_s > more_s
