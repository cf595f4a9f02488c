"""A report of events by hand: paths, late problems, restarts, and the verdict."""

from __future__ import annotations

import dataclasses

import pytest

from pytest_gpu_cluster.contract.events import (
    CollectorFinished,
    Deselected,
    Event,
    Interrupted,
    LateRecords,
    SelectionRestarted,
    SessionFinished,
    UsageError,
)
from pytest_gpu_cluster.contract.failures import FailureClass
from pytest_gpu_cluster.contract.records import ReportData
from pytest_gpu_cluster.report import junit, render
from tests.unit.report import results as by_hand
from tests.unit.report.events import (
    build_report,
    collected,
    collected_items,
    finished,
    item,
    report_record,
    session,
)
from tests.unit.report.outputs import cases_of, key_of, problem_of, schema_violations, tag_of


def test_a_path_outside_the_repository_is_none() -> None:
    """`../shared/test_x.py` is in no diff, and the schema has no such path.

    Below a prefix it may be inside after all.
    """
    items = [item("../shared/test_x.py::test_x"), item("/opt/tests/test_y.py::test_y")]
    events: list[Event] = [
        collected_items(items),
        *(finished(index, row["nodeid"]) for index, row in enumerate(items)),
    ]

    plain = build_report(events, exit_code=0)
    prefixed = build_report(events, exit_code=0, prefix="services/ml")
    assert [result.file for result in plain.results] == ["", ""]
    assert [result.file for result in prefixed.results] == ["services/shared/test_x.py", ""]


def test_a_directory_that_cannot_be_collected_has_a_file_that_readers_take() -> None:
    """pytest calls the root directory `.`, which is neither a file nor a class.

    Buildkite refuses a file with an empty name in it.
    """
    for nodeid in (".", ""):
        collect_report: ReportData = {
            "nodeid": nodeid,
            "outcome": "failed",
            "longrepr": "RuntimeError: a hook failed",
            "sections": [],
        }
        report = build_report([CollectorFinished(report=collect_report, kids=())], exit_code=2)

        assert schema_violations(junit.write(report)) == []
        assert [tag_of(case) for case in cases_of(junit.write(report))] == ["error"]


def test_a_usage_error_is_told_by_the_line_that_says_most() -> None:
    """Its last line is where the root directory is, or which modules were looked at.

    The headline is all that a status shows.
    """
    unknown = (
        "ERROR: usage: pytest [options]\npytest: error: unrecognized arguments: --no-such\n"
        "  inifile: None\n  rootdir: /work\n\n"
    )
    missing = (
        "ERROR: not found: /work/test_a.py::test_b\n(no match in any of [<Module test_a.py>])\n\n"
    )
    end = SessionFinished(pytest_status=4)

    assert "--no-such" in render.headline(
        build_report([UsageError(text=unknown), end], exit_code=4)
    )
    assert "test_a.py::test_b" in render.headline(
        build_report([UsageError(text=missing), end], exit_code=4)
    )


def test_a_problem_after_the_tests_end_belongs_to_the_test() -> None:
    """A module's fixture that breaks at its end does so when another test may already run."""
    late: ReportData = {
        "when": "teardown",
        "outcome": "failed",
        "longrepr": "E   ValueError: late",
        "sections": [],
        "duration": 0.5,
        "nodeid": "t.py::a",
    }
    events = [
        *session("t.py::a", "t.py::b")[:-1],
        LateRecords(nodeid="t.py::a", records=[report_record(late)]),
    ]
    cases = cases_of(junit.write(build_report(events, exit_code=1)))

    assert [(key_of(case)[1], tag_of(case)) for case in cases] == [("a", "error"), ("b", "passed")]
    assert problem_of(cases[0]).get("message") == "failed on teardown: ValueError: late"


