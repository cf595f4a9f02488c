"""Bitbucket: annotations of a report at a commit, over sessions and suites."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts import FakeBitbucket
from tests.unit.publish.rig import (
    BITBUCKET_STEP,
    KINDS,
    MACHINES_FAULT,
    PAGE,
    REPORT,
    a_result,
    as_ended,
    failing,
    failures,
    report,
    step,
)


def test_an_annotation_leads_to_the_line_and_to_the_tests_part_of_the_page(
    bitbucket: FakeBitbucket,
) -> None:
    """The line is that of the assertion, not the first of the test.

    A link without an anchor where the page is the step's.
    """
    ci_step = step(bitbucket.environ())

    ci_step.finish(
        report(
            verdict="failed",
            results=(
                failing(problem_line=30),
                failing("test_elsewhere"),
                failing("test_nowhere", file=""),
            ),
        )
    )
    with_page = {
        annotation["summary"].partition(":")[0]: annotation
        for annotation in bitbucket.annotations(*REPORT)
    }
    ci_step.finish(as_ended("failed", link=BITBUCKET_STEP, own_page=False))

    assert (with_page["test_breaks"]["path"], with_page["test_breaks"]["line"]) == (
        "tests/test_tiles.py",
        30,
    )
    assert with_page["test_breaks"]["link"] == f"{PAGE}#tests%2Ftest_tiles.py%3A%3Atest_breaks"
    assert with_page["test_elsewhere"]["line"] == 12
    assert {"path", "line"} & set(with_page["test_nowhere"]) == set()
    assert bitbucket.annotations(*REPORT)[0]["link"] == BITBUCKET_STEP
    assert bitbucket.refused == []


def test_what_a_machine_did_to_a_test_is_annotated_as_that_and_last(
    bitbucket: FakeBitbucket,
) -> None:
    """A thousand tests without a machine must not crowd out the one that is wrong."""
    unfinished = failing(
        "test_lost",
        message="infrastructure: node lost",
        failure_class="infrastructure",
        outcome="error",
    )

    step(bitbucket.environ()).finish(
        report(verdict="infrastructure", message=MACHINES_FAULT, results=(unfinished, failing()))
    )

    failure, other = bitbucket.annotations(*REPORT)
    assert (failure["summary"], failure["result"], failure["severity"]) == (
        "test_breaks: assert 1 == 2",
        "FAILED",
        "HIGH",
    )
    assert (other["summary"], other["result"], other["severity"]) == (
        "not your test: test_lost: infrastructure: node lost",
        "IGNORED",
        "LOW",
    )


def test_three_thousand_failures_make_a_thousand_annotations_in_hundreds(
    bitbucket: FakeBitbucket,
) -> None:
    """Both are Bitbucket's limits, and the report names the rest."""
    updated, troubles = step(bitbucket.environ()).finish(
        report(verdict="failed", results=failures(3000))
    )

    sent = [len(request.body) for request in bitbucket.seen("POST", "/annotations")]
    assert sent == [100] * 10
    assert len(bitbucket.annotations(*REPORT)) == 1000
    assert "1000 of 3000 failures are annotated" in bitbucket.reports[REPORT]["details"]
    assert (updated, troubles, bitbucket.refused) == (list(KINDS["bitbucket"].targets), [], [])


HOSTILE = (
    failing("test_" + "long" * 300, message="m" * 5000, text="漢" * 100_000),
    failing("test_empty", message="", text=""),
    failing(
        "test_control",
        message="a\x1b[31mred\x1b[0m\x00\ud800\r\nb",
        text="\x1b[31mE   \x07no\x1b[0m \udfff",
    ),
    failing(
        "test_markup",
        message="<script>alert(1)</script> [x](javascript:y) @everyone `tick` {commit}",
        text="```\n# no\n```",
    ),
    failing("test_far", file="", line=0),
    failing("test_deep", file="a b/ü/test_é.py", line=0),
)


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_of_a_test_makes_a_host_refuse_a_report(kind: str, tmp_path: Path) -> None:
    """One annotation that is too long takes ninety-nine others with it."""
    with KINDS[kind].make() as host:
        updated, troubles = step(KINDS[kind].environ(host, tmp_path), check_run=True).finish(
            report(verdict="failed", results=HOSTILE, message="x" * 5000)
        )

        assert (updated, troubles, host.refused) == (list(KINDS[kind].targets), [], [])


