"""The comment on a pull request that is edited in place, at all hosts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pytest_gpu_cluster.publish import comment
from pytest_gpu_cluster.report.model import Report
from tests.hosts import status
from tests.unit.publish.rig import (
    DIFFERENT,
    KINDS,
    OURS,
    SAME,
    SESSION,
    as_ended,
    failing,
    report,
    step,
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_comment_is_made_once_and_edited_in_place(kind: str, tmp_path: Path) -> None:
    """Twenty pushes make one comment, not twenty mails."""
    of = KINDS[kind]
    with of.make() as host:
        first = step(of.environ(host, tmp_path)).finish(as_ended("failed"))
        comments = of.comments(host)

        second = step(of.environ(host, tmp_path)).finish(report(session="20261102-100000-2222"))

        assert of.comment in first[0]
        assert of.comment in second[0]
        assert ("❌" in comments[0], "test_breaks" in comments[0], SESSION in comments[0]) == (
            True,
            True,
            True,
        )
        assert len(of.comments(host)) == 1
        assert ("✅" in of.comments(host)[0], "20261102-100000-2222" in of.comments(host)[0]) == (
            True,
            True,
        )
        assert (first[1], second[1], host.refused) == ([], [], [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_comment_that_says_it_already_is_not_written_again(kind: str, tmp_path: Path) -> None:
    """`report --publish` after a client that was not killed has nothing to say."""
    of = KINDS[kind]
    with of.make() as host:
        step(of.environ(host, tmp_path)).finish()

        updated, troubles = step(of.environ(host, tmp_path)).finish()

        assert (of.comment in updated, troubles) == (True, [])
        assert host.seen(*of.edited_by) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_comment_is_found_among_hundreds_and_no_reply_that_quotes_it_is_touched(
    kind: str, tmp_path: Path
) -> None:
    """Lists come in pages; and a person who quotes us wrote that text."""
    of = KINDS[kind]
    with of.make() as host:
        for number in range(125):
            of.add(host, f"A remark, number {number}.")
        step(of.environ(host, tmp_path)).finish()
        (ours,) = (text for text in of.comments(host) if OURS in text)
        quoted = "\n".join(f"> {line}" for line in ours.splitlines())
        replies = [
            f"{quoted}\n\nWhat is this?",
            f"What is this?\n\n{quoted}",
            f"What is this?\n{quoted}\n",
        ]
        for text in [*replies, *(f"Another remark, number {number}." for number in range(125))]:
            of.add(host, text)

        updated, troubles = step(of.environ(host, tmp_path)).finish(as_ended("failed"))

        assert (of.comment in updated, troubles, host.refused) == (True, [], [])
        assert len(of.comments(host)) == 254
        assert [text for text in of.comments(host) if "❌" in text and text not in replies] != []
        assert [text for text in of.comments(host) if text in replies] == replies
        assert ours not in of.comments(host)


@pytest.mark.parametrize("kind", KINDS)
def test_a_comment_that_was_deleted_is_made_anew(kind: str, tmp_path: Path) -> None:
    """Whoever deleted it got rid of an old one; the next run has something new to say."""
    of = KINDS[kind]
    with of.make() as host:
        step(of.environ(host, tmp_path)).finish()
        of.delete_last(host)

        updated, troubles = step(of.environ(host, tmp_path)).finish(as_ended("failed"))

        assert (of.comment in updated, troubles, len(of.comments(host)), host.refused) == (
            True,
            [],
            1,
            [],
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_comment_that_is_deleted_while_it_is_looked_for_is_made_anew(
    kind: str, tmp_path: Path
) -> None:
    """Between the list and the edit there is time."""
    of = KINDS[kind]
    with of.make() as host:
        step(of.environ(host, tmp_path)).finish()
        host.fault(of.edited_by, status(404))

        updated, troubles = step(of.environ(host, tmp_path)).finish(as_ended("failed"))

        assert (of.comment in updated, troubles) == (True, [])
        assert len(of.comments(host)) == 2  # the fake deletes nothing on its own


@pytest.mark.parametrize("kind", KINDS)
def test_a_comment_of_another_account_is_replaced_by_one_that_stays(
    kind: str, tmp_path: Path
) -> None:
    """A new access token is a new account.

    It cannot edit what the old one wrote, and must not write a new one for each run.
    """
    of = KINDS[kind]
    with of.make() as host:
        step(of.environ(host, tmp_path)).finish()
        (theirs,) = of.comments(host)
        of.delete_last(host)
        of.add(host, theirs)  # the same words, of somebody else

        results = [
            step(of.environ(host, tmp_path)).finish(as_ended("failed", session=f"session-{number}"))
            for number in range(3)
        ]

        assert [(of.comment in updated, troubles) for updated, troubles in results] == [
            (True, [])
        ] * 3
        assert len(of.comments(host)) == 2
        assert of.comments(host)[0] == theirs
        assert "session-2" in of.comments(host)[1]


RUNS = {
    "passed": as_ended("passed"),
    "failed": as_ended("failed"),
    "infrastructure": as_ended("infrastructure"),
}
DELTAS = {"nothing to compare with": None, "no difference": SAME, "different": DIFFERENT}


@pytest.mark.parametrize("exists", [True, False], ids=["there", "not there"])
@pytest.mark.parametrize("compared", DELTAS)
@pytest.mark.parametrize("verdict", RUNS)
@pytest.mark.parametrize("mode", ["always", "changes", "failures", "off"])
def test_when_a_comment_is_wanted(mode: str, verdict: str, compared: str, exists: bool) -> None:
    """One that is there is kept up to date, as its old words would be wrong.

    Else the mode decides.
    """
    final = dataclasses.replace(RUNS[verdict], delta=DELTAS[compared])

    posts = comment.should_post(mode, final, exists=exists)

    match mode:
        case "always":
            assert posts
        case "off":
            assert not posts
        case "failures":
            assert posts == (exists or verdict != "passed")
        case "changes":
            news = compared == "different" or (
                compared == "nothing to compare with" and verdict != "passed"
            )
            assert posts == (exists or news)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("mode", "runs", "icon"),
    [
        ("always", [as_ended("passed")], "✅"),
        ("off", [as_ended("failed")], ""),
        ("failures", [as_ended("passed")], ""),
        ("failures", [as_ended("failed"), as_ended("passed")], "✅"),
        ("changes", [as_ended("passed", delta=SAME)], ""),
        ("changes", [as_ended("failed", delta=SAME)], ""),
        ("changes", [as_ended("failed", delta=DIFFERENT)], "❌"),
        ("changes", [as_ended("failed", delta=DIFFERENT), as_ended("passed", delta=SAME)], "✅"),
    ],
)
def test_a_mode_holds_at_every_host(
    kind: str, mode: str, runs: list[Report], icon: str, tmp_path: Path
) -> None:
    """The same setting in the same project file, wherever its pipelines run."""
    of = KINDS[kind]
    with of.make() as host:
        for number, final in enumerate(runs):
            step(of.environ(host, tmp_path), comment=mode).finish(
                dataclasses.replace(final, session=f"session-{number}")
            )

        assert [icon in text for text in of.comments(host)] == ([True] if icon else [])
        assert host.refused == []


@pytest.mark.parametrize("kind", KINDS)
def test_three_thousand_failures_fit_a_comment(kind: str, tmp_path: Path) -> None:
    """Each host has its own limit; a comment that is too long is none.

    It says how many are left out.
    """
    of = KINDS[kind]
    many = tuple(
        failing(f"test_{number}[{'é漢' * 20}]", text="E   ü漢字\n" * 300) for number in range(3000)
    )
    with of.make() as host:
        updated, troubles = step(of.environ(host, tmp_path)).finish(
            report(verdict="failed", results=many)
        )

        assert (of.comment in updated, troubles, host.refused) == (True, [], [])
        (text,) = of.comments(host)
        assert "3000 failed" in text
        assert (
            "more failures; all of them are in the JUnit file" in text
            or text.count("test_tiles.py::test_") >= 3000
        )
