"""The pipeline step that the environment describes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract.request import CI
from pytest_gpu_cluster.contract.settings import ReportSettings, Settings
from pytest_gpu_cluster.publish import detect, publisher
from tests.hosts.github import MERGE_COMMIT
from tests.unit.publish.rig import BITBUCKET, BITBUCKET_STEP, COMMIT, KINDS

ON_BITBUCKET = CI(
    host="bitbucket",
    api="https://api.bitbucket.org/2.0",
    repository="acme/aerial",
    commit=COMMIT,
    build="acme/aerial/118",
    step_url=BITBUCKET_STEP,
    directory="/build",
)
GITHUB = {
    "CI": "true",
    "GITHUB_ACTIONS": "true",
    "GITHUB_REPOSITORY": "acme/aerial",
    "GITHUB_SHA": MERGE_COMMIT,
    "GITHUB_REF_NAME": "7/merge",
    "GITHUB_HEAD_REF": "feature/tiles",
    "GITHUB_EVENT_NAME": "pull_request",
    "GITHUB_EVENT_PATH": "event.json",
    "GITHUB_RUN_ID": "91",
    "GITHUB_RUN_ATTEMPT": "2",
    "GITHUB_WORKSPACE": "/work",
    "GITHUB_ACTOR": "ann",
}
PUSH = {
    **GITHUB,
    "GITHUB_SHA": COMMIT,
    "GITHUB_REF_NAME": "main",
    "GITHUB_HEAD_REF": "",
    "GITHUB_EVENT_NAME": "push",
}
ON_GITHUB = CI(
    host="github",
    api="https://api.github.com",
    repository="acme/aerial",
    commit=COMMIT,
    branch="feature/tiles",
    target="main",
    pull_request="7",
    build="acme/aerial/91",
    step_url="https://github.com/acme/aerial/actions/runs/91/attempts/2",
    directory="/work",
)
PUSHED = dataclasses.replace(ON_GITHUB, branch="main", target="", pull_request="")
GITLAB = {
    "CI": "true",
    "GITLAB_CI": "true",
    "CI_PROJECT_ID": "42",
    "CI_COMMIT_SHA": COMMIT,
    "CI_COMMIT_REF_NAME": "main",
    "CI_PIPELINE_ID": "5512",
    "CI_JOB_URL": "https://gitlab.example.com/acme/aerial/-/jobs/1",
    "CI_PROJECT_DIR": "/builds",
}
ON_GITLAB = CI(
    host="gitlab",
    api="https://gitlab.com/api/v4",
    repository="42",
    commit=COMMIT,
    branch="main",
    build="42/5512",
    step_url="https://gitlab.example.com/acme/aerial/-/jobs/1",
    directory="/builds",
    pipeline="5512",
)
MERGE_REQUEST = {
    **GITLAB,
    "CI_MERGE_REQUEST_IID": "7",
    "CI_MERGE_REQUEST_SOURCE_BRANCH_NAME": "feature/tiles",
    "CI_MERGE_REQUEST_TARGET_BRANCH_NAME": "main",
    "CI_MERGE_REQUEST_SOURCE_PROJECT_ID": "42",
    "CI_MERGE_REQUEST_PROJECT_ID": "42",
}
ON_MERGE_REQUEST = dataclasses.replace(
    ON_GITLAB, branch="feature/tiles", target="main", pull_request="7"
)


def pull_request(repository: str | None = "acme/aerial") -> str:
    """GitHub's event; the head's repository is None where it was deleted."""
    repo = None if repository is None else {"full_name": repository}
    return json.dumps(
        {
            "pull_request": {
                "number": 7,
                "head": {"sha": COMMIT, "repo": repo},
                "base": {"ref": "main"},
            }
        }
    )


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param(
            {**BITBUCKET, "BITBUCKET_BRANCH": "main"},
            dataclasses.replace(ON_BITBUCKET, branch="main"),
            id="branch",
        ),
        pytest.param({**BITBUCKET, "BITBUCKET_TAG": "v1"}, ON_BITBUCKET, id="tag"),
        pytest.param(
            {
                **BITBUCKET,
                "BITBUCKET_BRANCH": "feature/tiles",
                "BITBUCKET_PR_ID": "7",
                "BITBUCKET_PR_DESTINATION_BRANCH": "main",
            },
            dataclasses.replace(
                ON_BITBUCKET, branch="feature/tiles", pull_request="7", target="main"
            ),
            id="pull request",
        ),
        pytest.param(
            {
                **BITBUCKET,
                "BITBUCKET_REPO_FULL_NAME": "",
                "BITBUCKET_WORKSPACE": "acme",
                "BITBUCKET_REPO_SLUG": "aerial",
            },
            ON_BITBUCKET,
            id="name in two parts",
        ),
    ],
)
def test_a_step_on_bitbucket_is_known_from_its_environment(
    environ: dict[str, str], expected: CI
) -> None:
    """Each trigger sets other variables.

    A tag has no branch whose last session it could be compared with.
    """
    assert detect(environ) == expected


@pytest.mark.parametrize(
    ("environ", "event", "expected"),
    [
        pytest.param(PUSH, '{"ref": "refs/heads/main"}', PUSHED, id="push"),
        pytest.param(GITHUB, pull_request(), ON_GITHUB, id="pull request"),
        pytest.param(
            GITHUB, pull_request("eve/aerial"), dataclasses.replace(ON_GITHUB, fork=True), id="fork"
        ),
        pytest.param(
            GITHUB,
            pull_request(None),
            dataclasses.replace(ON_GITHUB, fork=True),
            id="fork that was deleted",
        ),
        pytest.param(
            {**GITHUB, "GITHUB_ACTOR": "dependabot[bot]"},
            pull_request(),
            dataclasses.replace(ON_GITHUB, fork=True),
            id="dependabot",
        ),
        pytest.param(
            {**GITHUB, "GITHUB_EVENT_NAME": "pull_request_target"},
            pull_request("eve/aerial"),
            ON_GITHUB,
            id="of the target",
        ),
    ],
)
def test_a_step_on_github_is_known_from_its_environment_and_its_event(
    environ: dict[str, str], event: str, expected: CI
) -> None:
    """GITHUB_SHA of a pull request is its merge with the target, where no reviewer looks.

    A fork's token may only read.
    """
    assert detect(environ, lambda path: event if path == "event.json" else "") == expected


@pytest.mark.parametrize(
    "event",
    [
        "",
        "{",
        "null",
        "[]",
        '"text"',
        '{"pull_request": null}',
        '{"pull_request": 3}',
        '{"pull_request": {}}',
    ],
)
def test_an_event_that_cannot_be_understood_makes_it_a_push(event: str) -> None:
    """Reporting is no reason to break a run, whatever the runner wrote."""
    detected = detect(PUSH, lambda _: event)

    assert detected == PUSHED


def test_an_event_file_that_is_missing_or_no_text_makes_it_a_push(tmp_path: Path) -> None:
    """A container that does not mount the runner's files has the variable and not the file."""
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")

    detected = [
        detect({**PUSH, "GITHUB_EVENT_PATH": str(tmp_path / name)})
        for name in ("missing", "bytes", "")
    ]

    assert detected == [PUSHED] * 3


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param(GITLAB, ON_GITLAB, id="branch"),
        pytest.param(MERGE_REQUEST, ON_MERGE_REQUEST, id="merge request"),
        pytest.param(
            {
                **MERGE_REQUEST,
                "CI_COMMIT_SHA": MERGE_COMMIT,
                "CI_MERGE_REQUEST_SOURCE_BRANCH_SHA": COMMIT,
            },
            ON_MERGE_REQUEST,
            id="merged results",
        ),
        pytest.param(
            {**MERGE_REQUEST, "CI_MERGE_REQUEST_SOURCE_PROJECT_ID": "77"},
            dataclasses.replace(ON_MERGE_REQUEST, fork=True),
            id="of a fork, in the project that it is for",
        ),
    ],
)
def test_a_job_on_gitlab_is_known_from_its_environment(
    environ: dict[str, str], expected: CI
) -> None:
    """A pipeline for merged results runs on a commit that is in no branch."""
    assert detect(environ) == expected


