"""Sessions that did not end as they should: lost, stopped, or without a result."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from pytest_gpu_cluster.contract.events import (
    Collected,
    CollectorFinished,
    Event,
    TestFinished,
)
from pytest_gpu_cluster.contract.failures import FailureClass
from pytest_gpu_cluster.contract.record import Ending
from pytest_gpu_cluster.report import junit
from pytest_gpu_cluster.report.model import NOT_TESTS, Outcome, Report, ReportContext
from tests.unit.report import ends
from tests.unit.report.ends import NODEIDS, without_second
from tests.unit.report.events import build_report, session
from tests.unit.report.outputs import (
    Key,
    cases_of,
    key_of,
    problem_of,
    problem_type,
    schema_violations,
    tag_of,
    visible,
)
from tests.unit.report.real_run import CONTEXT, RealRun
from tests.unit.report.results import result


def test_a_session_cut_anywhere_keeps_what_had_finished_and_blames_the_machines_for_the_rest(
    real: RealRun,
) -> None:
    """A client dies at any time.

    What the store has by then is what its report can say, no more and no less.
    """
    whole = groups(junit.write(real.report()))
    builder, ended, collected = real.builder(), set[Key](), False

    for event in real.events[:-1]:
        builder.add(event)
        collected = collected or isinstance(event, Collected)
        ended |= {address(event)} - {("", "")}
        report = builder.report(CONTEXT, Ending())
        written = junit.write(report)
        cases = cases_of(written)

        tests_failed = any(
            problem.failure_class not in NOT_TESTS
            for result in report.results
            for problem in result.problems
        )
        assert report.verdict == ("failed" if tests_failed else "infrastructure")
        assert {"failure", "error"} & {tag_of(case) for case in cases}
        assert schema_violations(written) == []
        if not ended:
            assert [problem_type(case) for case in cases if tag_of(case) != "error"] == []
            continue
        complete = {key: texts for key, texts in groups(written).items() if key in ended}
        assert complete == {key: whole[key] for key in ended}
        rest = [case for case in cases if key_of(case) in whole and key_of(case) not in ended]
        assert {problem_type(case) for case in rest} <= {"gpu_cluster.InfrastructureError"}
        assert collected is False or {key_of(case) for case in rest} == whole.keys() - ended


def groups(data: bytes) -> dict[Key, list[str]]:
    """Return each test's cases in a file: its own, then those of its further problems."""
    cases: dict[Key, list[str]] = {}
    base = ("", "")
    for case in cases_of(data):
        is_further = (
            base[1]
            and key_of(case)[0] == base[0]
            and key_of(case)[1].startswith((f"{base[1]} (", f"{base[1]} ["))
        )
        base = base if is_further else key_of(case)
        cases.setdefault(base, []).append(ET.tostring(case, encoding="unicode").strip())
    return cases


def address(event: Event) -> Key:
    """Return the test, or the file that was not collected, that ends with this event."""
    if isinstance(event, CollectorFinished) and event.report["outcome"] in ("failed", "skipped"):
        name = event.report["nodeid"].removesuffix(".py").replace("/", ".")
        return name, name
    if not isinstance(event, TestFinished):
        return "", ""
    path, _, rest = event.nodeid.partition("::")
    head, bracket, params = rest.partition("[")
    above, _, name = f"{path.removesuffix('.py').replace('/', '.')}::{head}".rpartition("::")
    return visible(above.replace("::", ".")), visible(name + bracket + params)


def test_only_the_end_makes_a_lost_session_a_pass() -> None:
    """All tests passed, and then? pytest may have failed at its end: silence is not success."""
    events = session(*NODEIDS, end=ends.PASSED)

    verdicts = [build_report(events[:end]).verdict for end in range(len(events) + 1)]

    assert verdicts == ["infrastructure"] * len(events) + ["passed"]


def test_an_end_with_0_is_no_pass_while_tests_have_no_result() -> None:
    """`pytest.exit()` without a reason ends the selecting process with 0.

    Nobody was there to see the tests that did not run.
    """
    events = session(*NODEIDS, end=ends.PASSED)
    *others, end = without_second(events)

    assert build_report([*others, end]).verdict != "passed"
    assert build_report([*others, ends.EXITED, end]).verdict != "passed"


def test_a_session_that_was_stopped_because_its_client_was_lost_is_not_the_tests_failure() -> None:
    """Whoever finds the client silent asks the agent to stop.

    pytest then ends with 2, and what had not run was never the tests' fault.
    """
    events = session(*NODEIDS, end=ends.CLIENT_LOST)
    report = build_report(without_second(events))

    assert report.verdict == "infrastructure"
    assert [(key_of(case)[1], problem_type(case)) for case in cases_of(junit.write(report))] == [
        ("a", ""),
        ("b", "gpu_cluster.InfrastructureError"),
    ]


