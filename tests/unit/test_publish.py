"""What CI hosts are told: each publisher against a host that refuses what the real one refuses."""

from __future__ import annotations

import base64
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpu_cluster.contract.model import CI, Settings
from pytest_gpu_cluster.publish import Publisher, comment, detect, link, publisher, reachable
from pytest_gpu_cluster.publish.github import command
from pytest_gpu_cluster.publish.http import Door, Sender
from pytest_gpu_cluster.publish.sender import Courier
from pytest_gpu_cluster.report import render
from pytest_gpu_cluster.report.model import NOT_TESTS, Delta, Problem, Report, Result
from tests.hosts import (
    Command,
    FakeBitbucket,
    FakeGitHub,
    FakeGitLab,
    Fault,
    JobLink,
    annotations_report,
    job_summary,
    slow,
    status,
    workflow_commands,
)
from tests.hosts.github import MERGE_COMMIT, SUMMARY_BYTES
from tests.hosts.gitlab import JOB_ID, PIPELINE_ID

COMMIT = "a" * 40
SESSION = "20261102-090000-1f2e"
PUBLIC = "https://gpu.example.com/sessions"
PAGE = f"{PUBLIC}/{SESSION}"
MACHINES_FAULT = "node 2 was lost"
CLOSED = "http://127.0.0.1:1"  # nobody listens there
BITBUCKET_STEP = "https://bitbucket.org/acme/aerial/pipelines/results/118/steps/%7Bb7a4d2e9-93c1-47aa-b1e6-0f5e8d7c6b03%7D"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the machine that these tests run on is none of theirs."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def bitbucket() -> Iterator[FakeBitbucket]:
    with FakeBitbucket() as host:
        yield host


@pytest.fixture
def github() -> Iterator[FakeGitHub]:
    with FakeGitHub() as host:
        yield host


@pytest.fixture
def gitlab() -> Iterator[FakeGitLab]:
    with FakeGitLab() as host:
        yield host


# What is told.


def a_result(name: str = "test_fits", **changes: Any) -> Result:
    known = {
        "nodeid": f"tests/test_tiles.py::{name}",
        "file": "tests/test_tiles.py",
        "line": 12,
        "classname": "tests.test_tiles",
    }
    return Result(**{**known, "name": name, "outcome": "passed", **changes})


def failing(
    name: str = "test_breaks",
    *,
    message: str = "assert 1 == 2",
    text: str = "E   assert 1 == 2",
    **changes: Any,
) -> Result:
    """`failure_class` and `problem_line` are the problem's; all else is the result's."""
    whose, line = changes.pop("failure_class", "test"), changes.pop("problem_line", 0)
    problem = Problem(when="call", failure_class=whose, message=message, text=text, line=line)
    return a_result(name, **{"outcome": "failed", "problems": (problem,), **changes})


def report(**changes: Any) -> Report:
    known: dict[str, Any] = {
        "session": SESSION,
        "suite": "gpu-cluster",
        "verdict": "passed",
        "link": PAGE,
        "own_page": True,
        "duration_s": 83.4,
        "collected": 2,
        "results": (a_result(), a_result("test_too")),
        "gpus": ("NVIDIA L4", "NVIDIA L4"),
        "branch": "feature/tiles",
        "commit": COMMIT,
    }
    return Report(**{**known, **changes})


def as_ended(verdict: str, **changes: Any) -> Report:
    """A session that came to this verdict in the way in which sessions do."""
    match verdict:
        case "running":
            return report(
                verdict=verdict, results=(), collected=None, duration_s=0.0, gpus=(), **changes
            )
        case "failed":
            return report(verdict=verdict, exit_code=1, results=(failing(), a_result()), **changes)
        case "passed" | "cancelled":
            return report(verdict=verdict, **changes)
        case _:
            why = {
                "message": MACHINES_FAULT,
                "remedy": "run it again",
                "exit_code": 10,
                "results": (),
            }
            return report(verdict=verdict, **{**why, **changes})


def on_the_way(collected: int) -> Report:
    return report(verdict="running", collected=collected, results=(failing(), a_result()))


def failures(count: int, first: int = 0) -> tuple[Result, ...]:
    return tuple(failing(f"test_{number}") for number in range(first, first + count))


DIFFERENT = Delta(
    branch="main",
    session="20261101-090000-0a0b",
    commit="d" * 40,
    newly_failing=("tests/test_tiles.py::test_breaks",),
)
SAME = Delta(branch="main", session="20261101-090000-0a0b")


# Who tells it.


@dataclass(frozen=True)
class Step:
    """A step of a pipeline, as far as it tells its host something."""

    ci: CI
    publisher: Publisher
    courier: Courier

    def start(self, told: Report | None = None) -> tuple[list[str], list[str]]:
        return self.courier.deliver(
            self.publisher.started(told or as_ended("running")), within_s=10
        )

    def finish(
        self, told: Report | None = None, *, within_s: float = 10
    ) -> tuple[list[str], list[str]]:
        return self.courier.deliver(self.publisher.finished(told or report()), within_s=within_s)


def step(environ: Mapping[str, str], **settings: Any) -> Step:
    ci = detect(environ)
    assert ci is not None
    made = publisher(ci, Settings(**settings), environ)
    assert made is not None
    return Step(ci, made, Courier(made))


@dataclass(frozen=True)
class Kind:
    """What the three hosts have in common, so that one test can ask it of all. `comment` is what the sticky one is called."""

    make: Callable[[], Any]
    environ: Callable[[Any, Path], dict[str, str]]
    surfaces: tuple[str, ...]
    comment: str
    comments: Callable[[Any], list[str]]
    add: Callable[[Any, str], Any]
    delete_last: Callable[[Any], Any]
    edited_by: tuple[str, str]  # method and path of a request that edits a comment


KINDS = {
    "bitbucket": Kind(
        make=FakeBitbucket,
        environ=lambda host, _: dict(host.environ()),
        surfaces=("Code Insights report", "commit status", "pull request comment"),
        comment="pull request comment",
        comments=lambda host: [
            one["content"]["raw"] for one in host.comments if not one["deleted"]
        ],
        add=lambda host, text: host.add_comment(text),
        delete_last=lambda host: host.comments[-1].update(deleted=True, content={"raw": ""}),
        edited_by=("PUT", r"/comments/\d+$"),
    ),
    "github": Kind(
        make=FakeGitHub,
        environ=lambda host, path: dict(host.environ(path)),
        surfaces=("commit status", "check run", "pull request comment"),
        comment="pull request comment",
        comments=lambda host: [one["body"] for one in host.comments],
        add=lambda host, text: host.add_comment(text),
        delete_last=lambda host: host.comments.pop(),
        edited_by=("PATCH", r"/comments/\d+$"),
    ),
    "gitlab": Kind(
        make=FakeGitLab,
        environ=lambda host, path: dict(host.environ(path)),
        surfaces=("commit status", "merge request note"),
        comment="merge request note",
        comments=lambda host: [one["body"] for one in host.notes],
        add=lambda host, text: host.add_note(text),
        delete_last=lambda host: host.notes.pop(),
        edited_by=("PUT", r"/notes/\d+$"),
    ),
}
OURS = "GPU tests"  # stands in every comment of ours, and in none that these tests add


