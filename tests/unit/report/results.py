"""Results and reports by hand."""

from __future__ import annotations

from typing import Any

from pytest_gpu_cluster.report import delta
from pytest_gpu_cluster.report.model import Problem, Report, Result


def result(nodeid: str, outcome: Any = "passed", **fields: Any) -> Result:
    """Return a test with this outcome; a bad one has a problem, by default of the test."""
    path, _, name = nodeid.partition("::")
    problem = Problem(
        when="call" if outcome == "failed" else "setup",
        failure_class=fields.pop("failure_class", "test"),
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
        **fields,
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


def report_of(*results: Result, **fields: Any) -> Report:
    defaults = {
        "session": "s-now",
        "suite": "gpu-cluster",
        "verdict": "failed" if any(result.problems for result in results) else "passed",
        "collected": len(results),
        "results": results,
        "branch": "main",
        "commit": "b" * 40,
    }
    return Report(**{**defaults, **fields})
