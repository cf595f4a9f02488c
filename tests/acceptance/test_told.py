"""Real sessions as CI hosts get them: each request as sent, each page as a reviewer sees it."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_gpu_cluster import options
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.report.model import Report
from pytest_gpu_cluster.report_command import report_session
from tests.acceptance.project import Project, Ran
from tests.acceptance.scenes import COMMIT, REFUSING, SCENES, SECRET, Scene
from tests.hosts import (
    FakeBitbucket,
    FakeGitHub,
    FakeGitLab,
    annotations_report,
    schema_errors,
    workflow_commands,
)
from tests.hosts.readers import READERS

GOLDEN = Path(__file__).parent / "golden"


NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name == "3000_failures" else name
    for name in SCENES
]


def play(project: Project, scene: Scene) -> Ran:
    """The session, on a machine that is no CI: its record is then told to each host in turn."""
    project.write(tests__test_it=scene.tests, refusing=REFUSING)
    if scene.provider:
        project.settings(f'provider = "{scene.provider}"')
    if not scene.kill:
        return project.run("tests", *scene.args, GPU_TESTS_API_TOKEN=SECRET)
    running = project.start("tests", "-v")
    running.until("test_quick PASSED")
    running.process.send_signal(signal.SIGTERM)
    return running.wait()


@pytest.fixture(scope="module")
def played(
    tmp_path_factory: pytest.TempPathFactory, shared_store: str
) -> Callable[[str], tuple[Project, Ran]]:
    """Each scene once, however many hosts are told of it."""
    results: dict[str, tuple[Project, Ran]] = {}

    def get(name: str) -> tuple[Project, Ran]:
        name = "failures" if name == "fork" else name  # the same session
        if name not in results:
            project = Project(
                tmp_path_factory.mktemp(name.replace("3000", "many")) / "project", shared_store
            )
            results[name] = project, play(project, SCENES[name])
        return results[name]

    return get


def tell(
    project: Project, session: str, environ: dict[str, str]
) -> tuple[Report, list[str], list[str]]:
    """Tell a host of a session that is in the store.

    Returns the lines for the terminal and those for the host's runner.
    """
    environ = {
        "PATH": os.environ["PATH"],
        "GPU_CLUSTER_STORE": project.store,
        "GPU_TESTS_API_TOKEN": SECRET,
        **environ,
    }
    settings = options.read_settings(project.root / "pyproject.toml", profile=None, environ=environ)
    commands: list[str] = []
    report, closing = report_session(
        SessionRecord(project.opened(), session),
        settings=settings,
        environ=environ,
        root=project.root,
        publish_it=True,
        echo=commands.append,
    )
    return report, list(closing.lines), commands


def normal(value: Any, project: Project, session: str) -> Any:
    """Without what differs between two runs of a scene; long lists by their ends and their
    length.
    """
    if isinstance(value, dict):
        return {
            key: "N"
            if key == "value" and value.get("type") == "DURATION"
            else normal(each, project, session)
            for key, each in value.items()
        }
    if isinstance(value, list):
        items = [
            normal(each, project, session)
            for each in (value if len(value) <= 6 else [value[0], value[-1]])
        ]
        return items if len(value) <= 6 else [*items, f"{len(value)} in all"]
    if not isinstance(value, str):
        return value
    value = (
        value.replace(session, "SESSION")
        .replace(str(project.root), "ROOT")
        .replace(str(project.root.parent), "ABOVE")
    )
    value = re.sub(r"127\.0\.0\.1:\d+", "HOST", value)
    value = re.sub(r"\bc[0-9a-f]{6}\b", "CLUSTER", value)
    value = re.sub(r"\b\d+(\.\d+)? (s|min|h)\b( \d+ (s|min))?", "N s", value)
    value = re.sub(r"0x[0-9a-f]{6,}", "0xADDR", value)
    return (
        value
        if len(value) <= 6_000
        else f"{value[:3_000]}\n[{len(value) // 1000} thousand characters]\n{value[-500:]}"
    )


def check(name: str, host: str, content: dict[str, Any]) -> None:
    """Against what was looked at and kept; `UPDATE_GOLDEN=1` keeps it anew."""
    path = GOLDEN / f"{name}.{host}.json"
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    assert text == path.read_text()


def requests_of(host: Any) -> list[dict[str, Any]]:
    return [
        {
            "request": f"{each.method} {each.path}",
            "via": each.via,
            "status": each.status,
            "body": each.body,
        }
        for each in host.requests
    ]


@pytest.mark.parametrize("name", NAMES)
def test_bitbucket_is_told(name: str, played: Callable[[str], tuple[Project, Ran]]) -> None:
    """The report, the annotations, the status and the comment of each kind of end, as they were
    once looked at.
    """
    project, ran = played(name)
    with FakeBitbucket(
        workspace="acme",
        slug="aerial",
        commit=COMMIT,
        token="bb-0123456789",
        email="ci@acme.example",
    ) as host:
        report, lines, commands = tell(
            project,
            ran.session,
            host.environ(token=not SCENES[name].fork, clone_dir=str(project.root)),
        )
        content = {"requests": requests_of(host), "terminal": lines, "runner": commands}

    assert host.refused == []
    assert ran.code == SCENES[name].exitstatus == report.exit_code, ran.out
    assert SECRET not in json.dumps(content)
    assert "bb-0123456789" not in json.dumps(content)
    check(name, "bitbucket", normal(content, project, ran.session))


@pytest.mark.parametrize("name", NAMES)
def test_github_is_told(
    name: str, played: Callable[[str], tuple[Project, Ran]], tmp_path: Path
) -> None:
    """Status, comment, check run, job summary, outputs and commands; of a fork only what needs no
    token.
    """
    project, ran = played(name)
    with FakeGitHub(repository="acme/aerial", commit=COMMIT, token="gh-0123456789") as host:
        environ = host.environ(tmp_path, fork=SCENES[name].fork) | {"GPU_CLUSTER_CHECK_RUN": "true"}
        _, lines, commands = tell(project, ran.session, environ)
        files = {
            path.name: path.read_text()
            for path in (Path(environ["GITHUB_STEP_SUMMARY"]), Path(environ["GITHUB_OUTPUT"]))
        }
        content = {
            "requests": requests_of(host),
            "terminal": lines,
            "runner": commands,
            "files": files,
        }

    assert host.refused == []
    assert SECRET not in json.dumps(content)
    assert "gh-0123456789" not in json.dumps(content)
    assert (host.requests == []) == SCENES[name].fork
    assert len(workflow_commands("\n".join(commands))) == len(commands)
    check(name, "github", normal(content, project, ran.session))


@pytest.mark.parametrize("name", NAMES)
def test_gitlab_is_told(
    name: str, played: Callable[[str], tuple[Project, Ran]], tmp_path: Path
) -> None:
    """Status, note, and the annotations report of the job's page; of a fork only the last."""
    project, ran = played(name)
    with FakeGitLab(project="42", commit=COMMIT, token="gl-0123456789") as host:
        environ = host.environ(tmp_path) | (
            {"CI_MERGE_REQUEST_SOURCE_PROJECT_ID": "77"} if SCENES[name].fork else {}
        )
        _, lines, _ = tell(project, ran.session, environ)
        report = project.root / "test-results" / "gpu-cluster-annotations.json"
        content = {
            "requests": requests_of(host),
            "terminal": lines,
            "files": {report.name: json.loads(report.read_text())},
        }

    assert host.refused == []
    assert len(annotations_report(report)) == 1
    assert SECRET not in json.dumps(content)
    assert (host.requests == []) == SCENES[name].fork
    check(name, "gitlab", normal(content, project, ran.session))


@pytest.mark.parametrize("name", NAMES)
def test_junit_of_each_end_is_read_right_by_every_reader(
    name: str, played: Callable[[str], tuple[Project, Ran]], tmp_path: Path
) -> None:
    """A red run is red for each of them, a green one green; what was not the tests' fault is an
    error by name.
    """
    project, ran = played(name)
    path = tmp_path / "junit.xml"
    finished = project.command("report", ran.session, "--junitxml", str(path))

    assert finished.returncode == 0, finished.stderr
    assert schema_errors(path) == []
    text = path.read_text()
    assert SECRET not in text
    for reader, read in READERS.items():
        bad = [case for case in read(path) if case.outcome in ("failed", "error")]
        assert bool(bad) == (name != "green"), reader
    if SCENES[name].provider:
        assert re.search(
            r'<error [^>]*type="gpu_cluster\.(Infrastructure|Environment|Capacity)Error"', text
        )
        assert "<failure" not in text