def kept(publisher: Publisher, told: Report, directory: Path | None = None) -> None:
    """Write a publisher's files as a session does."""
    for path, text, append in publisher.files(told, directory):
        with path.open("a" if append else "w", encoding="utf-8") as file:
            file.write(text)


# 1. Where this runs.

BITBUCKET = {
    "CI": "true",
    "BITBUCKET_BUILD_NUMBER": "118",
    "BITBUCKET_REPO_FULL_NAME": "acme/aerial",
    "BITBUCKET_COMMIT": COMMIT,
    "BITBUCKET_STEP_UUID": "{b7a4d2e9-93c1-47aa-b1e6-0f5e8d7c6b03}",
    "BITBUCKET_CLONE_DIR": "/build",
}
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
    """Each trigger sets other variables; a tag has no branch whose last session it could be compared with."""
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
    """GITHUB_SHA of a pull request is its merge with the target, where no reviewer looks; a fork's token may only read."""
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
    found = detect(PUSH, lambda _: event)

    assert found == PUSHED


def test_an_event_file_that_is_missing_or_no_text_makes_it_a_push(tmp_path: Path) -> None:
    """A container that does not mount the runner's files has the variable and not the file."""
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")

    found = [
        detect({**PUSH, "GITHUB_EVENT_PATH": str(tmp_path / name)})
        for name in ("missing", "bytes", "")
    ]

    assert found == [PUSHED] * 3


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
    """Its number is the other project's: in the fork, the same number may be somebody else's merge request."""
    in_the_fork = {
        **MERGE_REQUEST,
        "CI_PROJECT_ID": "77",
        "CI_MERGE_REQUEST_SOURCE_PROJECT_ID": "77",
    }

    found = detect(in_the_fork)

    assert found is not None
    assert found.fork or not found.pull_request


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
    found = detect({"CI": "true", **environ})

    assert found == CI(host="other", commit=commit, branch=branch, step_url=url, build=url)
    assert publisher(found, Settings(), environ) is None


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
        assert publisher(ci, Settings(publish=False), environ) is None


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

        found = detect(environ)

    assert found is not None
    assert "value-of" not in repr(found)
    assert "value-of" not in json.dumps(dataclasses.asdict(found))


# 2. Links.


@pytest.mark.parametrize(
    ("url", "works"),
    [
        ("https://gpu.example.com/sessions/1", True),
        ("http://10.20.0.7:8080/x", True),
        ("http://[2001:db8::1]/x", True),
        ("HTTPS://CI.EXAMPLE.COM/", True),
        ("file:///builds/x.html", False),
        ("/builds/x.html", False),
        ("s3://bucket/x", False),
        ("http://localhost:8265/", False),
        ("http://LOCALHOST/", False),
        ("http://ray.localhost/", False),
        ("http://localhost./", False),
        ("http://127.0.0.1:8265/", False),
        ("http://127.8.9.1/", False),
        ("http://[::1]:8265/", False),
        ("http://0.0.0.0:8265/", False),
        ("http://[::]/", False),
        ("http://169.254.169.254/", False),
        ("http://buildbox:8080/x", False),
        ("http://buildbox./x", False),
        ("https:///x", False),
        ("http://[/", False),
        ("", False),
    ],
)
def test_a_link_works_on_another_machine(url: str, works: bool) -> None:
    """Bitbucket answers a whole status with 400 for a bare host name, and a link to the runner itself helps no reviewer."""
    assert reachable(url) is works


@pytest.mark.parametrize(
    ("public_url", "expected"),
    [
        (PUBLIC, (PAGE, True)),
        (f"{PUBLIC}/", (PAGE, True)),
        ("", (BITBUCKET_STEP, False)),
        ("http://localhost:8000", (BITBUCKET_STEP, False)),
        ("file:///builds", (BITBUCKET_STEP, False)),
    ],
)
def test_the_link_is_the_sessions_page_where_others_can_open_it_and_else_the_step(
    public_url: str, expected: tuple[str, bool]
) -> None:
    """Braces of a UUID are percent-encoded: Bitbucket would put a value in their place."""
    assert link(public_url, SESSION, detect(BITBUCKET)) == expected


def test_there_is_no_link_where_nobody_could_follow_it() -> None:
    """A laptop has no step, and a Jenkins at a bare host name none that helps."""
    jenkins = detect({"CI": "true", "BUILD_URL": "http://jenkins:8080/job/9"})

    assert link("", SESSION, None) == link("", SESSION, jenkins) == ("", False)
    assert link(PUBLIC, SESSION, None) == (PAGE, True)


# 3. Bitbucket.

REPORT = (COMMIT, "gpu-cluster")
BITBUCKET_STATES = {
    "running": ("INPROGRESS", "PENDING"),
    "passed": ("SUCCESSFUL", "PASSED"),
    "cancelled": ("STOPPED", "FAILED"),
}
VERDICTS = ("running", "passed", "failed", "cancelled", "request", *NOT_TESTS)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_bitbucket_has_a_state_for_each_verdict(bitbucket: FakeBitbucket, verdict: str) -> None:
    """Merge checks look at these words; a cancelled run is neither good nor bad, and a lost machine is not good."""
    made, told = step(bitbucket.environ()), as_ended(verdict)

    troubles = (made.start if verdict == "running" else made.finish)(told)[1]

    state, result = BITBUCKET_STATES.get(verdict, ("FAILED", "FAILED"))
    held, shown = bitbucket.statuses[COMMIT, "gpu-cluster"], bitbucket.reports[REPORT]
    assert (held["state"], held["url"], held["refname"]) == (state, PAGE, "feature/tiles")
    assert (shown["result"], shown["link"], shown["report_type"]) == (result, PAGE, "TEST")
    assert held["description"] == render.headline(told)
    assert render.headline(told) in shown["details"]
    assert (troubles, bitbucket.refused) == ([], [])


def test_whose_fault_it_was_is_in_bitbuckets_words(bitbucket: FakeBitbucket) -> None:
    """Its states know no difference between a failed test and a lost machine; the reader should, at once."""
    step(bitbucket.environ()).finish(as_ended("infrastructure"))

    held, shown = bitbucket.statuses[COMMIT, "gpu-cluster"], bitbucket.reports[REPORT]
    assert held["description"] == f"not your tests (infrastructure): {MACHINES_FAULT}"
    assert "Remedy: run it again" in shown["details"]


