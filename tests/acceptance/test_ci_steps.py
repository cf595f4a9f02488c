"""Steps at a CI host from their start to their end, as a user of the host has them."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.processes import eventually
from tests.acceptance.project import Project
from tests.acceptance.scenes import COMMIT, FAILURES, GREEN, REFUSING
from tests.hosts import (
    FakeBitbucket,
    FakeGitHub,
    bitbucket_finds,
    schema_errors,
    workflow_commands,
)
from tests.hosts.exchange import status

WARM = {"GPU_CLUSTER_IDLE_MINUTES": "5"}  # CI is set in these runs, and the tests share a cluster


GREEN_FILE = (
    '<testsuites><testsuite name="x" tests="1">'
    '<testcase name="a" classname="b"/></testsuite></testsuites>'
)


@pytest.fixture
def bitbucket() -> Iterator[FakeBitbucket]:
    with FakeBitbucket(
        workspace="acme",
        slug="aerial",
        commit=COMMIT,
        token="bb-0123456789",
        email="ci@acme.example",
    ) as host:
        yield host
    assert host.refused == []


def test_a_step_at_bitbucket_shows_its_failures_where_reviewers_look(
    project: Project, bitbucket: FakeBitbucket
) -> None:
    """One command, no other set-up: pending at the start, then the report with a line for each
    failure, status, comment, JUnit.
    """
    project.write(tests__test_it=FAILURES)
    ran = project.run("tests", **bitbucket.environ(clone_dir=str(project.root)), **WARM)
    (report,) = bitbucket.reports.values()
    states = [
        each.body["state"] for each in bitbucket.requests if each.path.endswith("/statuses/build")
    ]
    results = [
        each.body["result"]
        for each in bitbucket.requests
        if each.method == "PUT" and each.via == "proxy"
    ]

    assert ran.code == 1
    assert (
        "gpu-cluster: told Bitbucket: Code Insights report, commit status, pull request comment"
        in ran.out
    )
    assert results == ["PENDING", "FAILED"]
    assert states == ["INPROGRESS", "FAILED"]
    assert report["link"].startswith("https://bitbucket.org/acme/aerial/pipelines/results/")
    assert sorted(
        (a["path"], a["line"], a["result"]) for a in bitbucket.annotations(COMMIT, "gpu-cluster")
    ) == [
        ("tests/test_it.py", 9, "FAILED"),
        ("tests/test_it.py", 17, "FAILED"),
        ("tests/test_it.py", 19, "FAILED"),
    ]
    assert len(bitbucket.comments) == 1
    assert [path.name for path in bitbucket_finds(project.root)] == ["gpu-cluster.xml"]


def test_the_verdict_stands_when_the_host_refuses_everything(project: Project) -> None:
    """A green run with a wrong token is green, and says what was not told, in the host's words,
    with the remedy.
    """
    project.write(tests__test_it=GREEN)
    with FakeBitbucket(
        workspace="acme",
        slug="aerial",
        commit=COMMIT,
        token="bb-0123456789",
        email="ci@acme.example",
    ) as host:
        ran = project.run(
            "tests",
            **(
                host.environ(proxy=False)
                | {
                    "BITBUCKET_TOKEN": "wrong-token-000",
                    "BITBUCKET_PIPELINES_PROXY": "http://127.0.0.1:9",
                }
            ),
            **WARM,
        )
    summary = json.loads((project.root / "test-results" / "gpu-cluster.json").read_text())

    assert ran.code == 0
    assert re.search(
        r"gpu-cluster: Bitbucket: the commit status was not taken: 401: .+\n"
        r" +remedy: .*BITBUCKET_TOKEN",
        ran.out,
    )
    assert len(summary["not_reported"]) == 3
    assert "wrong-token-000" not in ran.out + json.dumps(summary)


def test_quarantined_tests_are_skipped_by_name(
    project: Project, bitbucket: FakeBitbucket, tmp_path: Path
) -> None:
    """Users put a flaky test aside at the host; the host leaves it to the build to skip it."""
    project.write(tests__test_it=FAILURES)
    listed = tmp_path / "quarantine.json"
    tests = [
        {"package": "tests", "class": "test_it", "name": name}
        for name in ("test_fails", "test_fails_twice")
    ]
    listed.write_text(
        json.dumps(
            {
                "quarantinedTests": [
                    *tests,
                    {"package": "", "class": "tests.test_it", "name": "test_setup"},
                ]
            }
        )
    )
    ran = project.run(
        "tests", "-rs", **bitbucket.environ(), **WARM, BITBUCKET_TEST_METADATA_FILE_PATH=str(listed)
    )

    assert ran.code == 0, ran.out
    assert ran.cases() == {
        "test_passes": "passed",
        "test_skipped": "skipped",
        "test_fails": "skipped",
        "test_fails_twice": "skipped",
        "test_setup": "skipped",
    }
    assert "quarantined at the CI host" in ran.out


def test_a_pull_request_is_compared_with_its_target(
    project: Project, bitbucket: FakeBitbucket
) -> None:
    """Report and comment begin with the tests that this change broke and mended.

    The target's own sessions are the measure.
    """
    suite = "tests-of-deltas"  # the store is shared: a baseline of its own
    project.write(
        tests__test_it=(
            "def test_breaks(): pass\n\ndef test_mended(): assert 0\n\ndef test_goes(): pass\n"
        )
    )
    main = bitbucket.environ(pull_request=False, token=False) | {
        "BITBUCKET_BRANCH": "main",
        "GPU_CLUSTER_SUITE": suite,
    }
    project.run("tests", **main, **WARM)
    project.write(tests__test_it="def test_breaks(): assert 0\n\ndef test_mended(): pass\n")
    project.run(
        "tests",
        **(
            bitbucket.environ()
            | {"BITBUCKET_PR_DESTINATION_BRANCH": "main", "GPU_CLUSTER_SUITE": suite}
        ),
        **WARM,
    )
    text = bitbucket.comments[0]["content"]["raw"]
    summary = json.loads((project.root / "test-results" / f"{suite}.json").read_text())

    assert project.keys("history/branches") == [f"history/branches/main~{suite}.json"]
    assert summary["delta"]["newly_failing"] == ["tests/test_it.py::test_breaks"]
    assert summary["delta"]["fixed"] == ["tests/test_it.py::test_mended"]
    assert summary["delta"]["removed"] == ["tests/test_it.py::test_goes"]
    assert text.index("1 newly failing: `tests/test_it.py::test_breaks`") < text.index(
        "| session |"
    )


def test_collecting_alone_is_nobodys_news(project: Project, bitbucket: FakeBitbucket) -> None:
    """A list of tests is not a result: a report that says none failed would be read as a pass."""
    project.write(tests__test_it=GREEN)
    ran = project.run("tests", "--collect-only", "-q", **bitbucket.environ(), **WARM)

    assert ran.code == 0
    assert bitbucket.requests == []
    assert not (project.root / "test-results").exists()


def test_a_green_file_of_an_earlier_run_does_not_survive_a_refusal(
    project: Project, bitbucket: FakeBitbucket
) -> None:
    """A run that cannot start must not look like the one that passed last time."""
    project.write(tests__test_it=GREEN, refusing=REFUSING)
    results = project.root / "test-results"
    results.mkdir()
    (results / "gpu-cluster.xml").write_text(GREEN_FILE)
    project.settings('provider = "refusing:Capacity"')
    ran = project.run("tests", **bitbucket.environ(clone_dir=str(project.root)))
    (report,) = bitbucket.reports.values()

    assert ran.code == 12
    assert "remedy: add instance types" in ran.out
    assert 'type="gpu_cluster.CapacityError"' in (results / "gpu-cluster.xml").read_text()
    assert report["result"] == "FAILED"
    assert report["details"].startswith("not your tests (capacity): EC2 refused 1 x g6.xlarge")


def test_what_a_test_prints_is_no_command_for_the_runner(project: Project, tmp_path: Path) -> None:
    """GitHub's runner reads commands from the output: a test could set them off, or silence
    them.
    """
    project.write(
        tests__test_it=(
            "def test_evil():\n"
            "    print('\\n::error::injected\\n::add-mask::x')\n"
            "    assert 0, 'boom'\n"
        )
    )
    with FakeGitHub(repository="acme/aerial", commit=COMMIT, token="gh-0123456789") as host:
        ran = project.run("tests", "-s", **host.environ(tmp_path, fork=True), **WARM)
    commands = workflow_commands(ran.out)

    assert ran.code == 1
    assert "::error::injected" in ran.out
    assert [c.name for c in commands] == ["notice", "error"]
    assert "boom" in commands[1].message
    assert commands[1].params["file"] == "project/tests/test_it.py"  # from the root of the checkout
    assert host.requests == []


def test_anything_else_gets_files(project: Project) -> None:
    """A host that nobody has written a publisher for reads JUnit, JSON and Markdown."""
    project.write(tests__test_it=FAILURES)
    ran = project.run("tests", CI="true", BUILD_URL="https://jenkins.example.com/job/7/", **WARM)
    files = {path.suffix: path for path in (project.root / "test-results").iterdir()}
    summary = json.loads(files[".json"].read_text())

    assert ran.code == 1
    assert sorted(files) == [".json", ".md", ".xml"]
    assert summary["counts"] == {"failed": 2, "error": 1, "passed": 1, "skipped": 1}
    assert summary["link"] == "https://jenkins.example.com/job/7/"
    assert "cost_usd" not in summary
    assert (
        files[".md"]
        .read_text()
        .startswith("### ❌ GPU tests: 2 failed, 1 error, 1 passed, 1 skipped\n")
    )


def test_on_a_laptop_nothing_is_written_or_told(project: Project) -> None:
    """The same command there leaves no file that nobody asked for."""
    project.write(tests__test_it=GREEN)
    ran = project.run("tests")

    assert ran.code == 0
    assert not (project.root / "test-results").exists()
    assert project.get(f"sessions/{ran.session}/summary.json") == b""


def published(project: Project, environ: dict[str, str]) -> str:
    finished = project.command("report", "--publish", **environ)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_an_older_session_is_never_told_over_a_newer_one(
    project: Project, bitbucket: FakeBitbucket
) -> None:
    """A green run whose comment was refused, then a red one of the same build: telling the first
    again would be a false green.
    """
    environ = bitbucket.environ() | {"GPU_CLUSTER_SUITE": "older"}
    bitbucket.fault(("POST", "/comments$"), status(403))
    project.write(tests__test_it=GREEN)
    green = project.run("tests", **environ, **WARM)
    project.write(tests__test_it="def test_a(): assert 0\n")
    red = project.run("tests", **environ, **WARM)
    output = published(project, environ)

    assert (green.code, red.code) == (0, 1)
    assert output.strip() == "nothing to report"
    assert [each["state"] for each in bitbucket.statuses.values()] == ["FAILED"]
    assert [each["result"] for each in bitbucket.reports.values()] == ["FAILED"]


def test_a_list_of_tests_is_not_told_by_the_report_either(
    project: Project, bitbucket: FakeBitbucket
) -> None:
    """It has no result, so it must not become the build's."""
    environ = bitbucket.environ() | {"GPU_CLUSTER_SUITE": "listed"}
    project.write(tests__test_it=GREEN)
    project.run("tests", "--collect-only", "-q", **environ, **WARM)

    assert published(project, environ).strip() == "nothing to report"
    assert bitbucket.requests == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"GPU_CLUSTER_COMENT": "off"},
        {"GPU_CLUSTER_SUITE": "a/b"},
        {"GPU_CLUSTER_PUBLIC_URL": "ftp://x"},
    ],
)
def test_a_refused_setting_leaves_no_green_file(project: Project, wrong: dict[str, str]) -> None:
    """A kept workspace has the file of the last run, which passed."""
    project.write(tests__test_it=GREEN)
    path = project.root / "test-results" / "gpu-cluster.xml"
    path.parent.mkdir()
    path.write_text(GREEN_FILE)
    ran = project.run("tests", CI="true", **wrong)

    assert ran.code == 4
    assert schema_errors(path) == []
    assert 'type="gpu_cluster.RequestError"' in path.read_text()


