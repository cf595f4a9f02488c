"""Reports, steps of pipelines and the three hosts, for the tests of publishing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pytest_gpu_cluster.contract.request import CI
from pytest_gpu_cluster.contract.settings import ReportSettings, Settings
from pytest_gpu_cluster.publish import Publisher, detect, publisher
from pytest_gpu_cluster.publish.sender import BackgroundSender
from pytest_gpu_cluster.report.model import (
    NOT_TESTS,
    Delta,
    Machines,
    Problem,
    Report,
    ReportContext,
    Result,
)
from tests.hosts import FakeBitbucket, FakeGitHub, FakeGitLab

COMMIT = "a" * 40
SESSION = "20261102-090000-1f2e"
PUBLIC = "https://gpu.example.com/sessions"
PAGE = f"{PUBLIC}/{SESSION}"
MACHINES_FAULT = "node 2 was lost"
CLOSED = "http://127.0.0.1:1"  # nobody listens there
BITBUCKET_PIPELINE = "https://bitbucket.org/acme/aerial/pipelines/results/118"
BITBUCKET_STEP = f"{BITBUCKET_PIPELINE}/steps/%7Bb7a4d2e9-93c1-47aa-b1e6-0f5e8d7c6b03%7D"


def a_result(name: str = "test_fits", **changes: Any) -> Result:
    defaults = {
        "nodeid": f"tests/test_tiles.py::{name}",
        "file": "tests/test_tiles.py",
        "line": 12,
        "classname": "tests.test_tiles",
    }
    return Result(**{**defaults, "name": name, "outcome": "passed", **changes})


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


def _pop_fields(noun: type[ReportContext | Machines], changes: dict[str, Any]) -> dict[str, Any]:
    return {each.name: changes.pop(each.name) for each in fields(noun) if each.name in changes}


def report(**changes: Any) -> Report:
    """Return a report; a change may be of a field of its context or machines, by that name."""
    context: dict[str, Any] = {"suite": "gpu-cluster", "link": PAGE, "own_page": True}
    context |= {"branch": "feature/tiles", "commit": COMMIT}
    machines: dict[str, Any] = {"gpus": ("NVIDIA L4", "NVIDIA L4")}
    defaults: dict[str, Any] = {
        "session": SESSION,
        "context": ReportContext(**context | _pop_fields(ReportContext, changes)),
        "machines": Machines(**machines | _pop_fields(Machines, changes)),
        "verdict": "passed",
        "duration_s": 83.4,
        "collected": 2,
        "results": (a_result(), a_result("test_too")),
    }
    return Report(**{**defaults, **changes})


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
            cause = {
                "message": MACHINES_FAULT,
                "remedy": "run it again",
                "exit_code": 10,
                "results": (),
            }
            return report(verdict=verdict, **{**cause, **changes})


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


@dataclass(frozen=True)
class Step:
    """A step of a pipeline, as far as it tells its host something."""

    ci: CI
    publisher: Publisher
    sender: BackgroundSender

    def start(self, final: Report | None = None) -> tuple[list[str], list[str]]:
        return self.sender.deliver(
            self.publisher.started(final or as_ended("running")), within_s=10
        )

    def finish(
        self, final: Report | None = None, *, within_s: float = 10
    ) -> tuple[list[str], list[str]]:
        return self.sender.deliver(self.publisher.finished(final or report()), within_s=within_s)


def step(environ: Mapping[str, str], **settings: Any) -> Step:
    ci = detect(environ)
    assert ci is not None
    host_publisher = publisher(ci, Settings(reports=ReportSettings(**settings)), environ)
    assert host_publisher is not None
    return Step(ci, host_publisher, BackgroundSender(host_publisher))


@dataclass(frozen=True)
class Kind:
    """The common traits of the three hosts, so that one test runs for all.

    `comment` is the name of the target that is edited in place.
    """

    make: Callable[[], Any]
    environ: Callable[[Any, Path], dict[str, str]]
    targets: tuple[str, ...]
    comment: str
    comments: Callable[[Any], list[str]]
    add: Callable[[Any, str], Any]
    delete_last: Callable[[Any], Any]
    edited_by: tuple[str, str]  # method and path of a request that edits a comment


KINDS = {
    "bitbucket": Kind(
        make=FakeBitbucket,
        environ=lambda host, _: dict(host.environ()),
        targets=("Code Insights report", "commit status", "pull request comment"),
        comment="pull request comment",
        comments=lambda host: [
            comment["content"]["raw"] for comment in host.comments if not comment["deleted"]
        ],
        add=lambda host, text: host.add_comment(text),
        delete_last=lambda host: host.comments[-1].update(deleted=True, content={"raw": ""}),
        edited_by=("PUT", r"/comments/\d+$"),
    ),
    "github": Kind(
        make=FakeGitHub,
        environ=lambda host, path: dict(host.environ(path)),
        targets=("commit status", "check run", "pull request comment"),
        comment="pull request comment",
        comments=lambda host: [comment["body"] for comment in host.comments],
        add=lambda host, text: host.add_comment(text),
        delete_last=lambda host: host.comments.pop(),
        edited_by=("PATCH", r"/comments/\d+$"),
    ),
    "gitlab": Kind(
        make=FakeGitLab,
        environ=lambda host, path: dict(host.environ(path)),
        targets=("commit status", "merge request note"),
        comment="merge request note",
        comments=lambda host: [note["body"] for note in host.notes],
        add=lambda host, text: host.add_note(text),
        delete_last=lambda host: host.notes.pop(),
        edited_by=("PUT", r"/notes/\d+$"),
    ),
}
OURS = "GPU tests"  # stands in every comment of ours, and in none that these tests add


def write_files(publisher: Publisher, final: Report, directory: Path | None = None) -> None:
    """Write a publisher's files as a session does."""
    for path, text, append in publisher.files(final, directory):
        with path.open("a" if append else "w", encoding="utf-8") as file:
            file.write(text)


BITBUCKET = {
    "CI": "true",
    "BITBUCKET_BUILD_NUMBER": "118",
    "BITBUCKET_REPO_FULL_NAME": "acme/aerial",
    "BITBUCKET_COMMIT": COMMIT,
    "BITBUCKET_STEP_UUID": "{b7a4d2e9-93c1-47aa-b1e6-0f5e8d7c6b03}",
    "BITBUCKET_CLONE_DIR": "/build",
}
REPORT = (COMMIT, "gpu-cluster")
VERDICTS = ("running", "passed", "failed", "cancelled", "request", *NOT_TESTS)