@pytest.mark.parametrize("room", [200, 2, 1, 0, -1, -100, -3_000])
def test_a_node_id_of_any_length_fits_an_annotation(bitbucket: FakeBitbucket, room: int) -> None:
    """Parameters make node ids of thousands of characters.

    Details have room for two thousand in all, and `room` is what is left.
    """
    nodeid = (
        "tests/test_tiles.py::test_it[".ljust(2000 - len(f"Session: {PAGE}\n\n\n") - room - 1, "p")
        + "]"
    )

    updated, troubles = step(bitbucket.environ(token=False)).finish(
        report(verdict="failed", results=(failing(nodeid=nodeid, text="E   no\n" * 1000),))
    )

    assert (updated, troubles, bitbucket.refused) == (["Code Insights report"], [], [])
    assert len(bitbucket.annotations(*REPORT)) == 1


def test_a_test_that_was_collected_twice_is_annotated_once(bitbucket: FakeBitbucket) -> None:
    """`pytest --keep-duplicates a.py a.py`.

    Two results of one name, and Bitbucket refuses a batch with one id twice.
    """
    updated, troubles = step(bitbucket.environ()).finish(
        report(verdict="failed", results=(failing(), failing(), failing("test_other")))
    )

    ids = [annotation["external_id"] for annotation in bitbucket.annotations(*REPORT)]
    assert (updated, troubles, bitbucket.refused) == (list(KINDS["bitbucket"].targets), [], [])
    assert len(ids) == len(set(ids)) == 2


def test_what_an_earlier_session_annotated_is_marked_as_no_longer_failing(
    bitbucket: FakeBitbucket,
) -> None:
    """Replacing a report keeps its annotations, and the proxy deletes nothing.

    A red line for a test that passes now is a lie.
    """
    step(bitbucket.environ()).finish(report(verdict="failed", results=failures(3)))
    ci_step = step(bitbucket.environ())

    ci_step.finish(report(verdict="failed", results=failures(1)))
    ci_step.finish(
        report(verdict="failed", results=failures(1))
    )  # and a third session leaves it at that

    shown = {
        annotation["summary"]: annotation["result"] for annotation in bitbucket.annotations(*REPORT)
    }
    assert shown == {
        "test_0: assert 1 == 2": "FAILED",
        "no longer: test_1: assert 1 == 2": "PASSED",
        "no longer: test_2: assert 1 == 2": "PASSED",
    }
    assert len(bitbucket.seen("POST", "/annotations")[-1].body) == 1
    assert bitbucket.refused == []


def test_an_annotation_that_fails_again_is_a_failure_again(bitbucket: FakeBitbucket) -> None:
    """Its id is the test's, whatever its earlier result was."""
    ci_step = step(bitbucket.environ())
    for results in (failures(1), (a_result("test_0"),), failures(1)):
        ci_step.finish(
            report(verdict="failed" if results[0].problems else "passed", results=results)
        )

    assert [
        (annotation["summary"], annotation["result"])
        for annotation in bitbucket.annotations(*REPORT)
    ] == [("test_0: assert 1 == 2", "FAILED")]


def test_two_sessions_at_one_commit_never_need_more_annotations_than_there_is_room_for(
    bitbucket: FakeBitbucket,
) -> None:
    """With more failures than a report holds, the next session's are partly others.

    The old ones keep their places.
    """
    step(bitbucket.environ()).finish(report(verdict="failed", results=failures(1500)))

    updated, troubles = step(bitbucket.environ()).finish(
        report(verdict="failed", results=failures(1400, first=100))
    )

    shown = {
        annotation["summary"]: annotation["result"] for annotation in bitbucket.annotations(*REPORT)
    }
    assert (troubles, bitbucket.refused) == ([], [])
    assert "Code Insights report" in updated
    assert shown["no longer: test_0: assert 1 == 2"] == "PASSED"
    assert shown["test_999: assert 1 == 2"] == "FAILED"


def test_two_suites_at_one_commit_do_not_overwrite_each_other(bitbucket: FakeBitbucket) -> None:
    """A step for each kind of GPU is usual.

    Long names that begin alike stay two within Bitbucket's forty characters.
    """
    suites = (
        "gpu-cluster",
        "nightly-of-all-accelerators-in-region-eu-1",
        "nightly-of-all-accelerators-in-region-eu-2",
    )
    for suite in suites:
        step(bitbucket.environ(), suite=suite).finish(as_ended("failed", suite=suite))

    assert len(bitbucket.statuses) == len(bitbucket.reports) == len(bitbucket.comments) == 3
    assert all(len(key) <= 40 for _, key in bitbucket.statuses)
    assert bitbucket.refused == []