def test_real_gpus_are_demanded_of_a_warm_cluster_too(project: Project) -> None:
    """A simulated cluster that happens to be warm is no answer to require-gpu."""
    project.write(tests__test_it=GREEN)
    warm = project.run("tests")
    project.settings("require-gpu = true")
    ran = project.run("tests")

    assert warm.code == 0
    assert "SIMULATED" not in warm.out or ran.code == 4, ran.out


def test_a_client_that_prepares_for_long_is_not_taken_for_gone(project: Project) -> None:
    """Its record is in the store before environment and tree are; a sweep or a report beside it
    must see that it lives.
    """
    project.write(tests__test_it=GREEN)
    slow = project.root / "slow-python"
    go = project.root / "go"
    slow.write_text(
        f'#!/bin/sh\nwhile [ ! -e "{go}" ]; do sleep 0.1; done\nexec {sys.executable} "$@"\n'
    )
    slow.chmod(0o755)
    project.settings('local.python = "slow-python"')
    running = project.start("tests")
    assert eventually(
        lambda: any(
            b'"origin": "' + str(project.root).encode() in project.get(key)
            for key in project.keys("sessions")
            if key.endswith("request.json")
        )
    )
    swept = project.command("sweep")
    requests = [
        key
        for key in project.keys("sessions")
        if key.endswith("request.json") and str(project.root).encode() in project.get(key)
    ]
    results = [project.get(key.replace("request.json", "result.json")) for key in requests]
    go.touch()
    running.process.send_signal(signal.SIGTERM)
    running.wait()

    assert "the record is now closed" not in swept.stdout
    assert results == [b""]


def test_a_report_without_a_store_has_nothing_to_tell(tmp_path: Path) -> None:
    """A last step in a fresh container, after a run that never began: it must not turn a green
    pipeline red.
    """
    project = Project(tmp_path / "fresh", str(tmp_path / "none"))

    assert (
        published(project, {"CI": "true", "BITBUCKET_BUILD_NUMBER": "7"}).strip()
        == "nothing to report"
    )
