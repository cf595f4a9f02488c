"""The JUnit file for CI hosts. Each reader's traps are the reason for something here; docs/ci.md has the table.

A test is one `testcase` with at most one problem in it, since readers keep only one. What else went wrong with it is a
`testcase` beside it with a name of its own, since readers drop the second of two equal names.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

from pytest_gpu_cluster.contract.model import NOT_TESTS, Problem, Report, Result
from pytest_gpu_cluster.report.render import session_line

MESSAGE_CHARS = 500
TITLES = {
    "environment": "Environment",
    "capacity": "Capacity",
    "limit": "Limit",
    "teardown": "Teardown",
}
# XML 1.0 has no way to write these, escaped or not; pytest writes #x00 and so do we.
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")


def write(report: Report, *, strict: bool = False) -> bytes:
    """The whole file. `strict` keeps to the xunit2 schema, which has no `file` and `line`."""
    if report.verdict == "running":
        return _alone(
            report,
            "infrastructure",
            "the session did not end: what follows is written when it does",
            _how_to_finish(report),
        )
    if not report.results and report.verdict != "passed":
        return _alone(
            report, report.verdict, report.message or "no test has a result", report.remedy
        )
    root = ET.Element("testsuites", name="pytest-gpu-cluster")
    suite = ET.SubElement(root, "testsuite", name=report.suite)
    properties = ET.SubElement(suite, "properties")
    for name, value in facts(report):
        ET.SubElement(properties, "property", name=name, value=_text(value))
    seen: dict[tuple[str, str], int] = {}
    counts: Counter[str] = Counter()
    for result in (*report.results, *_of_the_session(report)):
        for case in _cases(result, report, strict=strict):
            _name_apart(case, seen)
            counts[
                next(
                    (child.tag for child in case if child.tag in ("failure", "error", "skipped")),
                    "passed",
                )
            ] += 1
            suite.append(case)
    for name, number in (
        ("tests", sum(counts.values())),
        ("failures", counts["failure"]),
        ("errors", counts["error"]),
    ):
        suite.set(name, str(number))
    suite.set("skipped", str(counts["skipped"]))
    suite.set("time", f"{report.duration_s:.3f}")
    suite.set(
        "timestamp", datetime.fromtimestamp(report.started, UTC).isoformat(timespec="seconds")
    )
    ET.indent(root, space=" ")
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _name_apart(case: ET.Element, seen: dict[tuple[str, str], int]) -> None:
    """Number a name that is there already; `seen` has the last number of each."""
    classname, name = str(case.get("classname")), str(case.get("name"))
    while (classname, str(case.get("name"))) in seen:
        seen[classname, name] += 1
        case.set("name", f"{name} #{seen[classname, name]}")
    seen[classname, str(case.get("name"))] = 1


def _of_the_session(report: Report) -> list[Result]:
    """A case that says why the session did not pass, where no test's does: a green file would be a lie."""
    if report.verdict == "passed" or any(result.problems for result in report.results):
        return []
    message = report.message or report.verdict
    class_ = report.verdict if report.verdict in NOT_TESTS else "session"
    problem = Problem(
        when="setup", failure_class=class_, message=message.partition("\n")[0], text=message
    )
    blank = Result(
        nodeid="",
        file="",
        line=0,
        classname="gpu-cluster",
        name="session",
        outcome="error",
        problems=(problem,),
    )
    return [blank]


def facts(report: Report) -> Iterator[tuple[str, str]]:
    """What the suite's properties say; nothing of what is not known."""
    yield "session", report.session
    if report.link:
        yield "session_url", report.link
    yield "verdict", report.verdict
    for name, value in (
        ("cluster", report.cluster),
        ("environment", report.environment),
        ("provider", report.provider),
    ):
        if value:
            yield name, value
    if report.gpus:
        yield (
            "gpu",
            ", ".join(f"{number} x {name}" for name, number in Counter(report.gpus).items()),
        )
        yield "simulated_gpus", str(report.simulated).lower()
    if report.price_usd is not None:
        yield "cost_usd", f"{report.price_usd:.2f}"
    if report.commit:
        yield "commit", report.commit
    if report.message:
        yield "message", report.message


