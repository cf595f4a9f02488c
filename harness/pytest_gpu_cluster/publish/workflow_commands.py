"""Commands that GitHub's runner reads from the output of a step.

Limits: docs.github.com, workflow commands.
"""

from __future__ import annotations

from collections.abc import Iterator

from pytest_gpu_cluster.report import render
from pytest_gpu_cluster.report.model import NOT_TESTS, Report

MAX_FAILURES = 9  # the runner shows 10 errors of a step; one is reserved for what was no test's


def command(kind: str, message: str, **properties: str) -> str:
    """Return one command, escaped as the runner unescapes it.

    >>> command("error", "50% of\\nit", file="a,b.py", title="x::y")
    '::error file=a%2Cb.py,title=x%3A%3Ay::50%25 of%0Ait'
    """
    pairs = ",".join(
        f"{name}={_escape(value).replace(':', '%3A').replace(',', '%2C')}"
        for name, value in properties.items()
    )
    return f"::{kind}{f' {pairs}' if pairs else ''}::{_escape(message)}"


def commands(report: Report, context: str, *, annotate: bool) -> Iterator[str]:
    """Yield the commands for a report; `annotate`: with an annotation for each failed test."""
    failures = [
        result for result in report.bad if result.problems[0].failure_class not in NOT_TESTS
    ]
    more = len(failures) - MAX_FAILURES if annotate else 0
    hidden = f"; {more} more failures have no annotation" if more > 0 else ""
    yield command(
        "notice",
        f"{render.headline(report)}{hidden} {report.context.link}".strip(),
        title=f"{context}: session {report.session}",
    )
    if report.verdict in NOT_TESTS:
        message = report.message or report.verdict
        if report.remedy:
            message = f"{report.message}\nremedy: {report.remedy}"
        yield command("error", message, title=f"Not your tests: {report.verdict}")
    for result in failures[:MAX_FAILURES] if annotate else ():
        problem = result.problems[0]
        line = str(problem.line or result.line or 1)
        place = {"file": result.file, "line": line} if result.file else {}
        message = f"{problem.message}\n{render.session_line(report)}"
        yield command("error", message, title=result.nodeid, **place)


def _escape(text: str) -> str:
    plain = render.plain(text.replace("\r\n", "\n"))
    return plain.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
