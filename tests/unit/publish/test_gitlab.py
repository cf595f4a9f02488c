"""GitLab: status and files, against a host that refuses what the real one refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpu_cluster.publish.links import link
from pytest_gpu_cluster.report import render
from tests.hosts import FakeGitLab, JobLink, annotations_report
from tests.hosts.gitlab import JOB_ID, PIPELINE_ID
from tests.unit.publish.rig import (
    COMMIT,
    KINDS,
    PAGE,
    SESSION,
    VERDICTS,
    as_ended,
    report,
    step,
    write_files,
)

GITLAB_STATES = {"running": "running", "passed": "success", "cancelled": "canceled"}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_gitlab_has_a_state_for_each_verdict(
    gitlab: FakeGitLab, tmp_path: Path, verdict: str
) -> None:
    """It joins the pipeline that it is part of.

    One of its own would be a second pipeline for the same commit.
    """
    ci_step = step(gitlab.environ(tmp_path))

    troubles = (ci_step.start if verdict == "running" else ci_step.finish)(as_ended(verdict))[1]

    commit_status = gitlab.statuses[-1]
    assert (commit_status["status"], commit_status["name"], commit_status["target_url"]) == (
        GITLAB_STATES.get(verdict, "failed"),
        "gpu-cluster",
        PAGE,
    )
    assert (commit_status["sha"], commit_status["ref"], commit_status["pipeline_id"]) == (
        COMMIT,
        "feature/tiles",
        PIPELINE_ID,
    )
    assert commit_status["description"] == render.headline(as_ended(verdict))
    assert (gitlab.external_pipelines, troubles, gitlab.refused) == (0, [], [])


def test_the_status_of_gitlab_goes_from_running_to_its_end(
    gitlab: FakeGitLab, tmp_path: Path
) -> None:
    """The same status, not two beside each other."""
    ci_step = step(gitlab.environ(tmp_path))

    ci_step.start()
    ci_step.finish()

    assert [entry["status"] for entry in gitlab.statuses] == ["success"]


def test_an_older_gitlab_may_be_told_the_same_twice(tmp_path: Path) -> None:
    """It answers 400 to a state that it knows, which is no trouble."""
    with FakeGitLab(old=True) as host:
        ci_step = step(host.environ(tmp_path))
        ci_step.start()

        updated, troubles = ci_step.start()

        assert [request.status for request in host.requests] == [201, 400]
        assert (updated, troubles) == (["commit status"], [])


@pytest.mark.parametrize("how", ["no token", "fork"])
def test_without_a_project_token_gitlab_gets_its_files_alone(
    gitlab: FakeGitLab, tmp_path: Path, how: str
) -> None:
    """A job's own token may neither set a status nor write a note, so it is not tried."""
    environ = gitlab.environ(tmp_path, token=how == "fork")
    ci_step = step(
        environ | ({"CI_MERGE_REQUEST_SOURCE_PROJECT_ID": "77"} if how == "fork" else {})
    )

    ci_step.start()
    updated, troubles = ci_step.finish(as_ended("failed"))
    write_files(ci_step.publisher, as_ended("failed"), tmp_path)

    assert (updated, troubles, gitlab.requests) == ([], [], [])
    label = f"{SESSION}: 1 failed, 1 passed in 1 min 23 s"
    assert annotations_report(tmp_path / "gpu-cluster-annotations.json") == [
        JobLink("GPU session", label, PAGE)
    ]


def test_a_job_of_gitlab_without_a_link_has_an_empty_annotations_report(
    gitlab: FakeGitLab, tmp_path: Path
) -> None:
    """The artifact is declared, so the file has to be there."""
    ci_step = step(gitlab.environ(tmp_path))

    write_files(ci_step.publisher, report(link="", own_page=False), tmp_path)

    assert annotations_report(tmp_path / "gpu-cluster-annotations.json") == []
    assert ci_step.publisher.files(report(), None) == []


def test_a_link_that_is_too_long_for_gitlab_does_not_cost_the_status(
    gitlab: FakeGitLab, tmp_path: Path
) -> None:
    """255 characters; the status holds the merge, the link only helps."""
    updated, troubles = step(gitlab.environ(tmp_path)).finish(
        report(link=f"https://gpu.example.com/{'x' * 300}")
    )

    assert "target_url" not in gitlab.statuses[-1] or gitlab.statuses[-1]["target_url"] is None
    assert (updated, troubles, gitlab.refused) == (list(KINDS["gitlab"].targets), [], [])


def test_the_link_falls_back_to_the_job_of_gitlab(gitlab: FakeGitLab, tmp_path: Path) -> None:
    """Without a public page, the log of the job is the best place."""
    ci_step = step(gitlab.environ(tmp_path))
    url, is_own_page = link("", SESSION, ci_step.ci)

    ci_step.finish(report(link=url, own_page=is_own_page))

    assert (
        gitlab.statuses[-1]["target_url"]
        == f"https://gitlab.example.com/acme/aerial/-/jobs/{JOB_ID}"
    )
