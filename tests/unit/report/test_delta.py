"""The differences of a report from the last session of a branch."""

from __future__ import annotations

import dataclasses
import json
from typing import Unpack

import pytest

from pytest_gpu_cluster.contract.record import branch_key
from pytest_gpu_cluster.report import delta, render
from pytest_gpu_cluster.report.model import Delta, Report, Result
from tests.unit.report.results import ReportFields, file_error, report_of, result


def baseline(*results: Result, commit: str = "a" * 40, **fields: Unpack[ReportFields]) -> bytes:
    chosen: ReportFields = {"session": "s-before", **fields}
    data = delta.results_of(report_of(*results, commit=commit, **chosen))
    assert data is not None
    return data


def compared(now: Report, before: bytes) -> Delta:
    difference = delta.compare(now, before)
    assert difference is not None
    return difference


def test_a_difference_is_told_by_where_it_leads() -> None:
    """The reviewer of a change wants what it changed, not what was red before."""
    before = baseline(
        result("t.py::stays"),
        result("t.py::breaks"),
        result("t.py::mends", "failed"),
        result("t.py::red", "failed"),
        result("t.py::goes"),
        result("t.py::skips"),
    )
    now = report_of(
        result("t.py::stays"),
        result("t.py::breaks", "failed"),
        result("t.py::mends"),
        result("t.py::red", "error"),
        result("t.py::skips", "skipped"),
        result("t.py::new"),
        result("t.py::new_and_red", "failed"),
    )

    difference = compared(now, before)

    assert (difference.branch, difference.session, difference.commit) == (
        "main",
        "s-before",
        "a" * 40,
    )
    assert difference.newly_failing == ("t.py::breaks", "t.py::new_and_red")
    assert difference.fixed == ("t.py::mends",)
    assert difference.removed == ("t.py::goes",)
    assert (difference.slower, difference.flaky, difference.empty) == ((), (), False)


def test_an_expected_failure_is_as_good_as_a_pass() -> None:
    """A test that is marked after it broke is mended as far as the branch's state goes.

    A skip says nothing.
    """
    before = baseline(
        result("t.py::a", "failed"),
        result("t.py::b", "failed"),
        result("t.py::c", "failed"),
        result("t.py::d", "skipped"),
    )
    now = report_of(
        result("t.py::a", "xfailed"),
        result("t.py::b", "xpassed"),
        result("t.py::c", "skipped"),
        result("t.py::d", "failed"),
    )

    difference = compared(now, before)

    assert difference.fixed == ("t.py::a", "t.py::b")
    assert difference.newly_failing == ("t.py::d",)


def test_only_a_whole_run_of_the_same_selection_can_miss_a_test() -> None:
    """`-k fast` runs ten of a thousand tests: the others are not gone."""
    before = baseline(result("t.py::a"), result("t.py::b"), selection=("tests",))
    now = report_of(result("t.py::a"), selection=("tests",))

    assert compared(now, before).removed == ("t.py::b",)
    assert compared(dataclasses.replace(now, selection=("tests", "-k", "a")), before).removed == ()
    assert compared(dataclasses.replace(now, collected=2), before).removed == ()


def test_a_module_that_was_skipped_does_not_make_a_run_whole() -> None:
    """With `-x` one of two tests has a result.

    A skipped module beside it is a result too, of no test.
    """
    before = baseline(result("t.py::a"), result("t.py::b"), result("t.py::c"))
    skipped = dataclasses.replace(result("whole.py", "skipped"), classname="", name="whole", line=0)
    now = report_of(skipped, result("t.py::a", "failed"), collected=2)

    assert compared(now, before).removed == ()
    assert delta.results_of(now) is None


def test_tests_of_a_file_that_does_not_import_are_not_removed() -> None:
    """The file is broken, which is told as an error; its tests are where they were."""
    before = baseline(result("t.py::a"), result("broken.py::b"), result("broken.py::c"))
    broken = file_error("broken.py", file="broken.py", name="broken")
    difference = compared(report_of(broken, result("t.py::a"), collected=1), before)

    assert difference.removed == ()
    assert difference.newly_failing == ("broken.py",)


@pytest.mark.parametrize("directory", ["pkg", "."])
def test_tests_of_a_directory_that_cannot_be_collected_are_not_removed(directory: str) -> None:
    """A conftest that does not import takes all files below it out of sight."""
    before = baseline(result("pkg/t.py::a"), result("pkg/sub/u.py::b"))
    broken = file_error(directory, file="", name="pkg")

    assert compared(report_of(broken, collected=0), before).removed == ()


@pytest.mark.parametrize(
    ("before_s", "now_s", "slower"),
    [
        (10.0, 14.9, False),
        (10.0, 15.1, True),
        (1.0, 1.9, False),
        (2.0, 3.0, False),
        (0.0, 1.1, True),
        (0.0, 1.0, False),
        (60.0, 50.0, False),
    ],
)
def test_slower_is_half_as_long_again_and_more_than_a_second(
    before_s: float, now_s: float, slower: bool
) -> None:
    """Neither 10 ms that became 20 ms nor a minute that took 61 s is worth a reviewer's eye."""
    difference = compared(
        report_of(result("t.py::a", duration_s=now_s)),
        baseline(result("t.py::a", duration_s=before_s)),
    )

    assert difference.slower == ((("t.py::a", before_s, now_s),) if slower else ())


