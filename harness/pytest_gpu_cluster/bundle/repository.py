"""The git repository of a working tree: its commit, its branch, and whether something differs."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from pytest_gpu_cluster.bundle.listing import GIT_VARIABLES
from pytest_gpu_cluster.contract.request import GitFacts
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.trees import get_tree

# Of tracked files alone, as `git describe --dirty` sees them; no lock is taken for it.
STATUS = ("git", "--no-optional-locks", "status", "--porcelain=v2", "--branch", "-uno")


class GitQuery:
    """A question to git that is answered while something else is done."""

    def __init__(self, top: Path) -> None:
        self._process: subprocess.Popen[str] | None = None
        if any((folder / ".git").exists() for folder in (top, *top.parents)):
            environ = {k: v for k, v in os.environ.items() if k not in GIT_VARIABLES}
            with contextlib.suppress(OSError):  # without git, the listing of the files says so
                self._process = subprocess.Popen(
                    STATUS,
                    cwd=top,
                    env=environ,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    errors="replace",
                )

    def __enter__(self) -> GitQuery:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no process behind where nobody has asked for the answer."""
        if self._process is not None:
            with self._process:
                if self._process.poll() is None:
                    self._process.kill()

    def facts(self, branch: str = "") -> GitFacts:
        """Return the facts, empty ones without git.

        `branch` stands in where none is checked out.
        """
        if self._process is None:
            return GitFacts()
        lines = self._process.communicate()[0].splitlines()
        if self._process.returncode != 0:
            return GitFacts()
        heads = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# branch."))
        commit, name = heads.get("branch.oid", ""), heads.get("branch.head", "")
        return GitFacts(
            commit="" if commit == "(initial)" else commit,
            branch=branch if name == "(detached)" else name,
            dirty=any(not line.startswith("#") for line in lines),
        )


def modification_times(store: Store, tree: str, top: Path) -> dict[str, int]:
    """Return the time of each file of a tree in the store, in nanoseconds since 1970.

    Raises StoreError.
    """
    stored = get_tree(store, tree)
    times: dict[str, int] = {}
    for file in () if stored is None else stored.files:
        with contextlib.suppress(OSError):  # it may have vanished since
            times[file.path] = os.stat(top / file.path).st_mtime_ns
    return times
