"""This repository's own pipeline, as Bitbucket would run it: the script of the step that is in the
file, reporting on.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped, unused-ignore]  # it ships no types

from tests.hosts import READERS, FakeBitbucket, bitbucket_finds, schema_errors

COMMIT = "5ca1ab1e" + "0" * 32
# A few of the smoke tests: a step reports in the same way with all of them.
SELECTED = "a_device_is_there or tells or device"


@pytest.fixture
def clone(tmp_path: Path, repository: Path) -> Path:
    """The repository's tracked and new files at another place, with what `make` has installed."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=repository,
        text=True,
        capture_output=True,
        check=True,
    )
    if not Path(sys.prefix, ".installed").exists():
        pytest.skip(
            "make has not made the environment that runs this"
        )  # it would be installed anew from the copy
    target = tmp_path / "build"
    for name in listed.stdout.splitlines():
        if (repository / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, target / name)
    if (data := repository / "gpu_tests" / "data").exists():
        shutil.copytree(data, target / "gpu_tests" / "data", dirs_exist_ok=True)
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(
            target / name, (0, 0)
        )  # older than the installation, which is another's: make is to leave it alone
    subprocess.run(["git", "init", "--quiet"], cwd=target, check=True)
    (target / ".git" / "info" / "exclude").write_text(".venv\n")
    (target / ".venv").symlink_to(Path(sys.prefix))
    return target


def step_with(command: str, repository: Path) -> dict[str, Any]:
    pipeline = yaml.safe_load((repository / "bitbucket-pipelines.yml").read_text())
    steps = [entry["step"] for entry in pipeline["definitions"]["steps"]]
    (step,) = [step for step in steps if command in step["script"]]
    return dict(step)


def test_every_night_runs_what_a_change_leaves_out(repository: Path) -> None:
    """A slow test that no pipeline runs is a test that fails for months."""
    pipelines = yaml.safe_load((repository / "bitbucket-pipelines.yml").read_text())["pipelines"]
    makefile = (repository / "Makefile").read_text()
    tested, full = (
        re.findall(rf"^{target}:.*\n\t(.+)$", makefile, re.MULTILINE)
        for target in ("test-own", "test-full")
    )

    (nightly,) = [entry["step"]["script"] for entry in pipelines["custom"]["nightly"]]
    assert nightly == ["make test-full"]
    assert tested == [f"{full[0]} -m 'not slow'"]


def run(lines: list[str], clone: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """As Pipelines runs them: one shell, which ends with the first command that fails."""
    return subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines)],
        cwd=clone,
        env=environ,
        text=True,
        timeout=200,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


def test_a_copied_file_for_the_runner_itself_passes_in_a_fresh_project(
    repository: Path, tmp_path: Path
) -> None:
    """With nothing set but what every runner sets, on a machine without a GPU.

    GitLab's job has the same commands.
    """
    bitbucket, gitlab = (
        yaml.safe_load((repository / "ci" / name).read_text())
        for name in ("bitbucket-local.yml", "gitlab/gpu-cluster-local.gitlab-ci.yml")
    )
    script = bitbucket["definitions"]["steps"][0]["step"]["script"]
    job = gitlab[".gpu-cluster"]
    project, tools = tmp_path / "project", tmp_path / "bin"
    project.mkdir()
    tools.mkdir()
    (project / "test_a.py").write_text("def test_a(gpus):\n    assert len(gpus) == 1\n")
    (project / "requirements.txt").write_text("")
    (tools / "pip").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/pip\n')  # no network here
    (tools / "pip").chmod(0o755)
    environ = {
        "PATH": f"{tools}:{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "CI": "true",
    }

    ran = run(script, project, environ)

    assert ran.returncode == 0, ran.stdout
    assert "1 passed" in ran.stdout
    assert "on SIMULATED GPUs" in ran.stdout
    assert (project / "test-results" / "gpu-cluster.xml").exists()
    installed = (tmp_path / "pip").read_text().splitlines()
    assert any("pytest-gpu-cluster[local] @ git+https://" in line for line in installed)
    own = [line for line in script if not line.startswith("export")]
    assert [*job["before_script"], *job["script"]] == own


@pytest.mark.slow  # it makes the smoke tests of `make test` a second time
def test_the_smoke_step_tells_its_pull_request(repository: Path, clone: Path) -> None:
    """We do as we ask of others: the step's own lines suffice, and Bitbucket shows the session."""
    step = step_with("make test-smoke", repository)
    inherited = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("CI", "GPU_CLUSTER_", "PYTEST_", "COV", "MAKE"))
    }
    with FakeBitbucket(
        workspace="acme",
        slug="harness",
        commit=COMMIT,
        token="bb-0123456789",
        email="ci@acme.example",
    ) as host:
        environ = {
            **inherited,
            **host.environ(clone_dir=str(clone)),
            "PYTEST_ADDOPTS": f"-k '{SELECTED}'",
        }
        tested = run(step["script"], clone, environ)
        before = len(host.requests)
        after = run(
            step["after-script"], clone, {**environ, "BITBUCKET_EXIT_CODE": str(tested.returncode)}
        )
        (report,) = host.reports.values()
        (status,) = host.statuses.values()

    assert tested.returncode == 0, tested.stdout
    assert re.search(
        r"gpu-cluster: told Bitbucket: Code Insights report, commit status, pull request comment",
        tested.stdout,
    )
    assert after.returncode == 0, after.stdout
    assert host.refused == []
    assert len(host.requests) == before, "the after-script tells again what was told"
    assert (report["title"], report["result"], status["state"]) == (
        "GPU tests: smoke",
        "PASSED",
        "SUCCESSFUL",
    )
    assert "simulated" in next(each["value"] for each in report["data"] if each["title"] == "GPUs")
    (junit,) = bitbucket_finds(clone)
    assert schema_errors(junit) == []
    assert {case.outcome for case in READERS["gitlab"](junit)} <= {"passed", "skipped"}