def test_without_any_credential_bitbucket_gets_a_report_through_the_proxy_and_nothing_else(
    bitbucket: FakeBitbucket,
) -> None:
    """Zero configuration: the proxy of Pipelines takes reports and annotations alone."""
    made = step(bitbucket.environ(token=False))

    started, told = made.start(), made.finish(as_ended("failed"))

    assert (started, told) == ((["Code Insights report"], []),) * 2
    assert {one.via for one in bitbucket.requests} == {"proxy"}
    assert [one.body["result"] for one in bitbucket.seen("PUT")] == ["PENDING", "FAILED"]
    assert [one["summary"] for one in bitbucket.annotations(*REPORT)] == [
        "test_breaks: assert 1 == 2"
    ]
    assert (bitbucket.statuses, bitbucket.comments, bitbucket.refused) == ({}, [], [])


@pytest.mark.parametrize("email", [False, True], ids=["access token", "API token and e-mail"])
def test_with_a_token_bitbucket_gets_a_status_and_a_comment_too(email: bool) -> None:
    """The report stays on the proxy's way; the token goes to the API alone, in the form that its kind wants."""
    with FakeBitbucket(api_token="ATATT-of-a-user") as host:
        told, troubles = step(host.environ(email=email)).finish()

        user = base64.b64encode(b"ci@acme.example:ATATT-of-a-user").decode()
        assert {one.headers.get("authorization") for one in host.seen(path="/reports")} == {None}
        assert {one.headers["authorization"] for one in host.requests if one.via == "direct"} == {
            f"Basic {user}" if email else f"Bearer {host.token}"
        }
        assert told == list(KINDS["bitbucket"].surfaces)
        assert (troubles, host.refused, len(host.comments)) == ([], [], 1)


def test_without_a_proxy_the_token_is_used_for_the_report(bitbucket: FakeBitbucket) -> None:
    """A runner of one's own may have no proxy."""
    environ = bitbucket.environ() | {"BITBUCKET_PIPELINES_PROXY": CLOSED}

    told, troubles = step(environ).finish(as_ended("failed"))

    assert "Code Insights report" in told
    assert {one.via for one in bitbucket.seen(path="/reports")} == {"direct"}
    assert len(bitbucket.annotations(*REPORT)) == 1
    assert (troubles, bitbucket.refused) == ([], [])


def test_with_neither_proxy_nor_token_the_remedy_names_both(bitbucket: FakeBitbucket) -> None:
    """Nothing can be told, and that is said rather than hidden."""
    told, troubles = step(
        {**bitbucket.environ(token=False), "BITBUCKET_PIPELINES_PROXY": CLOSED}
    ).finish()

    assert told == []
    assert len(troubles) == 1
    assert f"no proxy answers at {CLOSED}" in troubles[0]
    assert "remedy: run this in a Pipelines step, or set BITBUCKET_TOKEN" in troubles[0]


