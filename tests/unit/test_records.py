"""Records of a test that could not report itself."""

from __future__ import annotations

import pytest

from pytest_gpu_cluster.contract.codec import from_wire
from pytest_gpu_cluster.contract.records import crash_records


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("setup", [("setup", "failed"), ("teardown", "passed")]),
        ("call", [("setup", "passed"), ("call", "failed"), ("teardown", "passed")]),
        ("teardown", [("setup", "passed"), ("call", "passed"), ("teardown", "failed")]),
    ],
)
def test_a_dead_process_leaves_the_reports_of_its_phases(
    when: str, expected: list[tuple[str, str]]
) -> None:
    """A crash in `call` is a failure of the test, in a fixture an error.

    JUnit needs a teardown to close the case.
    """
    records = crash_records(
        "a.py::t",
        ("a.py", 3, "t"),
        when=when,
        text="crash: SIGSEGV\nmore",
        duration_s=2.0,
        sections=[("Captured stdout", "x")],
    )

    kinds = [record["kind"] for record in records]
    reports = [record["report"] for record in records if record["kind"] == "report"]
    assert kinds == ["logstart", *["report"] * len(reports), "logfinish"]
    assert [(report["when"], report["outcome"]) for report in reports] == expected
    failed = next(report for report in reports if report["outcome"] == "failed")
    match failed["longrepr"]:
        case {"reprcrash": {"message": message}}:
            assert message == "crash: SIGSEGV"
        case longrepr:
            pytest.fail(f"no crash line in {longrepr}")
    assert failed["duration"] == 2.0
    assert from_wire(failed["sections"]) == [("Captured stdout", "x")]