def test_a_merge_request_from_a_forks_own_pipeline_is_not_looked_for_in_the_fork() -> None:
    """Its number is the other project's.

    In the fork, the same number may be somebody else's merge request.
    """
    in_the_fork = {
        **MERGE_REQUEST,
        "CI_PROJECT_ID": "77",
        "CI_MERGE_REQUEST_SOURCE_PROJECT_ID": "77",
    }

    detected = detect(in_the_fork)

    assert detected is not None
    assert detected.fork or not detected.pull_request


@pytest.mark.parametrize(
    ("environ", "commit", "branch", "url"),
    [
        pytest.param(
            {"BUILD_URL": "https://j.example/9", "GIT_COMMIT": COMMIT, "GIT_BRANCH": "origin/main"},
            COMMIT,
            "main",
            "https://j.example/9",
            id="jenkins",
        ),
        pytest.param(
            {
                "CIRCLE_BUILD_URL": "https://c.example/9",
                "CIRCLE_SHA1": COMMIT,
                "CIRCLE_BRANCH": "main",
            },
            COMMIT,
            "main",
            "https://c.example/9",
            id="circle",
        ),
        pytest.param(
            {
                "BUILDKITE_BUILD_URL": "https://b.example/9",
                "BUILDKITE_COMMIT": COMMIT,
                "BUILDKITE_BRANCH": "main",
            },
            COMMIT,
            "main",
            "https://b.example/9",
            id="buildkite",
        ),
        pytest.param({}, "", "", "", id="unknown"),
    ],
)
def test_a_host_without_a_publisher_still_has_a_page_of_the_build(
    environ: dict[str, str], commit: str, branch: str, url: str
) -> None:
    """The JUnit file links to it, and results are kept by branch."""
    detected = detect({"CI": "true", **environ})

    assert detected == CI(host="other", commit=commit, branch=branch, step_url=url, build=url)
    assert publisher(detected, Settings(), environ) is None


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"CI": ""},
        {"CI": "false"},
        {"CI": "False"},
        {"CI": "0"},
        {"GIT_BRANCH": "main", "HOME": "/home"},
    ],
)
def test_a_laptop_is_no_ci(environ: dict[str, str]) -> None:
    """Nobody wants a comment for a run at the desk."""
    assert detect(environ) is None


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_is_told_where_publishing_is_off(kind: str, tmp_path: Path) -> None:
    """`publish = false` is one setting for all hosts."""
    with KINDS[kind].make() as host:
        environ = KINDS[kind].environ(host, tmp_path)
        ci = detect(environ)

        assert ci is not None
        assert publisher(ci, Settings(reports=ReportSettings(publish=False)), environ) is None


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_is_part_of_where_this_runs(kind: str, tmp_path: Path) -> None:
    """It goes into the session's record, which everybody who may read the store can read."""
    with KINDS[kind].make() as host:
        names = (
            "BITBUCKET_TOKEN",
            "BITBUCKET_STEP_OIDC_TOKEN",
            "GITHUB_TOKEN",
            "GITLAB_TOKEN",
            "CI_JOB_TOKEN",
            "CI_REGISTRY_PASSWORD",
        )
        environ = {
            **KINDS[kind].environ(host, tmp_path),
            **{name: f"value-of-{name}" for name in names},
        }

        detected = detect(environ)

    assert detected is not None
    assert "value-of" not in repr(detected)
    assert "value-of" not in json.dumps(dataclasses.asdict(detected))
