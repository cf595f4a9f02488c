"""Real runs: `pytest --gpu-cluster` in projects of their own.

The tests of one process share a store, and with it a warm cluster, where that is honest.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.providers import ClusterRef, load_provider
from tests.acceptance.processes import CLUSTERS, processes_of
from tests.acceptance.project import Project


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store for this run; at its end its clusters are closed and nothing of them may be left."""
    path = tmp_path_factory.mktemp("store") / "s"
    path.mkdir(mode=0o700)
    yield str(path)
    environ = os.environ | {"GPU_CLUSTER_STORE": str(path)}
    subprocess.run(
        [sys.executable, "-m", "pytest_gpu_cluster.cli", "down"],
        cwd=path,
        env=environ,
        check=True,
        timeout=60,
    )
    assert not processes_of(str(path)), "clusters of the tests outlived them"


@pytest.fixture
def project(tmp_path: Path, shared_store: str) -> Project:
    """A project on the shared store: its runs take the warm cluster of this run's tests, or start
    it.
    """
    return Project(tmp_path / "project", shared_store)


@contextlib.contextmanager
def closed_project(directory: Path) -> Iterator[Project]:
    """Give a project with a store, and so clusters, of its own; whatever happens, they are closed
    at the end.
    """
    store = directory / "store"
    project = Project(directory / "project", str(store))
    try:
        yield project
    finally:
        clusters = [
            path.parent.name
            for path in CLUSTERS.glob("*/guards.json")
            if str(store) in path.read_text()
        ]
        for name in clusters:
            ref = ClusterRef(provider="local", id=name)
            load_provider("local", Settings(), os.environ).close(ref)


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Project]:
    """A project with a store of its own; its clusters end with the test."""
    with closed_project(tmp_path) as project:
        yield project


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A virtual environment without pip; its site-packages holds links to ours but for `without`,
    and what `write` says.
    """

    def make(
        *,
        like_ours: bool = True,
        without: tuple[str, ...] = (),
        write: dict[str, str] | None = None,
    ) -> str:
        home = tmp_path_factory.mktemp("interpreter") / "v"
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=60
        )
        (site,) = home.glob("lib/python*/site-packages")
        ours = Path(sysconfig.get_paths()["purelib"])
        for entry in ours.iterdir() if like_ours else ():
            if not entry.name.lower().replace("_", "-").startswith(without):
                (site / entry.name).symlink_to(entry)
        for name, text in (write or {}).items():
            path = site / name
            if path.parent.is_symlink():
                path.parent.unlink()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return str(home / "bin" / "python")

    return make
