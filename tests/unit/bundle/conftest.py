"""A working tree, a store, and git."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_gpu_cluster.bundle import index
from pytest_gpu_cluster.contract.store import Store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "project"
    path.mkdir()
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"), base=tmp_path)


@pytest.fixture
def git(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run git in a new repository at `root`, with nobody's configuration."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "a")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "a@b.example")

    def run(*args: str, cwd: Path = root) -> None:
        subprocess.run(
            ["git", "-c", "protocol.file.allow=always", *args],
            cwd=cwd,
            check=True,
            capture_output=True,
        )

    run("init", "-q")
    return run


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make files just written count as old: the index trusts a file after two seconds only."""
    monkeypatch.setattr(index, "RACY_NS", -3_600_000_000_000)
