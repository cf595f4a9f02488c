"""Write the JUnit file for CI hosts. docs/ci.md has the table of readers and their traps.

A test is one `testcase` with at most one problem in it, since readers keep only one. A further
problem of the test is a `testcase` beside it with a name of its own, since readers drop the second
of two equal names.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from pytest_gpu_cluster.contract.record_check import is_time
from pytest_gpu_cluster.report.model import NOT_TESTS, Problem, Report, Result, When
from pytest_gpu_cluster.report.render import session_line

MESSAGE_CHARS = 500
PHASES: dict[When, str] = {
    "collect": "collection failure: ",
    "setup": "failed on setup: ",
    "teardown": "failed on teardown: ",
}
PROBLEM_TAGS = ("failure", "error", "skipped")
# XML 1.0 has no way to write these, escaped or not; pytest writes #x00, and so does this module.
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")


def write(report: Report, *, strict: bool = False) -> bytes:
    """Return the whole file. `strict` keeps to the xunit2 schema, without `file` and `line`."""
    if report.verdict == "running":
        message = "the session did not end: what follows is written when it does"
        remedy = f"gpu-cluster report {report.session} --junitxml FILE"
        return _session_alone(report, "infrastructure", message, remedy)
    if not report.results and report.verdict != "passed":
        message = report.message or "no test has a result"
        return _session_alone(report, report.verdict, message, report.remedy)
    root = ET.Element("testsuites", name="pytest-gpu-cluster")
    suite = ET.SubElement(root, "testsuite", name=report.context.suite)
    properties = ET.SubElement(suite, "properties")
    for name, value in facts(report):
        ET.SubElement(properties, "property", name=name, value=_escape(value))
    cases = list(_all_cases(report, strict=strict))
    _make_names_unique(cases)
    suite.extend(cases)
    _set_totals(suite, cases, report)
    ET.indent(root, space=" ")
    return _serialize(root)


def _serialize(root: ET.Element) -> bytes:
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _set_totals(suite: ET.Element, cases: Iterable[ET.Element], report: Report) -> None:
    """Set counts and times of a suite whose cases have names already."""
    counts = Counter(
        next((child.tag for child in case if child.tag in PROBLEM_TAGS), "passed") for case in cases
    )
    suite.set("tests", str(sum(counts.values())))
    suite.set("failures", str(counts["failure"]))
    suite.set("errors", str(counts["error"]))
    suite.set("skipped", str(counts["skipped"]))
    suite.set("time", f"{report.duration_s:.3f}")
    # Of a record that somebody else has written it may be anything.
    started = datetime.fromtimestamp(report.started if is_time(report.started) else 0, UTC)
    suite.set("timestamp", started.isoformat(timespec="seconds"))


def _make_names_unique(cases: Iterable[ET.Element]) -> None:
    """Number every case whose class name and name an earlier case has."""
    last_numbers: dict[tuple[str, str], int] = {}
    for case in cases:
        classname, name = str(case.get("classname")), str(case.get("name"))
        while (classname, str(case.get("name"))) in last_numbers:
            last_numbers[classname, name] += 1
            case.set("name", f"{name} #{last_numbers[classname, name]}")
        last_numbers[classname, str(case.get("name"))] = 1


def _all_cases(report: Report, *, strict: bool) -> Iterator[ET.Element]:
    for result in report.results:
        yield from _cases(result, report, strict=strict)
    # Without a problem of a test, the file of a session that did not pass would look green.
    if report.verdict != "passed" and not report.bad:
        yield from _cases(_session_result(report), report, strict=strict)


def _session_result(report: Report) -> Result:
    """Return the session as a test that failed for the session's reason."""
    message = report.message or report.verdict
    problem = Problem(
        when="setup",
        failure_class=report.verdict if report.verdict in NOT_TESTS else "session",
        message=message.partition("\n")[0],
        text=message,
    )
    return Result(
        nodeid="",
        file="",
        line=0,
        classname="gpu-cluster",
        name="session",
        outcome="error",
        problems=(problem,),
    )


def facts(report: Report) -> Iterator[tuple[str, str]]:
    """Yield name and value of the suite's properties; unknown ones are absent."""
    context, machines = report.context, report.machines
    yield "session", report.session
    if context.link:
        yield "session_url", context.link
    yield "verdict", report.verdict
    if machines.cluster:
        yield "cluster", machines.cluster
    if machines.environment:
        yield "environment", machines.environment
    if machines.provider:
        yield "provider", machines.provider
    if machines.gpus:
        numbers = Counter(machines.gpus)
        yield "gpu", ", ".join(f"{number} x {name}" for name, number in numbers.items())
        yield "simulated_gpus", str(machines.simulated).lower()
    if machines.price_usd is not None:
        yield "cost_usd", f"{machines.price_usd:.2f}"
    if context.commit:
        yield "commit", context.commit
    if report.message:
        yield "message", report.message