def _cases(result: Result, report: Report, *, strict: bool) -> Iterator[ET.Element]:
    first = result.problems[0] if result.problems else None
    case = _case(result, result.name, strict=strict)
    case.set("time", f"{result.duration_s:.3f}")
    if result.properties and not strict:
        properties = ET.SubElement(case, "properties")
        for name, value in result.properties:
            ET.SubElement(properties, "property", name=_filled(name), value=_text(value))
    if first is not None:
        _add_problem(case, first, result, report)
    elif result.outcome in ("skipped", "xfailed"):
        kind = "pytest.skip" if result.outcome == "skipped" else "pytest.xfail"
        skipped = ET.SubElement(case, "skipped", type=kind, message=_text(result.reason))
        skipped.text = _text(
            f"{result.nodeid}: {result.reason}" if result.reason else result.nodeid
        )
    yield case
    for problem in result.problems[1:]:
        beside = _case(
            result, f"{result.name} {problem.subtest or f'({problem.when})'}", strict=strict
        )
        beside.set("time", "0.000")
        _add_problem(beside, problem, result, report)
        yield beside


def _case(result: Result, name: str, *, strict: bool) -> ET.Element:
    """Jenkins takes an empty class name from the suite, Buildkite refuses it: a file that was not collected gives its own."""
    case = ET.Element(
        "testcase",
        classname=_filled(result.classname, result.name),
        name=_filled(name, result.classname),
    )
    if not strict and result.file:
        case.set("file", _text(result.file))
        if result.line:
            case.set("line", str(result.line))
    return case


def _add_problem(case: ET.Element, problem: Problem, result: Result, report: Report) -> None:
    """Link and cause come first: one reader keeps 2,000 characters."""
    own = problem.failure_class not in NOT_TESTS
    element = ET.SubElement(case, "failure" if own and problem.when == "call" else "error")
    element.set("type", problem.failure_class if own else error_type(problem.failure_class))
    where = {
        "collect": "collection failure: ",
        "setup": "failed on setup: ",
        "teardown": "failed on teardown: ",
    }
    message = (where.get(problem.when, "") if own and result.nodeid else "") + problem.message
    element.set("message", _filled(message[:MESSAGE_CHARS], problem.failure_class))
    line = session_line(report)
    element.text = _text(
        "\n".join([line, message, "", problem.text, *([result.output] if result.output else [])])
    )
    ET.SubElement(case, "system-out").text = _text(
        "\n".join([line, *([result.output] if result.output else [])])
    )


def error_type(failure_class: str) -> str:
    """`gpu_cluster.InfrastructureError`: what is never the tests' fault, by a name that filters can hold on to."""
    return f"gpu_cluster.{TITLES.get(failure_class, 'Infrastructure')}Error"


def _how_to_finish(report: Report) -> str:
    return f"gpu-cluster report {report.session} --junitxml FILE"


def _alone(report: Report, failure_class: str, message: str, remedy: str) -> bytes:
    """A file for a session in which no test came to a result: one case, always with an error."""
    from junit_xml import TestCase, TestSuite, to_xml_report_string

    text = "\n".join([session_line(report), message, *([f"remedy: {remedy}"] if remedy else [])])
    case = TestCase("session", classname="gpu-cluster", elapsed_sec=report.duration_s)
    own = {"request": "gpu_cluster.RequestError"}.get(failure_class, "gpu_cluster.SessionError")
    kind = error_type(failure_class) if failure_class in NOT_TESTS else own
    # Without a message and an output this library writes a failure as a pass.
    said = _filled(message.strip().partition("\n")[0][:MESSAGE_CHARS], failure_class)
    case.add_error_info(message=said, output=_text(text), error_type=kind)
    suite = TestSuite(
        report.suite, [case], properties={name: _text(value) for name, value in facts(report)}
    )
    root = ET.fromstring(to_xml_report_string([suite], prettyprint=False))
    found = root.findall(".//testcase/error[@message]")
    if len(found) != 1 or not found[0].get("message"):
        raise AssertionError(
            f"a session that ended with {failure_class} would be written as a pass"
        )
    root.attrib = {
        "name": "pytest-gpu-cluster"
    }  # the counts stand at the suite, and "disabled" is in no schema
    root[0].attrib.pop("disabled")
    root[0].set("time", f"{report.duration_s:.3f}")
    root[0][-1].set("time", f"{report.duration_s:.3f}")
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _filled(text: str, *instead: str) -> str:
    """`text`, or the first that is not blank: readers refuse an empty name, and take an empty message for none."""
    return next((_text(each) for each in (text, *instead) if _text(each).strip()), "-")


def _text(text: str) -> str:
    return _UNWRITABLE.sub(lambda match: f"#x{ord(match[0]):02X}", text)
