"""Failures of the cluster as pytest would write them here."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpu_cluster.contract.errors import UnreadableRecordError
from pytest_gpu_cluster.contract.records import crash_records
from pytest_gpu_cluster.host.deserialize import report, with_paths_from


def test_a_place_outside_of_the_tree_is_relative_to_here_where_that_is_shorter() -> None:
    """Plain pytest writes `../venv/lib/…` of a plugin; the cluster has its tree elsewhere."""
    frames = {
        "reprentries": [
            {"data": {"reprfileloc": {"path": path, "lineno": 1, "message": "in f"}}}
            for path in (
                "/home/me/venv/lib/p.py",
                "/usr/lib/x.py",
                "test_a.py",
                "/home/me/project/a.py",
            )
        ]
    }

    shown = with_paths_from(
        {"reprtraceback": frames, "chain": [[frames, None, None]]},
        Path("/home/me/project"),
        Path("/home/me/project"),
    )

    assert isinstance(shown, dict)
    for traceback in (shown["reprtraceback"], shown["chain"][0][0]):
        assert [entry["data"]["reprfileloc"]["path"] for entry in traceback["reprentries"]] == [
            "../venv/lib/p.py",
            "/usr/lib/x.py",
            "test_a.py",
            "/home/me/project/a.py",  # after a chdir in its test
        ]


LINES = {"type": "ReprEntryNative", "data": {"lines": [{"a": 1}]}}
CRASH = {"path": "a.py", "lineno": 1, "message": "boom"}


@pytest.mark.parametrize(
    "changes",
    [
        {"location": 7},
        {"location": ["a.py", "3", "t"]},
        {"sections": [["one"]]},
        {"sections": {"$t": 7}},
        {"duration": None},
        {"when": []},
        {"keywords": {"$d": [7]}},
        {"longrepr": {"$repr": ["alone"]}},
        {"longrepr": {"reprcrash": CRASH, "reprtraceback": {"reprentries": [LINES]}}},
        {"outcome": "skipped", "longrepr": {"$t": ["a.py", 3]}},
        {"$report_type": "Nobody's"},
        {"node": []},
    ],
    ids=str,
)
def test_what_no_reporter_could_show_is_an_error_of_the_record(
    pytestconfig: pytest.Config, changes: dict[str, object]
) -> None:
    """Else a reporter would fail in the middle of its line, with a traceback of pytest's own."""
    records = crash_records("a.py::t", ("a.py", 3, "t"), when="call", text="boom")
    [failed] = [
        each["report"]
        for each in records
        if each["kind"] == "report" and each["report"]["outcome"] == "failed"
    ]
    assert report(pytestconfig, failed).failed

    with pytest.raises(UnreadableRecordError, match=r"the journal's report of 'a\.py::t'"):
        report(pytestconfig, {**failed, **changes})
