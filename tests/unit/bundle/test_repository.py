"""What git says of a working tree, beside git itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pytest_gpu_cluster.bundle.repository import GitQuery
from pytest_gpu_cluster.contract.request import GitFacts

AS_SOMEBODY = ("-c", "user.name=a", "-c", "user.email=a@example.com")


def git(top: Path, *arguments: str) -> str:
    command = ["git", *AS_SOMEBODY, *arguments]
    return subprocess.run(command, cwd=top, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "topic/one")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "one")
    return tmp_path


def facts(top: Path, branch: str = "") -> GitFacts:
    with GitQuery(top) as query:
        return query.facts(branch)


def test_commit_branch_and_dirtiness_are_those_of_git(repository: Path) -> None:
    """An experiment is recorded under its commit; a new file alone makes it no other."""
    commit = git(repository, "rev-parse", "HEAD").strip()
    (repository / "new").touch()

    clean = facts(repository)
    (repository / "a").write_text("2")
    git(repository, "checkout", "-q", "--detach")
    detached = facts(repository, branch="main")

    assert clean == GitFacts(commit=commit, branch="topic/one")
    assert detached == GitFacts(commit=commit, branch="main", dirty=True)
    assert detached.variables() == {
        "GPU_CLUSTER_GIT_COMMIT": commit,
        "GPU_CLUSTER_GIT_BRANCH": "main",
        "GPU_CLUSTER_GIT_DIRTY": "true",
    }


def test_without_a_commit_or_a_repository_nothing_is_said(tmp_path: Path) -> None:
    """An invented commit would be worse than none."""
    assert facts(tmp_path) == GitFacts()
    git(tmp_path, "init", "-q", "-b", "main")

    assert facts(tmp_path) == GitFacts(branch="main")
    assert facts(tmp_path).variables() == {}
    with GitQuery(tmp_path):
        pass  # nobody asks, and no process is left


def test_a_damaged_repository_has_no_facts(tmp_path: Path) -> None:
    """The listing of the files has named it already."""
    (tmp_path / ".git").write_text("gitdir: /nowhere\n")

    assert facts(tmp_path) == GitFacts()
