"""What holds for the differences between any two sessions."""

from __future__ import annotations

import dataclasses
import re
from typing import get_args

from hypothesis import example, given
from hypothesis import strategies as st

from pytest_gpu_cluster.contract.record import branch_key
from pytest_gpu_cluster.report import delta
from pytest_gpu_cluster.report.model import (
    NOT_TESTS,
    Outcome,
    Problem,
    Report,
    ReportContext,
    Result,
)
from tests.unit.report.strategies import SLOW, TEXT

OUTCOMES: st.SearchStrategy[Outcome] = st.sampled_from(get_args(Outcome))
NODES = st.sampled_from([f"t.py::test_{letter}" for letter in "abcdef"])


@st.composite
def sessions(draw: st.DrawFn) -> Report:
    """Draw sessions of up to six tests, some of them spoilt by machines, each test at most once."""
    results = []
    for nodeid in draw(st.lists(NODES, min_size=1, unique=True)):
        outcome = draw(OUTCOMES)
        problem = Problem(
            when="call",
            failure_class=draw(st.sampled_from(["test", "test", "infrastructure"])),
            message="no",
            text="no",
        )
        results.append(
            Result(
                nodeid=nodeid,
                file="t.py",
                line=1,
                classname="t",
                name=nodeid[6:],
                outcome=outcome,
                problems=(problem,) if outcome in delta.BAD else (),
                duration_s=draw(st.floats(0, 100)),
                reruns=draw(st.integers(0, 1)),
            )
        )
    return Report(
        session=draw(st.sampled_from(["s-1", "s-2"])),
        context=ReportContext(
            suite="t", branch="main", commit=draw(st.sampled_from(["", "a", "b"]))
        ),
        verdict="failed" if any(result.problems for result in results) else "passed",
        collected=len(results) + draw(st.integers(0, 1)),
        results=tuple(results),
        selection=draw(st.sampled_from([(), ("-x",)])),
    )


@given(sessions(), sessions())
@SLOW
def test_a_difference_does_not_contradict_itself(now: Report, earlier: Report) -> None:
    """A test cannot be broken and mended, nor gone and slower.

    What machines did is in neither list.
    """
    baseline = delta.results_of(earlier)
    difference = delta.compare(now, baseline)
    if difference is None:
        assert baseline is None or now.session == earlier.session
        return
    results = {result.nodeid: result for result in now.results}
    before = {result.nodeid: result for result in earlier.results}
    spoilt = {
        result.nodeid
        for result in now.results
        if any(problem.failure_class in NOT_TESTS for problem in result.problems)
    }
    slower = {nodeid for nodeid, *_ in difference.slower}

    assert not set(difference.newly_failing) & set(difference.fixed)
    assert not set(difference.removed) & results.keys()
    assert not spoilt & {*difference.newly_failing, *difference.fixed, *difference.flaky, *slower}
    assert all(results[nodeid].outcome in delta.BAD for nodeid in difference.newly_failing)
    assert all(
        results[nodeid].outcome in delta.GOOD and before[nodeid].outcome in delta.BAD
        for nodeid in difference.fixed
    )
    assert not [
        nodeid
        for nodeid in difference.newly_failing
        if nodeid in before and before[nodeid].outcome in delta.BAD
    ]
    assert set(difference.removed) <= before.keys()
    assert not difference.removed or now.selection == earlier.selection
    assert slower <= results.keys() & before.keys()
    assert difference.empty == (
        not (
            difference.newly_failing
            or difference.fixed
            or difference.removed
            or difference.slower
            or difference.flaky
        )
    )


@given(sessions())
@SLOW
def test_the_same_results_once_more_are_no_difference(report: Report) -> None:
    """A comment with "changes" that there are not: nobody reads the next one.

    Only a rerun is told again.
    """
    report = dataclasses.replace(
        report, results=tuple(dataclasses.replace(result, reruns=0) for result in report.results)
    )
    difference = delta.compare(
        dataclasses.replace(report, session="s-later"), delta.results_of(report)
    )

    assert difference is None or difference.empty


@given(st.binary(max_size=60) | TEXT.map(lambda text: text.encode("utf-8", "replace")))
@example(b'{"v": 1, "session": "s", "commit": "", "branch": "b", "tests": {"a": ["passed", "x"]}}')
@SLOW
def test_any_bytes_where_a_baseline_should_be_are_as_none(stored: bytes) -> None:
    """A store is shared, and a file in it may be cut."""
    assert (
        delta.compare(
            Report(session="s", context=ReportContext(suite="t"), verdict="passed"), stored
        )
        is None
    )


BRANCHES = st.text(st.characters(codec="utf-8", exclude_characters="~"), min_size=1, max_size=20)


@given(
    BRANCHES,
    BRANCHES,
    st.sampled_from(["gpu-cluster", "nightly"]),
    st.sampled_from(["gpu-cluster", "nightly"]),
)
@example("feature/x", "feature%2Fx", "gpu-cluster", "gpu-cluster")
@example("a", "A", "gpu-cluster", "gpu-cluster")
@SLOW
def test_two_branches_have_two_keys(branch: str, other: str, suite: str, other_suite: str) -> None:
    """Else one branch would be told the differences from the other."""
    keys = {branch_key(branch, suite), branch_key(other, other_suite)}

    assert len(keys) == len({(branch, suite), (other, other_suite)})
    assert all(re.fullmatch(r"history/branches/[^/]+\.json", key) for key in keys)
    assert all(key.isascii() for key in keys)
