"""Results and reports by hand."""

from __future__ import annotations

from typing import TypedDict, Unpack

from pytest_gpu_cluster.report import delta
from pytest_gpu_cluster.report.model import Delta, Outcome, Problem, Report, ReportContext, Result


class ReportFields(TypedDict, total=False):
    """Fields of a report that a test may choose."""

    session: str
    verdict: str
    collected: int | None
    selection: tuple[str, ...]
    delta: Delta


def result(
    nodeid: str,
    outcome: Outcome = "passed",
    *,
    failure_class: str = "test",
    duration_s: float = 0.0,
    reruns: int = 0,
) -> Result:
    """Return a test with this outcome; a bad one has a problem, by default of the test."""
    path, _, name = nodeid.partition("::")
    problem = Problem(
        when="call" if outcome == "failed" else "setup",
        failure_class=failure_class,
        message="no",
        text="no",
    )
    return Result(
        nodeid=nodeid,
        file=path,
        line=1,
        classname=path.removesuffix(".py").replace("/", "."),
        name=name,
        outcome=outcome,
        problems=(problem,) if outcome in delta.BAD else (),
        duration_s=duration_s,
        reruns=reruns,
    )


def file_error(nodeid: str, *, file: str, name: str) -> Result:
    """Return a file or directory that could not be collected."""
    problem = Problem(
        when="collect", failure_class="test", message="ImportError", text="ImportError"
    )
    return Result(
        nodeid=nodeid,
        file=file,
        line=0,
        classname="",
        name=name,
        outcome="error",
        problems=(problem,),
    )


def report_of(*results: Result, commit: str = "b" * 40, **fields: Unpack[ReportFields]) -> Report:
    defaults: ReportFields = {
        "session": "s-now",
        "verdict": "failed" if any(result.problems for result in results) else "passed",
        "collected": len(results),
    }
    context = ReportContext(suite="gpu-cluster", branch="main", commit=commit)
    chosen: ReportFields = {**defaults, **fields}
    return Report(context=context, results=results, **chosen)