def test_a_selection_that_starts_again_is_told_once() -> None:
    """The process that imports the tests may die of one of them.

    The results that it had reported are reported again.
    """
    broken: ReportData = {
        "nodeid": "t.py",
        "outcome": "failed",
        "longrepr": "E   ImportError: no",
        "sections": [],
    }
    dropped = Deselected(nodeids=("u.py::a",))
    report = build_report(
        [
            CollectorFinished(report=broken, kids=()),
            dropped,
            SelectionRestarted(path="t.py"),
            dropped,
            collected("u.py::b"),
            finished(0, "u.py::b"),
        ],
        exit_code=0,
    )

    assert [result.nodeid for result in report.results] == ["u.py::b"]
    assert report.deselected == 1


def test_a_tests_first_result_is_its_result() -> None:
    """A test that was given to another machine may end twice.

    The journal's first word stands, as it did in the terminal.
    """
    events = [
        collected("t.py::a"),
        finished(0, "t.py::a", "failed"),
        finished(0, "t.py::a"),
        finished(7, "t.py::unknown"),
    ]

    assert [
        (result.nodeid, result.outcome) for result in build_report(events, exit_code=1).results
    ] == [("t.py::a", "failed")]


def test_the_agent_has_the_last_word_on_the_end() -> None:
    """The keeper writes an end too, when it finds the agent gone."""
    keeper = SessionFinished(failure_class=FailureClass.INFRASTRUCTURE, writer="keeper")
    agent = SessionFinished(pytest_status=0, writer="agent")
    tests = session("t.py::a")[:-1]

    assert build_report([*tests, keeper, agent]).verdict == "passed"
    assert build_report([*tests, agent, keeper]).verdict == "passed"
    assert build_report([*tests, keeper]).verdict == "infrastructure"


@pytest.mark.parametrize(
    ("exit_code", "verdict"),
    [
        (0, "passed"),
        (1, "failed"),
        (2, "failed"),
        (3, "failed"),
        (4, "request"),
        (5, "failed"),
        (6, "failed"),
        (10, "infrastructure"),
        (11, "environment"),
        (12, "capacity"),
        (13, "limit"),
        (14, "teardown"),
        (99, "failed"),
    ],
)
def test_the_verdict_follows_the_exit_code(exit_code: int, verdict: str) -> None:
    """One number decides in the step, one word in the comment: they have to agree."""
    events = session("t.py::a", end=SessionFinished(pytest_status=0))
    cancelled = build_report(events, exit_code=exit_code, cancelled=True)

    assert build_report(events, exit_code=exit_code).verdict == verdict
    assert cancelled.verdict == "cancelled"


def test_a_session_that_ctrl_c_ended_was_cancelled_and_one_that_stopped_itself_was_not() -> None:
    """`pytest.exit` is a decision of the tests; a KeyboardInterrupt is somebody's finger."""
    for interrupted, verdict in (
        (Interrupted(text="bye", exit=True), "failed"),
        (Interrupted(text="bye", shouldfail="stopping after 1 failures"), "failed"),
        (Interrupted(text="bye"), "cancelled"),
    ):
        events = [collected("t.py::a"), interrupted]

        assert build_report(events, exit_code=2).verdict == verdict


def test_properties_of_another_shape_are_left_out() -> None:
    """pytest takes anything as a user property; what a report cannot show must not end the run."""
    selection, _, end = session("t.py::a", end=SessionFinished(pytest_status=0))
    late: ReportData = {
        "nodeid": "t.py::a",
        "outcome": "passed",
        "when": "teardown",
        "longrepr": None,
        "user_properties": [["a", "b", "c"], {"a": 1}, 7, None, ["name", "value"]],
    }
    test = dataclasses.replace(finished(0, "t.py::a"), records=[report_record(late)])
    report = build_report([selection, test, end])

    assert [result.properties for result in report.results] == [(("name", "value"),)]


def test_bad_results_begin_with_the_tests_own() -> None:
    """Twenty failures are shown, and a lost node can make hundreds of errors."""
    results = (
        by_hand.result("t.py::a", "error", failure_class="infrastructure"),
        by_hand.result("t.py::b"),
        by_hand.result("t.py::c", "failed"),
    )

    assert [result.nodeid for result in by_hand.report_of(*results).bad] == ["t.py::c", "t.py::a"]