def _cases(result: Result, report: Report, *, strict: bool) -> Iterator[ET.Element]:
    """Yield the case of a test, then one for each further problem of it."""
    case = _case(result, result.name, strict=strict)
    case.set("time", f"{result.duration_s:.3f}")
    if result.properties and not strict:
        properties = ET.SubElement(case, "properties")
        for name, value in result.properties:
            ET.SubElement(properties, "property", name=_first_filled(name), value=_escape(value))
    if result.problems:
        _add_problem(case, result.problems[0], result, report)
    elif result.outcome in ("skipped", "xfailed"):
        _add_skip(case, result)
    yield case
    for problem in result.problems[1:]:
        name = f"{result.name} {problem.subtest or f'({problem.when})'}"
        further = _case(result, name, strict=strict)
        further.set("time", "0.000")
        _add_problem(further, problem, result, report)
        yield further


def _case(result: Result, name: str, *, strict: bool) -> ET.Element:
    """Return an empty case. A file that was not collected gives its name as class name.

    Jenkins takes an empty class name from the suite, Buildkite refuses it.
    """
    case = ET.Element(
        "testcase",
        classname=_first_filled(result.classname, result.name),
        name=_first_filled(name, result.classname),
    )
    if not strict and result.file:
        case.set("file", _escape(result.file))
        if result.line:
            case.set("line", str(result.line))
    return case


def _add_skip(case: ET.Element, result: Result) -> None:
    kind = "pytest.skip" if result.outcome == "skipped" else "pytest.xfail"
    skipped = ET.SubElement(case, "skipped", type=kind, message=_escape(result.reason))
    text = f"{result.nodeid}: {result.reason}" if result.reason else result.nodeid
    skipped.text = _escape(text)


def _add_problem(case: ET.Element, problem: Problem, result: Result, report: Report) -> None:
    """Add a problem and its output.

    Link and cause come first, since one reader keeps only 2,000 characters.
    """
    is_failure = problem.from_tests and problem.when == "call"
    kind = problem.failure_class if problem.from_tests else error_type(problem.failure_class)
    phase = PHASES.get(problem.when, "") if problem.from_tests and result.nodeid else ""
    message = f"{phase}{problem.message}"
    element = ET.SubElement(case, "failure" if is_failure else "error")
    element.set("type", kind)
    element.set("message", _first_filled(message[:MESSAGE_CHARS], problem.failure_class))
    link = session_line(report)
    output = [result.output] if result.output else []
    cause = [] if problem.text.startswith(problem.message) else [message]  # else its first line
    element.text = _escape("\n".join([link, *cause, "", problem.text, *output]))
    ET.SubElement(case, "system-out").text = _escape("\n".join([link, *output]))


def error_type(failure_class: str) -> str:
    """Return the type by which a CI host can filter failures that are not the tests' fault.

    >>> error_type("infrastructure")
    'gpu_cluster.InfrastructureError'
    """
    return f"gpu_cluster.{failure_class.capitalize()}Error"


def _session_alone(report: Report, failure_class: str, message: str, remedy: str) -> bytes:
    """Return the file of a session without a result of a test: one case, always with an error."""
    from junit_xml import TestCase, TestSuite, to_xml_report_string

    remedy_lines = [f"remedy: {remedy}"] if remedy else []
    text = "\n".join([session_line(report), message, *remedy_lines])
    known_class = failure_class if failure_class in (*NOT_TESTS, "request") else "session"
    first_line = message.strip().partition("\n")[0]
    case = TestCase("session", classname="gpu-cluster", elapsed_sec=report.duration_s)
    case.add_error_info(
        # Without a message and an output this library writes a failure as a pass.
        message=_first_filled(first_line[:MESSAGE_CHARS], failure_class),
        output=_escape(text),
        error_type=error_type(known_class),
    )
    properties = {name: _escape(value) for name, value in facts(report)}
    suite = TestSuite(report.context.suite, [case], properties=properties)
    root = ET.fromstring(to_xml_report_string([suite], prettyprint=False))
    errors = root.findall(".//testcase/error[@message]")
    if len(errors) != 1 or not errors[0].get("message"):
        raise AssertionError(
            f"a session that ended with {failure_class} would be written as a pass"
        )
    # The counts stand at the suite, and "disabled" is in no schema.
    root.attrib = {"name": "pytest-gpu-cluster"}
    root[0].attrib.pop("disabled")
    root[0].set("time", f"{report.duration_s:.3f}")
    root[0][-1].set("time", f"{report.duration_s:.3f}")
    return _serialize(root)


def _first_filled(*texts: str) -> str:
    """Return the first text that is not blank, else "-".

    Readers refuse an empty name, and take an empty message for none.
    """
    return next((_escape(text) for text in texts if _escape(text).strip()), "-")


def _escape(text: str) -> str:
    """Replace the characters that XML cannot hold."""
    return _UNWRITABLE.sub(lambda match: f"#x{ord(match[0]):02X}", text)