def test_the_slowest_comes_first() -> None:
    """A list that is cut at twenty should keep the twenty that cost most."""
    names, seconds = ("t.py::a", "t.py::b", "t.py::c"), (5.0, 50.0, 20.0)
    now = report_of(
        *(
            result(name, duration_s=duration_s)
            for name, duration_s in zip(names, seconds, strict=True)
        )
    )

    assert [name for name, *_ in compared(now, baseline(*map(result, names))).slower] == [
        "t.py::b",
        "t.py::c",
        "t.py::a",
    ]


def test_flaky_is_what_was_rerun_or_ended_otherwise_on_the_same_code() -> None:
    """On another commit another outcome is what the commit did."""
    before = [
        result("t.py::a"),
        result("t.py::b", "failed"),
        result("t.py::c"),
        result("t.py::d"),
        result("t.py::e"),
    ]
    now = report_of(
        result("t.py::a", "failed"),
        result("t.py::b"),
        result("t.py::c", reruns=1),
        result("t.py::d", "skipped"),
        result("t.py::e", "failed", reruns=2),
    )

    assert compared(now, baseline(*before)).flaky == ("t.py::c",)
    assert compared(now, baseline(*before, commit="b" * 40)).flaky == (
        "t.py::a",
        "t.py::b",
        "t.py::c",
        "t.py::e",
    )
    assert compared(report_of(*now.results, commit=""), baseline(*before, commit="")).flaky == (
        "t.py::c",
    )


def test_what_machines_did_is_neither_new_nor_kept() -> None:
    """A lost node is no regression of the branch.

    A baseline with it would make everything fixed the next time.
    """
    unlucky = result("t.py::b", "error", failure_class="infrastructure")
    now = report_of(result("t.py::a", "failed"), unlucky)

    difference = compared(now, baseline(result("t.py::a"), result("t.py::b"), result("t.py::c")))

    assert difference.newly_failing == ("t.py::a",)
    assert difference.removed == ()
    assert delta.results_of(now) is None
    assert delta.results_of(report_of(result("t.py::a"), verdict="infrastructure")) is None


@pytest.mark.parametrize(
    "verdict",
    ["running", "cancelled", "request", "infrastructure", "environment", "capacity", "limit"],
)
def test_a_session_that_says_nothing_of_its_tests_as_a_whole_is_no_baseline(verdict: str) -> None:
    """The next report would compare itself with a fragment."""
    assert delta.results_of(report_of(result("t.py::a"), verdict=verdict)) is None


def test_what_a_baseline_needs() -> None:
    """Results of all that was collected; also when only the cluster's end went wrong."""
    both = (result("t.py::a"), result("t.py::b", "failed"))

    assert delta.results_of(report_of(*both)) is not None
    assert delta.results_of(report_of(*both, verdict="teardown")) is not None
    assert delta.results_of(report_of(*both, collected=3)) is None
    assert delta.results_of(report_of(*both, collected=None)) is None
    assert delta.results_of(report_of()) is None


STORED = b'{"v": 1, "session": "s", "commit": "", "branch": "main", "tests": '


@pytest.mark.parametrize(
    "stored",
    [
        None,
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b'"text"',
        b"\xff\xfe",
        b"{}",
        b'{"v": 1, "tests": []}',
        STORED + b'{"t.py::a": "passed"}}',
        STORED + b'{"t.py::a": ["passed"]}}',
        STORED + b'{"t.py::a": ["passed", "soon"]}}',
        STORED + b'{"t.py::a": ["passed", null]}}',
        STORED.replace(b"1", b"2") + b'{"t.py::a": ["passed", 1.0]}}',
    ],
)
def test_a_baseline_that_is_broken_or_of_another_version_is_none(stored: bytes | None) -> None:
    """Another version of this tool may share the store; its users should not see our traceback."""
    assert delta.compare(report_of(result("t.py::a")), stored) is None


def test_a_session_is_not_compared_with_itself() -> None:
    """Reported a second time from the store, the branch's last session may be this very one."""
    report = report_of(result("t.py::a", "failed"))

    assert delta.compare(report, delta.results_of(report)) is None


@pytest.mark.parametrize(
    ("branch", "name"),
    [
        ("main", "main"),
        ("feature/x", "feature%2Fx"),
        ("release-1.2", "release-1.2"),
        ("..", ".."),
        ("100%", "100%25"),
        ("feature%2Fx", "feature%252Fx"),
        ("größe", "gr%C3%B6%C3%9Fe"),
        ("a b", "a%20b"),
        ("a?b#c", "a%3Fb%23c"),
    ],
)
def test_a_branch_has_one_key_in_one_folder(branch: str, name: str) -> None:
    """A branch's name may have slashes; a store lists by folder."""
    assert branch_key(branch, "gpu-cluster") == f"history/branches/{name}.json"
    assert branch_key(branch, "nightly") == f"history/branches/{name}~nightly.json"


def test_a_branch_with_bytes_that_are_no_utf8_has_a_key() -> None:
    """git allows it, and the environment gives it with lone surrogates.

    A report must not end with a traceback because of it.
    """
    assert branch_key("caf\udce9", "gpu-cluster").isascii()


def test_a_delta_survives_the_summary() -> None:
    """Another process reads it there, when the branch's last session has become this one."""
    difference = compared(
        report_of(result("t.py::a", "failed", duration_s=9.0)),
        baseline(result("t.py::a"), result("t.py::b")),
    )
    summary = json.loads(render.json_text(report_of(result("t.py::a"), delta=difference)))["delta"]

    assert summary["newly_failing"] == ["t.py::a"]
    assert summary["removed"] == ["t.py::b"]
    assert summary["slower"] == [["t.py::a", 0.0, 9.0]]
