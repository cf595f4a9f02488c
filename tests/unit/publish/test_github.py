"""GitHub: status, check run and files, against a host that refuses what the real one refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpu_cluster.report import render
from tests.hosts import FakeGitHub, job_summary, workflow_commands
from tests.unit.publish.rig import (
    COMMIT,
    KINDS,
    PAGE,
    SESSION,
    VERDICTS,
    as_ended,
    failures,
    report,
    step,
    write_files,
)

GITHUB_STATES = {"running": "pending", "passed": "success", "failed": "failure"}
CONCLUSIONS = {
    "passed": "success",
    "failed": "failure",
    "cancelled": "cancelled",
    "request": "failure",
}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_github_has_a_state_for_each_verdict(
    github: FakeGitHub, tmp_path: Path, verdict: str
) -> None:
    """`failure` is the tests', `error` is everything else's.

    It is posted where a reviewer looks, not at the merge.
    """
    ci_step = step(github.environ(tmp_path))

    troubles = (ci_step.start if verdict == "running" else ci_step.finish)(as_ended(verdict))[1]

    commit_status = github.statuses[-1]
    assert (commit_status["state"], commit_status["context"], commit_status["target_url"]) == (
        GITHUB_STATES.get(verdict, "error"),
        "gpu-cluster",
        PAGE,
    )
    assert commit_status["sha"] == COMMIT != github.merge_commit
    assert commit_status["description"] == render.headline(as_ended(verdict))
    assert (github.check_runs, troubles, github.refused) == ([], [], [])


@pytest.mark.parametrize("verdict", VERDICTS[1:])
def test_a_check_run_is_opened_and_concluded_where_it_is_asked_for(
    github: FakeGitHub, tmp_path: Path, verdict: str
) -> None:
    """One for a session: a second one beside it would stay yellow for ever."""
    ci_step = step(github.environ(tmp_path), check_run=True)
    ci_step.start()
    opened = [(run["status"], run["conclusion"]) for run in github.check_runs]

    updated, troubles = ci_step.finish(as_ended(verdict))

    ended = github.check_runs[-1]
    assert opened == [("in_progress", None)]
    assert len(github.check_runs) == 1
    assert (ended["status"], ended["conclusion"]) == (
        "completed",
        CONCLUSIONS.get(verdict, "failure"),
    )
    assert (ended["head_sha"], ended["details_url"]) == (COMMIT, PAGE)
    assert len(ended["output"]["annotations"]) == (verdict == "failed")
    assert (updated, troubles, github.refused) == (list(KINDS["github"].targets), [], [])


def test_a_check_run_takes_a_thousand_annotations_in_fifties(
    github: FakeGitHub, tmp_path: Path
) -> None:
    """Fifty is GitHub's limit for a request; they are added to those that are there."""
    ci_step = step(github.environ(tmp_path), check_run=True)
    ci_step.start()

    updated, troubles = ci_step.finish(report(verdict="failed", results=failures(3000)))

    shown = [annotation["title"] for annotation in github.check_runs[0]["output"]["annotations"]]
    assert shown == [f"tests/test_tiles.py::test_{number}" for number in range(1000)]
    assert (updated, troubles, github.refused) == (list(KINDS["github"].targets), [], [])


def test_a_session_that_was_told_already_gets_no_second_set_of_annotations(
    github: FakeGitHub, tmp_path: Path
) -> None:
    """`gpu-cluster report --publish` in a later step leaves the client's check run as it is."""
    step(github.environ(tmp_path), check_run=True).finish(as_ended("failed"))

    step(github.environ(tmp_path), check_run=True).finish(as_ended("failed"))

    assert len(github.check_runs) == 1
    assert len(github.check_runs[0]["output"]["annotations"]) == 1


def test_the_check_run_of_a_killed_client_is_concluded_by_another_process(
    github: FakeGitHub, tmp_path: Path
) -> None:
    """It is found by its name and its session, as the process that opened it is gone.

    Another session's is left alone.
    """
    step(github.environ(tmp_path), check_run=True).start(as_ended("running", session="another"))
    step(github.environ(tmp_path), check_run=True).start()

    step(github.environ(tmp_path), check_run=True).finish(as_ended("infrastructure"))

    assert [(run["external_id"], run["status"]) for run in github.check_runs] == [
        ("another", "in_progress"),
        (SESSION, "completed"),
    ]


@pytest.mark.parametrize("how", [{"token": False}, {"fork": True}], ids=["no token", "fork"])
def test_without_a_token_that_may_write_github_gets_files_and_commands_alone(
    github: FakeGitHub, tmp_path: Path, how: dict[str, bool]
) -> None:
    """Every request would be a refusal in the log of each contributor's run."""
    ci_step = step(github.environ(tmp_path, **how), check_run=True)

    ci_step.start()
    updated, troubles = ci_step.finish(as_ended("failed"))
    write_files(ci_step.publisher, as_ended("failed"))

    assert (updated, troubles, github.requests) == ([], [], [])
    assert "test_breaks" in job_summary(tmp_path / "step_summary.md")
    assert any(
        entry.name == "error"
        for entry in workflow_commands("\n".join(ci_step.publisher.closing(as_ended("failed"))))
    )


def test_a_description_is_cut_to_what_github_takes(github: FakeGitHub, tmp_path: Path) -> None:
    """A status with 141 characters is refused as a whole.

    With it goes the one thing that holds the merge.
    """
    step(github.environ(tmp_path)).finish(report(verdict="infrastructure", message="ö" * 5000))

    assert len(github.statuses[-1]["description"]) == 140
    assert github.statuses[-1]["description"].endswith("…")
    assert github.refused == []


def test_the_outputs_of_a_github_step_are_one_line_each(github: FakeGitHub, tmp_path: Path) -> None:
    """A later step reads them by name; a line break in a value would set another variable."""
    ci_step = step(github.environ(tmp_path, token=False))

    write_files(ci_step.publisher, as_ended("failed", link=f"{PAGE}\nPATH=/evil"))

    assert (tmp_path / "output.txt").read_text().splitlines() == [
        f"session={SESSION}",
        "verdict=failed",
        f"link={PAGE} PATH=/evil",
        "exit-code=1",
    ]