@pytest.mark.parametrize("exitstatus", ends.AGENT_STATUSES)
@pytest.mark.parametrize("failure_class", ends.AGENT_CLASSES)
def test_a_lost_session_ends_by_what_its_agent_said(
    failure_class: FailureClass, exitstatus: int | None
) -> None:
    """The agent knew that the limit was reached.

    That nobody listened does not make it another reason, let alone the tests' failure.
    """
    events = session(*NODEIDS, end=ends.agent_end(failure_class, exitstatus))
    report = build_report(without_second(events))

    assert report.verdict == failure_class
    assert [problem_type(case) for case in cases_of(junit.write(report))] == [
        "",
        junit.error_type(failure_class),
    ]


def test_a_stop_at_the_first_failure_leaves_the_others_out_also_when_the_client_was_lost() -> None:
    """`-x` was what the user wanted: nobody failed to run the rest."""
    report = build_report(ends.stopped_at_first_failure())

    assert report.verdict == "failed"
    assert [key_of(case)[1] for case in cases_of(junit.write(report))] == ["a"]


def test_a_report_of_a_running_session_is_one_error(real: RealRun) -> None:
    """The file lies there from the first second on.

    Should nothing follow, a step that reads it must not be green.
    """
    written = junit.write(real.half().report(CONTEXT))
    (case,) = cases_of(written)

    assert (key_of(case), tag_of(case), problem_type(case)) == (
        ("gpu-cluster", "session"),
        "error",
        "gpu_cluster.InfrastructureError",
    )
    assert "gpu-cluster report 20260101-120000-abcd" in (problem_of(case).text or "")
    assert schema_violations(written) == []


TYPES = {
    "infrastructure": "gpu_cluster.InfrastructureError",
    "environment": "gpu_cluster.EnvironmentError",
    "capacity": "gpu_cluster.CapacityError",
    "limit": "gpu_cluster.LimitError",
    "teardown": "gpu_cluster.TeardownError",
    "request": "gpu_cluster.RequestError",
}
MESSAGES = [
    "",
    " ",
    "\n",
    "EC2 refused 1 x g6.xlarge",
    "first line\nsecond line",
    "\x00\x1b[31m",
    "\ud800",
    "x" * 5_000,
    "<b>&]]>",
]


NIGHTLY = ReportContext(suite="nightly")


@pytest.mark.parametrize("message", MESSAGES, ids=lambda text: ascii(text[:20]))
@pytest.mark.parametrize("verdict", TYPES)
@pytest.mark.parametrize("strict", [False, True], ids=["enriched", "strict"])
def test_a_session_without_a_result_is_one_error_that_says_why(
    verdict: str, message: str, strict: bool
) -> None:
    """The library that writes this file makes a pass of an error without a message."""
    written = junit.write(
        Report(
            session="s-1", context=NIGHTLY, verdict=verdict, message=message, remedy="try again"
        ),
        strict=strict,
    )
    (case,) = cases_of(written)

    assert (key_of(case), tag_of(case), problem_type(case)) == (
        ("gpu-cluster", "session"),
        "error",
        TYPES[verdict],
    )
    assert problem_of(case).get("message")
    assert "remedy: try again" in (problem_of(case).text or "")
    assert schema_violations(written, "xunit2" if strict else "enriched") == []


@pytest.mark.parametrize(
    "message",
    ["no tests were collected", "RuntimeError: a hook of the user broke", ""],
    ids=["none collected", "internal error", "nothing"],
)
@pytest.mark.parametrize("verdict", ["failed", "cancelled"])
def test_a_session_that_ended_by_itself_without_a_result_does_not_blame_the_machines(
    verdict: str, message: str
) -> None:
    """A filter on InfrastructureError re-runs the step.

    An empty selection would be re-run for ever.
    """
    (case,) = cases_of(
        junit.write(Report(session="s-1", context=NIGHTLY, verdict=verdict, message=message))
    )

    assert tag_of(case) == "error"
    assert problem_type(case) not in {
        junit.error_type(failure_class) for failure_class in NOT_TESTS
    }


VERDICTS = ("failed", "cancelled", "request", *NOT_TESTS)


@pytest.mark.parametrize(
    "outcomes",
    [(), ("passed",), ("passed", "skipped", "xfailed", "xpassed")],
    ids=["none", "one", "all kinds"],
)
@pytest.mark.parametrize("verdict", [*VERDICTS, "running", "passed"])
def test_only_a_pass_looks_like_one(verdict: str, outcomes: tuple[Outcome, ...]) -> None:
    """The hosts decide by this file alone whether a step is green.

    `pytest --max-warnings` fails without a failing test.
    """
    results = tuple(result(f"t.py::{outcome}", outcome) for outcome in outcomes)
    report = Report(
        session="s-1", context=CONTEXT, verdict=verdict, results=results, collected=len(results)
    )

    for strict in (False, True):
        tags = [tag_of(case) for case in cases_of(junit.write(report, strict=strict))]
        assert tags.count("failure") + tags.count("error") == (0 if verdict == "passed" else 1)
