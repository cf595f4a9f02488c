"""Bodies of Bitbucket's Code Insights: a report, and an annotation for each test with a problem.

Limits and shapes: developer.atlassian.com/cloud/bitbucket/rest, the group reports.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

from pytest_gpu_cluster.publish.exchange import JsonObject, JsonValue
from pytest_gpu_cluster.report import render
from pytest_gpu_cluster.report.model import NOT_TESTS, Report, Result

TITLE_CHARS, DETAILS_CHARS = 450, 2_000
SUMMARY_CHARS = 450
MAX_FIGURES = 10
MAX_ANNOTATIONS = 1_000
RESULTS = {"running": "PENDING", "passed": "PASSED"}


def title(report: Report, key: str) -> str:
    """Return the title of report and status; the first suite of a project needs no name."""
    return "GPU tests" if key == "gpu-cluster" else f"GPU tests: {report.context.suite}"


def report_body(report: Report, key: str) -> JsonObject:
    """Return the report. `key` is its id at a commit."""
    body: dict[str, JsonValue] = {
        "title": title(report, key)[:TITLE_CHARS],
        "details": "\n".join(_lines(report))[:DETAILS_CHARS],
        "external_id": key,
        "reporter": "pytest-gpu-cluster",
        "report_type": "TEST",
        "result": RESULTS.get(report.verdict, "FAILED"),
        "data": list(_figures(report))[:MAX_FIGURES],
    }
    return body | ({"link": report.context.link} if report.context.link else {})


def _lines(report: Report) -> Iterator[str]:
    yield render.headline(report)
    if report.remedy:
        yield f"Remedy: {render.one_line(report.remedy)}"
    if (delta := report.delta) is not None:
        yield (
            f"Against {render.one_line(delta.branch)}: {len(delta.newly_failing)} newly failing, "
            f"{len(delta.fixed)} fixed, {len(delta.removed)} removed."
        )
    if report.machines.simulated:
        yield "The GPUs were SIMULATED."
    if len(report.bad) > MAX_ANNOTATIONS:
        yield (
            f"{MAX_ANNOTATIONS} of {len(report.bad)} failures are annotated; "
            "the JUnit file has all of them."
        )


def _figure(title: str, kind: str, value: JsonValue) -> JsonObject:
    return {"title": title, "type": kind, "value": value}


def _figures(report: Report) -> Iterator[JsonObject]:
    """Yield the figures in the order of their worth: Bitbucket takes `MAX_FIGURES`."""
    if report.context.link:
        yield _figure("Session", "LINK", {"text": report.session, "href": report.context.link})
    if counts := report.counts:
        passed = counts.get("passed", 0) + counts.get("xpassed", 0)
        skipped = counts.get("skipped", 0) + counts.get("xfailed", 0)
        yield _figure("Passed", "NUMBER", passed)
        yield _figure("Failed", "NUMBER", counts.get("failed", 0))
        yield _figure("Errors", "NUMBER", counts.get("error", 0))
        yield _figure("Skipped", "NUMBER", skipped)
    if report.duration_s:
        yield _figure("Duration", "DURATION", round(report.duration_s * 1000))
    if report.machines.gpus:
        names = ", ".join(
            f"{count} x {render.one_line(name)}"
            for name, count in Counter(report.machines.gpus).items()
        )
        yield _figure("GPUs", "TEXT", names)
    if report.machines.price_usd is not None:
        yield _figure("Cost", "TEXT", f"{report.machines.price_usd:.2f} USD")
    if report.delta is not None:
        yield _figure("Newly failing", "NUMBER", len(report.delta.newly_failing))
        yield _figure("Fixed", "NUMBER", len(report.delta.fixed))


def annotation_bodies(report: Report, key: str) -> dict[str, JsonObject]:
    """Return the annotations by id: one for each test with a problem, the tests' own first."""
    bodies = (_annotation(result, report, key) for result in report.bad[:MAX_ANNOTATIONS])
    return {str(body["external_id"]): body for body in bodies}


def _annotation(result: Result, report: Report, key: str) -> JsonObject:
    problem = result.problems[0]
    is_test = problem.failure_class not in NOT_TESTS
    message = render.one_line(problem.message) or result.outcome
    prefix = "" if is_test else "not your test: "
    body: dict[str, JsonValue] = {
        "external_id": f"{key}-{hashlib.sha256(result.nodeid.encode()).hexdigest()[:32]}",
        "annotation_type": "BUG",
        "summary": f"{prefix}{render.one_line(result.name)}: {message}"[:SUMMARY_CHARS],
        "details": _details(result, report),
        "result": "FAILED" if is_test else "IGNORED",
        "severity": "HIGH" if is_test else "LOW",
    }
    if result.file:
        body["path"] = result.file
        if line := problem.line or result.line:
            body["line"] = line
    if link := report.link_to(result):
        body["link"] = link
    return body


def _details(result: Result, report: Report) -> str:
    """Return session, node id and the end of the problem's text, which names the error."""
    head = f"{render.session_line(report)}\n{result.nodeid[: DETAILS_CHARS // 2]}\n\n"
    text = render.plain(render.problems_text(result))
    room = DETAILS_CHARS - len(head)
    if len(text) > room:
        text = f"…{text[len(text) - max(0, room - 1) :]}"
    return (head + text)[:DETAILS_CHARS]


def no_longer_failing(annotation: JsonObject) -> JsonObject:
    """Return the annotation of an earlier session as one of a test that passes now."""
    names = ("external_id", "annotation_type", "path", "line")
    return {name: annotation[name] for name in names if annotation.get(name)} | {
        "summary": f"no longer: {annotation.get('summary', '')}"[:SUMMARY_CHARS],
        "result": "PASSED",
        "severity": "LOW",
    }