def test_neither_a_proxy_nor_an_exception_of_the_environment_changes_the_way_of_the_report(
    bitbucket: FakeBitbucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_PROXY often names the whole world, HTTP_PROXY a company's proxy: neither knows of the one in the step."""
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1,.bitbucket.org")
    monkeypatch.setenv("HTTP_PROXY", CLOSED)

    told, troubles = step(bitbucket.environ()).finish()

    assert (told, troubles) == (list(KINDS["bitbucket"].surfaces), [])
    assert bitbucket.seen("PUT", "/reports/")[0].via == "proxy"


def test_a_build_of_a_branch_has_no_refname_and_no_comment(bitbucket: FakeBitbucket) -> None:
    """The name ties a status to a pull request; without one there is nothing to tie it to."""
    told, _ = step(bitbucket.environ(pull_request=False)).finish()

    assert told == ["Code Insights report", "commit status"]
    assert "refname" not in bitbucket.statuses[COMMIT, "gpu-cluster"]


def test_without_a_link_bitbucket_gets_no_status(bitbucket: FakeBitbucket) -> None:
    """It takes none without an address; the report and the comment need none."""
    told, troubles = step(bitbucket.environ()).finish(as_ended("failed", link="", own_page=False))

    assert (told, troubles, bitbucket.refused) == (
        ["Code Insights report", "pull request comment"],
        [],
        [],
    )
    assert f"gpu-cluster logs {SESSION}" in bitbucket.annotations(*REPORT)[0]["details"]


def test_braces_in_a_link_stay_what_they_are(bitbucket: FakeBitbucket) -> None:
    """Bitbucket would put the repository's name in the place of `{repository.full_name}`."""
    step(bitbucket.environ()).finish(
        report(link="https://gpu.example.com/{repository.full_name}/1")
    )

    assert (
        bitbucket.statuses[COMMIT, "gpu-cluster"]["url"]
        == "https://gpu.example.com/%7Brepository.full_name%7D/1"
    )
    assert bitbucket.refused == []


def test_on_the_way_only_the_report_of_bitbucket_changes(bitbucket: FakeBitbucket) -> None:
    """A status for each half minute would use up the hourly allowance of requests."""
    made = step(bitbucket.environ())

    made.courier.deliver(made.publisher.progressed(on_the_way(9)), within_s=10)

    assert bitbucket.statuses == {}
    assert bitbucket.reports[REPORT]["result"] == "PENDING"
    assert bitbucket.reports[REPORT]["details"] == "running: 2 of 9 tests, 1 failed, 1 passed"
    assert bitbucket.annotations(*REPORT) == []


def test_figures_of_a_report_have_the_units_of_bitbucket(bitbucket: FakeBitbucket) -> None:
    """A duration is in milliseconds, at most ten figures are shown, and unknown cost is not zero."""
    everything = as_ended("failed", price_usd=1.5, delta=DIFFERENT)

    step(bitbucket.environ()).finish(everything)

    shown = {one["title"]: one["value"] for one in bitbucket.reports[REPORT]["data"]}
    assert len(shown) <= 10
    assert shown["Session"] == {"text": SESSION, "href": PAGE}
    assert (shown["Duration"], shown["Failed"], shown["Passed"], shown["Cost"]) == (
        83_400,
        1,
        1,
        "1.50 USD",
    )
    assert shown["GPUs"] == "2 x NVIDIA L4"
    assert bitbucket.refused == []


def test_simulated_gpus_are_called_that(bitbucket: FakeBitbucket) -> None:
    """Nobody should merge a kernel because numbers without a GPU were green."""
    step(bitbucket.environ()).finish(report(simulated=True))

    assert "SIMULATED" in bitbucket.reports[REPORT]["details"]
    assert "SIMULATED" in KINDS["bitbucket"].comments(bitbucket)[0]


def test_an_annotation_leads_to_the_line_and_to_the_tests_part_of_the_page(
    bitbucket: FakeBitbucket,
) -> None:
    """Where the assertion is, not where the test begins; a link without an anchor where the page is the step's."""
    made = step(bitbucket.environ())

    made.finish(
        report(
            verdict="failed",
            results=(
                failing(problem_line=30),
                failing("test_elsewhere"),
                failing("test_nowhere", file=""),
            ),
        )
    )
    with_page = {one["summary"].partition(":")[0]: one for one in bitbucket.annotations(*REPORT)}
    made.finish(as_ended("failed", link=BITBUCKET_STEP, own_page=False))

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
    lost = failing(
        "test_lost",
        message="infrastructure: node lost",
        failure_class="infrastructure",
        outcome="error",
    )

    step(bitbucket.environ()).finish(
        report(verdict="infrastructure", message=MACHINES_FAULT, results=(lost, failing()))
    )

    own, other = bitbucket.annotations(*REPORT)
    assert (own["summary"], own["result"], own["severity"]) == (
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
    """Both are Bitbucket's limits, and what is not there is said."""
    told, troubles = step(bitbucket.environ()).finish(
        report(verdict="failed", results=failures(3000))
    )

    sent = [len(one.body) for one in bitbucket.seen("POST", "/annotations")]
    assert sent == [100] * 10
    assert len(bitbucket.annotations(*REPORT)) == 1000
    assert "1000 of 3000 failures are annotated" in bitbucket.reports[REPORT]["details"]
    assert (told, troubles, bitbucket.refused) == (list(KINDS["bitbucket"].surfaces), [], [])


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
        told, troubles = step(KINDS[kind].environ(host, tmp_path), check_run=True).finish(
            report(verdict="failed", results=HOSTILE, message="x" * 5000)
        )

        assert (told, troubles, host.refused) == (list(KINDS[kind].surfaces), [], [])


@pytest.mark.parametrize("room", [200, 2, 1, 0, -1, -100, -3_000])
def test_a_node_id_of_any_length_fits_an_annotation(bitbucket: FakeBitbucket, room: int) -> None:
    """Parameters make node ids of thousands of characters; details have room for two thousand in all, and `room` is what is left."""
    nodeid = (
        "tests/test_tiles.py::test_it[".ljust(2000 - len(f"Session: {PAGE}\n\n\n") - room - 1, "p")
        + "]"
    )

    told, troubles = step(bitbucket.environ(token=False)).finish(
        report(verdict="failed", results=(failing(nodeid=nodeid, text="E   no\n" * 1000),))
    )

    assert (told, troubles, bitbucket.refused) == (["Code Insights report"], [], [])
    assert len(bitbucket.annotations(*REPORT)) == 1


def test_a_test_that_was_collected_twice_is_annotated_once(bitbucket: FakeBitbucket) -> None:
    """`pytest --keep-duplicates a.py a.py`: two results of one name, and Bitbucket refuses a batch with one id twice."""
    told, troubles = step(bitbucket.environ()).finish(
        report(verdict="failed", results=(failing(), failing(), failing("test_other")))
    )

    ids = [one["external_id"] for one in bitbucket.annotations(*REPORT)]
    assert (told, troubles, bitbucket.refused) == (list(KINDS["bitbucket"].surfaces), [], [])
    assert len(ids) == len(set(ids)) == 2


def test_what_an_earlier_session_annotated_is_marked_as_no_longer_failing(
    bitbucket: FakeBitbucket,
) -> None:
    """Replacing a report keeps its annotations, and the proxy deletes nothing: a red line for a test that passes now is a lie."""
    step(bitbucket.environ()).finish(report(verdict="failed", results=failures(3)))
    made = step(bitbucket.environ())

    made.finish(report(verdict="failed", results=failures(1)))
    made.finish(
        report(verdict="failed", results=failures(1))
    )  # and a third session leaves it at that

    shown = {one["summary"]: one["result"] for one in bitbucket.annotations(*REPORT)}
    assert shown == {
        "test_0: assert 1 == 2": "FAILED",
        "no longer: test_1: assert 1 == 2": "PASSED",
        "no longer: test_2: assert 1 == 2": "PASSED",
    }
    assert len(bitbucket.seen("POST", "/annotations")[-1].body) == 1
    assert bitbucket.refused == []


def test_an_annotation_that_fails_again_is_a_failure_again(bitbucket: FakeBitbucket) -> None:
    """Its id is the test's, whatever was said of it before."""
    made = step(bitbucket.environ())
    for results in (failures(1), (a_result("test_0"),), failures(1)):
        made.finish(report(verdict="failed" if results[0].problems else "passed", results=results))

    assert [(one["summary"], one["result"]) for one in bitbucket.annotations(*REPORT)] == [
        ("test_0: assert 1 == 2", "FAILED")
    ]


def test_two_sessions_at_one_commit_never_need_more_annotations_than_there_is_room_for(
    bitbucket: FakeBitbucket,
) -> None:
    """With more failures than a report holds, the next session's are partly others: the old ones keep their places."""
    step(bitbucket.environ()).finish(report(verdict="failed", results=failures(1500)))

    told, troubles = step(bitbucket.environ()).finish(
        report(verdict="failed", results=failures(1400, first=100))
    )

    shown = {one["summary"]: one["result"] for one in bitbucket.annotations(*REPORT)}
    assert (troubles, bitbucket.refused) == ([], [])
    assert "Code Insights report" in told
    assert shown["no longer: test_0: assert 1 == 2"] == "PASSED"
    assert shown["test_999: assert 1 == 2"] == "FAILED"


def test_two_suites_at_one_commit_do_not_overwrite_each_other(bitbucket: FakeBitbucket) -> None:
    """A step for each kind of GPU is usual; long names that begin alike stay two within Bitbucket's forty characters."""
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


# 3. GitHub.

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
    """`failure` is the tests', `error` is everything else's; it is posted where a reviewer looks, not at the merge."""
    made = step(github.environ(tmp_path))

    troubles = (made.start if verdict == "running" else made.finish)(as_ended(verdict))[1]

    held = github.statuses[-1]
    assert (held["state"], held["context"], held["target_url"]) == (
        GITHUB_STATES.get(verdict, "error"),
        "gpu-cluster",
        PAGE,
    )
    assert held["sha"] == COMMIT != github.merge_commit
    assert held["description"] == render.headline(as_ended(verdict))
    assert (github.check_runs, troubles, github.refused) == ([], [], [])


@pytest.mark.parametrize("verdict", VERDICTS[1:])
def test_a_check_run_is_opened_and_concluded_where_it_is_asked_for(
    github: FakeGitHub, tmp_path: Path, verdict: str
) -> None:
    """One for a session: a second one beside it would stay yellow for ever."""
    made = step(github.environ(tmp_path), check_run=True)
    made.start()
    opened = [(one["status"], one["conclusion"]) for one in github.check_runs]

    told, troubles = made.finish(as_ended(verdict))

    ended = github.check_runs[-1]
    assert opened == [("in_progress", None)]
    assert len(github.check_runs) == 1
    assert (ended["status"], ended["conclusion"]) == (
        "completed",
        CONCLUSIONS.get(verdict, "failure"),
    )
    assert (ended["head_sha"], ended["details_url"]) == (COMMIT, PAGE)
    assert len(ended["output"]["annotations"]) == (verdict == "failed")
    assert (told, troubles, github.refused) == (list(KINDS["github"].surfaces), [], [])


def test_a_check_run_takes_a_thousand_annotations_in_fifties(
    github: FakeGitHub, tmp_path: Path
) -> None:
    """Fifty is GitHub's limit for a request; they are added to those that are there."""
    made = step(github.environ(tmp_path), check_run=True)
    made.start()

    told, troubles = made.finish(report(verdict="failed", results=failures(3000)))

    shown = [one["title"] for one in github.check_runs[0]["output"]["annotations"]]
    assert shown == [f"tests/test_tiles.py::test_{number}" for number in range(1000)]
    assert (told, troubles, github.refused) == (list(KINDS["github"].surfaces), [], [])


def test_a_session_that_was_told_already_gets_no_second_set_of_annotations(
    github: FakeGitHub, tmp_path: Path
) -> None:
    """`gpu-cluster report --publish` in a later step finds the check run of the client and leaves it as it is."""
    step(github.environ(tmp_path), check_run=True).finish(as_ended("failed"))

    step(github.environ(tmp_path), check_run=True).finish(as_ended("failed"))

    assert len(github.check_runs) == 1
    assert len(github.check_runs[0]["output"]["annotations"]) == 1


def test_the_check_run_of_a_killed_client_is_concluded_by_another_process(
    github: FakeGitHub, tmp_path: Path
) -> None:
    """It is found by its name and its session, as the process that opened it is gone; another session's is left alone."""
    step(github.environ(tmp_path), check_run=True).start(as_ended("running", session="another"))
    step(github.environ(tmp_path), check_run=True).start()

    step(github.environ(tmp_path), check_run=True).finish(as_ended("infrastructure"))

    assert [(one["external_id"], one["status"]) for one in github.check_runs] == [
        ("another", "in_progress"),
        (SESSION, "completed"),
    ]


@pytest.mark.parametrize("how", [{"token": False}, {"fork": True}], ids=["no token", "fork"])
def test_without_a_token_that_may_write_github_gets_files_and_commands_alone(
    github: FakeGitHub, tmp_path: Path, how: dict[str, bool]
) -> None:
    """Every request would be a refusal in the log of each contributor's run."""
    made = step(github.environ(tmp_path, **how), check_run=True)

    made.start()
    told, troubles = made.finish(as_ended("failed"))
    kept(made.publisher, as_ended("failed"))

    assert (told, troubles, github.requests) == ([], [], [])
    assert "test_breaks" in job_summary(tmp_path / "step_summary.md")
    assert any(
        one.name == "error"
        for one in workflow_commands("\n".join(made.publisher.closing(as_ended("failed"))))
    )


def test_a_description_is_cut_to_what_github_takes(github: FakeGitHub, tmp_path: Path) -> None:
    """A status with 141 characters is refused as a whole, and with it the one thing that holds the merge."""
    step(github.environ(tmp_path)).finish(report(verdict="infrastructure", message="ö" * 5000))

    assert len(github.statuses[-1]["description"]) == 140
    assert github.statuses[-1]["description"].endswith("…")
    assert github.refused == []


def test_the_outputs_of_a_github_step_are_one_line_each(github: FakeGitHub, tmp_path: Path) -> None:
    """A later step reads them by name; a line break in a value would set another variable."""
    made = step(github.environ(tmp_path, token=False))

    kept(made.publisher, as_ended("failed", link=f"{PAGE}\nPATH=/evil"))

    assert (tmp_path / "output.txt").read_text().splitlines() == [
        f"session={SESSION}",
        "verdict=failed",
        f"link={PAGE} PATH=/evil",
        "exit-code=1",
    ]


# 3. GitLab.

GITLAB_STATES = {"running": "running", "passed": "success", "cancelled": "canceled"}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_gitlab_has_a_state_for_each_verdict(
    gitlab: FakeGitLab, tmp_path: Path, verdict: str
) -> None:
    """It joins the pipeline that it is part of; one of its own would be a second pipeline for the same commit."""
    made = step(gitlab.environ(tmp_path))

    troubles = (made.start if verdict == "running" else made.finish)(as_ended(verdict))[1]

    held = gitlab.statuses[-1]
    assert (held["status"], held["name"], held["target_url"]) == (
        GITLAB_STATES.get(verdict, "failed"),
        "gpu-cluster",
        PAGE,
    )
    assert (held["sha"], held["ref"], held["pipeline_id"]) == (COMMIT, "feature/tiles", PIPELINE_ID)
    assert held["description"] == render.headline(as_ended(verdict))
    assert (gitlab.external_pipelines, troubles, gitlab.refused) == (0, [], [])


def test_the_status_of_gitlab_goes_from_running_to_its_end(
    gitlab: FakeGitLab, tmp_path: Path
) -> None:
    """The same status, not two beside each other."""
    made = step(gitlab.environ(tmp_path))

    made.start()
    made.finish()

    assert [one["status"] for one in gitlab.statuses] == ["success"]


def test_an_older_gitlab_may_be_told_the_same_twice(tmp_path: Path) -> None:
    """It answers 400 to a state that it knows, which is no trouble."""
    with FakeGitLab(old=True) as host:
        made = step(host.environ(tmp_path))
        made.start()

        told, troubles = made.start()

        assert [one.status for one in host.requests] == [201, 400]
        assert (told, troubles) == (["commit status"], [])


@pytest.mark.parametrize("how", ["no token", "fork"])
def test_without_a_project_token_gitlab_gets_its_files_alone(
    gitlab: FakeGitLab, tmp_path: Path, how: str
) -> None:
    """A job's own token may neither set a status nor write a note, so it is not tried."""
    environ = gitlab.environ(tmp_path, token=how == "fork")
    made = step(environ | ({"CI_MERGE_REQUEST_SOURCE_PROJECT_ID": "77"} if how == "fork" else {}))

    made.start()
    told, troubles = made.finish(as_ended("failed"))
    kept(made.publisher, as_ended("failed"), tmp_path)

    assert (told, troubles, gitlab.requests) == ([], [], [])
    label = f"{SESSION}: 1 failed, 1 passed in 1 min 23 s"
    assert annotations_report(tmp_path / "gpu-cluster-annotations.json") == [
        JobLink("GPU session", label, PAGE)
    ]


def test_a_job_of_gitlab_without_a_link_has_an_empty_annotations_report(
    gitlab: FakeGitLab, tmp_path: Path
) -> None:
    """The artifact is declared, so the file has to be there."""
    made = step(gitlab.environ(tmp_path))

    kept(made.publisher, report(link="", own_page=False), tmp_path)

    assert annotations_report(tmp_path / "gpu-cluster-annotations.json") == []
    assert made.publisher.files(report(), None) == []


def test_a_link_that_is_too_long_for_gitlab_does_not_cost_the_status(
    gitlab: FakeGitLab, tmp_path: Path
) -> None:
    """255 characters; the status holds the merge, the link only helps."""
    told, troubles = step(gitlab.environ(tmp_path)).finish(
        report(link=f"https://gpu.example.com/{'x' * 300}")
    )

    assert "target_url" not in gitlab.statuses[-1] or gitlab.statuses[-1]["target_url"] is None
    assert (told, troubles, gitlab.refused) == (list(KINDS["gitlab"].surfaces), [], [])


def test_the_link_falls_back_to_the_job_of_gitlab(gitlab: FakeGitLab, tmp_path: Path) -> None:
    """Without a public page, the log of the job is the best place."""
    made = step(gitlab.environ(tmp_path))
    url, own = link("", SESSION, made.ci)

    made.finish(report(link=url, own_page=own))

    assert (
        gitlab.statuses[-1]["target_url"]
        == f"https://gitlab.example.com/acme/aerial/-/jobs/{JOB_ID}"
    )


# 3. The sticky comment.


@pytest.mark.parametrize("kind", KINDS)
def test_the_comment_is_made_once_and_edited_in_place(kind: str, tmp_path: Path) -> None:
    """Twenty pushes make one comment, not twenty mails."""
    of = KINDS[kind]
    with of.make() as host:
        first = step(of.environ(host, tmp_path)).finish(as_ended("failed"))
        one = of.comments(host)

        second = step(of.environ(host, tmp_path)).finish(report(session="20261102-100000-2222"))

        assert of.comment in first[0]
        assert of.comment in second[0]
        assert ("❌" in one[0], "test_breaks" in one[0], SESSION in one[0]) == (True, True, True)
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

        told, troubles = step(of.environ(host, tmp_path)).finish()

        assert (of.comment in told, troubles) == (True, [])
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

        told, troubles = step(of.environ(host, tmp_path)).finish(as_ended("failed"))

        assert (of.comment in told, troubles, host.refused) == (True, [], [])
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

        told, troubles = step(of.environ(host, tmp_path)).finish(as_ended("failed"))

        assert (of.comment in told, troubles, len(of.comments(host)), host.refused) == (
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

        told, troubles = step(of.environ(host, tmp_path)).finish(as_ended("failed"))

        assert (of.comment in told, troubles) == (True, [])
        assert len(of.comments(host)) == 2  # the fake deletes nothing on its own


@pytest.mark.parametrize("kind", KINDS)
def test_a_comment_of_another_account_is_replaced_by_one_that_stays(
    kind: str, tmp_path: Path
) -> None:
    """A new access token is a new account: it cannot edit what the old one wrote, and must not write a new one for each run."""
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

        assert [(of.comment in told, troubles) for told, troubles in results] == [(True, [])] * 3
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
    """One that is there is kept up to date, as its old words would be wrong; else the mode decides."""
    said = dataclasses.replace(RUNS[verdict], delta=DELTAS[compared])

    found = comment.wanted(mode, said, exists=exists)

    match mode:
        case "always":
            assert found
        case "off":
            assert not found
        case "failures":
            assert found == (exists or verdict != "passed")
        case "changes":
            news = compared == "different" or (
                compared == "nothing to compare with" and verdict != "passed"
            )
            assert found == (exists or news)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("mode", "runs", "left"),
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
    kind: str, mode: str, runs: list[Report], left: str, tmp_path: Path
) -> None:
    """The same setting in the same project file, wherever its pipelines run."""
    of = KINDS[kind]
    with of.make() as host:
        for number, told in enumerate(runs):
            step(of.environ(host, tmp_path), comment=mode).finish(
                dataclasses.replace(told, session=f"session-{number}")
            )

        assert [left in text for text in of.comments(host)] == ([True] if left else [])
        assert host.refused == []


@pytest.mark.parametrize("kind", KINDS)
def test_three_thousand_failures_fit_a_comment(kind: str, tmp_path: Path) -> None:
    """Each host has its own limit; a comment that is too long is none. It says how many are left out."""
    of = KINDS[kind]
    many = tuple(
        failing(f"test_{number}[{'é漢' * 20}]", text="E   ü漢字\n" * 300) for number in range(3000)
    )
    with of.make() as host:
        told, troubles = step(of.environ(host, tmp_path)).finish(
            report(verdict="failed", results=many)
        )

        assert (of.comment in told, troubles, host.refused) == (True, [], [])
        (text,) = of.comments(host)
        assert "3000 failed" in text
        assert (
            "more failures; all of them are in the JUnit file" in text
            or text.count("test_tiles.py::test_") >= 3000
        )


# 4. Secrets.


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_in_no_text(kind: str, tmp_path: Path) -> None:
    """Troubles are printed, put into comments and kept in the store; a door may be in a traceback."""
    of = KINDS[kind]
    with of.make() as host:
        environ = of.environ(host, tmp_path)
        token = next(
            environ[name]
            for name in ("BITBUCKET_TOKEN", "GITHUB_TOKEN", "GITLAB_TOKEN")
            if name in environ
        )
        environ = {
            name: "wrong-and-secret" if value == token else value for name, value in environ.items()
        }
        made = step(environ, check_run=True)

        told, troubles = made.finish()

        assert len(troubles) == len(of.surfaces) - len(told) >= 2
        assert all("401" in trouble for trouble in troubles)
        texts = [
            *told,
            *troubles,
            *made.publisher.troubles,
            repr(made.publisher.doors),
            repr(made.ci),
        ]
        texts += [
            text for _, text, _ in made.publisher.files(report(troubles=tuple(troubles)), tmp_path)
        ]
        assert not [text for text in texts if "wrong-and-secret" in text]


def test_a_door_shows_no_header() -> None:
    """It holds the credential."""
    door = Door(base="https://api.example.com", headers={"Authorization": "Bearer secret"})

    assert repr(door) == "Door(base='https://api.example.com', proxies=())"
    assert "secret" not in repr(vars(Sender({"token": door})))


@pytest.mark.parametrize(
    "broken", [f"first-half{mark}second-half" for mark in ("\n", "\r", "\u2019")], ids=ascii
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_cannot_be_a_header_is_not_repeated_in_the_refusal(
    kind: str, broken: str, tmp_path: Path
) -> None:
    """Pasted with a line break inside: the HTTP library says that the header is invalid, and shows it."""
    of = KINDS[kind]
    with of.make() as host:
        environ = of.environ(host, tmp_path)
        name = next(
            name for name in ("BITBUCKET_TOKEN", "GITHUB_TOKEN", "GITLAB_TOKEN") if name in environ
        )
        made = step({**environ, name: broken})

        _, troubles = made.finish(within_s=3)

        said = "\n".join([*made.publisher.troubles, *troubles])
        assert name in said
        assert "half" not in said


@pytest.mark.parametrize(
    ("credentials", "phrase"),
    [
        pytest.param(
            {"BITBUCKET_APP_PASSWORD": "ATBBsecret", "BITBUCKET_USERNAME": "ann"},
            "BITBUCKET_APP_PASSWORD is set",
            id="by name",
        ),
        pytest.param(
            {"BITBUCKET_TOKEN": "ATBBsecret"}, "BITBUCKET_TOKEN is an app password", id="by form"
        ),
        pytest.param(
            {"BITBUCKET_TOKEN": "ATBBsecret", "BITBUCKET_EMAIL": "ann@acme.example"},
            "is an app password",
            id="with e-mail",
        ),
        pytest.param(
            {"BITBUCKET_TOKEN": "secret", "BITBUCKET_EMAIL": "ann"},
            "BITBUCKET_EMAIL is a user name",
            id="by user",
        ),
    ],
)
def test_an_app_password_is_refused_with_what_to_use_instead(
    bitbucket: FakeBitbucket, credentials: dict[str, str], phrase: str
) -> None:
    """They were removed on 2026-07-28; tutorials still tell of them, and the API's answer says nothing of why."""
    made = step({**bitbucket.environ(token=False), **credentials})

    told, troubles = made.finish(as_ended("failed"))

    (said,) = made.publisher.troubles
    assert phrase in said
    assert "removed from Bitbucket on 2026-07-28; create a repository access token" in said
    assert "secret" not in said
    assert (told, troubles) == (["Code Insights report"], [])
    assert {one.via for one in bitbucket.requests} == {"proxy"}
    assert not [one for one in bitbucket.requests if "authorization" in one.headers]


def test_an_app_password_beside_a_token_is_passed_over(bitbucket: FakeBitbucket) -> None:
    """Somebody who has moved on and not cleared up is not stopped."""
    made = step({**bitbucket.environ(), "BITBUCKET_APP_PASSWORD": "ATBBsecret"})

    told, _ = made.finish()

    assert (told, made.publisher.troubles, bitbucket.refused) == (
        list(KINDS["bitbucket"].surfaces),
        [],
        [],
    )


def test_an_api_token_without_its_owners_e_mail_is_asked_for_it(bitbucket: FakeBitbucket) -> None:
    """As a Bearer it is refused with words that do not say what is missing."""
    made = step({**bitbucket.environ(token=False), "BITBUCKET_TOKEN": "ATATTsecret"})

    assert [
        "BITBUCKET_EMAIL" in said and "secret" not in said for said in made.publisher.troubles
    ] == [True]
    assert "token" not in made.publisher.doors


@pytest.mark.parametrize("kind", KINDS)
def test_a_login_in_netrc_does_not_replace_the_token(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner's netrc is for git; a library that prefers it sends a developer's password to the API."""
    of, home = KINDS[kind], tmp_path / "home"
    home.mkdir()
    (home / ".netrc").write_text(
        "machine 127.0.0.1 login ann password of-netrc\nmachine api.bitbucket.org login ann password of-netrc\n"
    )
    (home / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("NETRC", raising=False)
    with of.make() as host:
        told, troubles = step(of.environ(host, tmp_path), check_run=True).finish()

        assert (told, troubles, host.refused) == (list(of.surfaces), [], [])
        assert not [
            one for one in host.requests if one.headers.get("authorization", "").startswith("Basic")
        ]
        assert all(
            "authorization" in one.headers or "private-token" in one.headers
            for one in host.requests
            if one.via == "direct"
        )


# 7. The courier.


def until(true: Callable[[], object]) -> None:
    """Wait for it, for at most five seconds."""
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


def test_a_courier_that_is_busy_with_an_old_report_tells_the_new_one_at_the_end(
    bitbucket: FakeBitbucket,
) -> None:
    """The last word has to be the last that the host hears."""
    bitbucket.fault(("PUT", "/reports/"), slow(1))
    made = step(bitbucket.environ())
    made.courier.take(made.publisher.started(as_ended("running")))
    until(lambda: bitbucket._servers["proxy"]._answering)

    told, troubles = made.finish()

    assert (told, troubles, bitbucket.refused) == (list(KINDS["bitbucket"].surfaces), [], [])
    assert [one.body["result"] for one in bitbucket.seen("PUT", "/reports/")] == [
        "PENDING",
        "PASSED",
    ]
    assert [one.body["state"] for one in bitbucket.seen("POST", "/statuses")][-1] == "SUCCESSFUL"


def test_a_courier_does_not_go_on_trying_with_an_old_report(bitbucket: FakeBitbucket) -> None:
    """It waits between tries; what is told at the end need not wait for that."""
    bitbucket.fault(("PUT", "/reports/"), status(503, retry_after=8))
    made = step(bitbucket.environ())
    made.courier.take(made.publisher.started(as_ended("running")))
    until(lambda: bitbucket.requests)
    began = time.monotonic()

    told, troubles = made.finish()

    assert time.monotonic() - began < 3
    assert (told, troubles) == (list(KINDS["bitbucket"].surfaces), [])


def test_what_was_told_of_an_old_report_is_not_said_to_be_told_of_the_new_one(
    bitbucket: FakeBitbucket,
) -> None:
    """The time is over while the host still answers the first report: nobody has heard of the last one."""
    bitbucket.fault(("POST", "/statuses/build"), slow(5))
    made = step(bitbucket.environ())
    made.courier.take(made.publisher.started(as_ended("running")))
    until(lambda: bitbucket.seen("PUT", "/reports/"))

    told, troubles = made.finish(within_s=1)

    assert bitbucket.reports[REPORT]["result"] == "PENDING"
    assert told == []
    assert troubles != []


def test_of_reports_that_wait_only_the_last_is_told(bitbucket: FakeBitbucket) -> None:
    """A host that is slow need not hear of each half minute that has passed."""
    bitbucket.fault(("PUT", "/reports/"), slow(0.5))
    made = step(bitbucket.environ())
    for collected in (10, 20, 30, 40):
        made.courier.take(made.publisher.progressed(on_the_way(collected)))
        until(lambda: bitbucket._servers["proxy"]._answering)
    until(lambda: len(bitbucket.seen("PUT", "/reports/")) == 2)

    made.finish()

    said = [one.body["details"].partition(",")[0] for one in bitbucket.seen("PUT", "/reports/")]
    assert said == ["running: 2 of 10 tests", "running: 2 of 40 tests", "2 passed in 1 min 23 s"]


def test_a_courier_bears_a_host_that_answers_nonsense_and_goes_on(
    github: FakeGitHub, tmp_path: Path
) -> None:
    """A list of nothing where a list of comments should be: the run goes on, and the next report is told."""
    github.fault(("GET", "/comments"), Fault(code=200, body=[None], served=False))
    made = step(github.environ(tmp_path))

    first, second = made.finish(as_ended("failed")), made.finish()

    assert first[0] == ["commit status"]
    assert first[1][0].startswith("GitHub: the pull request comment ")
    assert second == (["commit status", "pull request comment"], [])


def test_there_is_nothing_to_wait_for_where_there_is_nothing_to_tell(
    github: FakeGitHub, tmp_path: Path
) -> None:
    """A fork's run ends at once."""
    made = step(github.environ(tmp_path, token=False))
    began = time.monotonic()

    assert made.finish() == ([], [])
    assert time.monotonic() - began < 1


# 8. What GitHub's runner reads of the output and of the summary.

HOSTILE_LINES = [
    "::error::x",
    "::error file=a.py,line=1::x",
    "::add-mask::1",
    "##[error]x",
    "text before ##[add-mask]x",
    "::stop-commands::mine",
    "::mine::",
    "::warning::after",
    "::stop-commands::error",
    "::error::after an end that was not meant",
    "\x1b[31m::error::in colour\x1b[0m",
    "   ::set-output name=a::b",
    "\r::error::after a carriage return",
    "left\r\n::error::on a line of its own\r\n",
    "::save-state name=a::b\r##[set-env name=PATH]/evil",
    "::group::x",
    "::echo::on",
]


def test_nothing_that_a_test_prints_is_a_command(github: FakeGitHub, tmp_path: Path) -> None:
    """It could mask a digit in the whole log, set a variable of later steps, or fake an annotation."""
    publisher = step(github.environ(tmp_path)).publisher
    opening = publisher.opening()
    closing = publisher.closing(as_ended("failed"))

    found = workflow_commands("\n".join(["before", *opening, *HOSTILE_LINES, *closing]))

    assert found == [
        Command(
            "notice",
            {"title": f"gpu-cluster: session {SESSION}"},
            f"1 failed, 1 passed in 1 min 23 s {PAGE}",
            line=found[0].line,
        ),
        Command(
            "error",
            {
                "file": "tests/test_tiles.py",
                "line": "12",
                "title": "tests/test_tiles.py::test_breaks",
            },
            f"assert 1 == 2\nSession: {PAGE}",
            line=found[1].line,
        ),
    ]


def test_the_word_that_starts_commands_again_is_another_each_time(
    github: FakeGitHub, tmp_path: Path
) -> None:
    """A test that knows it could end the silence itself."""
    openings = [step(github.environ(tmp_path)).publisher.opening() for _ in range(20)]

    assert len({one for (one,) in openings}) == 20
    assert all(len(one.removeprefix("::stop-commands::")) >= 32 for (one,) in openings)


@pytest.mark.parametrize("hostile", HOSTILE_LINES)
def test_what_a_test_is_called_and_says_makes_no_command_of_ours_another(
    github: FakeGitHub, tmp_path: Path, hostile: str
) -> None:
    """Node ids and messages are a test's to choose, and stand in our own commands after the silence."""
    publisher = step(github.environ(tmp_path)).publisher
    bad = failing(
        f"test_it[{hostile}]",
        message=f"{hostile}\n{hostile}",
        text=hostile,
        file=f"tests/{hostile}.py",
    )

    lines = publisher.closing(
        report(verdict="infrastructure", message=hostile, remedy=hostile, results=(bad,))
    )

    found = workflow_commands("\n".join(lines))
    assert [one.name for one in found] == ["notice", "error", "error"]
    assert [set(one.params) for one in found[1:]] == [{"title"}, {"title", "file", "line"}]
    assert (
        found[2].params["title"]
        == render.plain(f"tests/test_tiles.py::test_it[{hostile}]".replace("\r\n", "\n")).strip()
    )


@given(message=st.text(max_size=60), title=st.text(max_size=60), file=st.text(max_size=30))
def test_a_command_is_read_as_it_was_meant(message: str, title: str, file: str) -> None:
    """Whatever is in the texts: one command, of the name that we gave it, with our values."""
    found = workflow_commands(command("error", message, file=file, title=title))

    def meant(text: str) -> str:
        return render.plain(text.replace("\r\n", "\n"))

    assert [one.name for one in found] == ["error"]
    assert found[0].message == meant(message)
    assert found[0].params.get("title", "") in (
        meant(title),
        meant(title).rstrip(),
    )  # the runner strips the end of the list
    assert found[0].params.get("file", "") == meant(file)


def test_the_runner_shows_every_command_that_is_sent(github: FakeGitHub, tmp_path: Path) -> None:
    """Ten errors a step: nine tests, and what was not the tests' fault."""
    publisher = step(github.environ(tmp_path)).publisher

    found = workflow_commands(
        "\n".join(publisher.closing(as_ended("infrastructure", results=failures(3000))))
    )

    assert [one.name for one in found] == ["notice"] + ["error"] * 10
    assert all(one.shown for one in found)
    assert found[1].message == f"{MACHINES_FAULT}\nremedy: run it again"


def test_the_summary_of_a_job_is_added_to_what_is_there(github: FakeGitHub, tmp_path: Path) -> None:
    """Other steps of the job write to it as well."""
    made = step(github.environ(tmp_path))
    (tmp_path / "step_summary.md").write_text("# Build\n\nAll built.\n\n")

    kept(made.publisher, as_ended("failed"))

    said = job_summary(tmp_path / "step_summary.md")
    assert said.startswith("# Build\n\nAll built.\n\n### ❌ GPU tests")
    assert "E   assert 1 == 2" in said


@pytest.mark.parametrize("there", [0, 900_000, 999_000, 999_950], ids=str)
def test_a_summary_stays_within_a_mebibyte_of_bytes(
    github: FakeGitHub, tmp_path: Path, there: int
) -> None:
    """One byte more and GitHub uploads nothing of the step; a character may be four bytes."""
    made = step(github.environ(tmp_path))
    (tmp_path / "step_summary.md").write_text("x" * there)
    many = tuple(
        failing(f"test_{number}[{'漢字🦀' * 10}]", text="E   漢字🦀\n" * 150)
        for number in range(3000)
    )

    kept(made.publisher, report(verdict="failed", results=many))

    said = job_summary(tmp_path / "step_summary.md")
    assert there <= len(said.encode()) <= SUMMARY_BYTES
    assert there > 900_000 or "3000 failed" in said


@pytest.mark.timeout(5)
@pytest.mark.parametrize("room", [-60_000, -1, 0, 1, 2, 3, 4, 5, 40])
def test_a_summary_that_is_full_is_left_as_it_is(
    github: FakeGitHub, tmp_path: Path, room: int
) -> None:
    """The last bytes of room are no reason to look for a shorter text for ever."""
    made = step(github.environ(tmp_path))
    there = 1_000_000 - room
    (tmp_path / "step_summary.md").write_text("x" * there)

    kept(made.publisher, as_ended("failed"))

    assert there <= (tmp_path / "step_summary.md").stat().st_size <= max(there, SUMMARY_BYTES)
