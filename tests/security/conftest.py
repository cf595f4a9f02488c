"""A place with a store that others may write to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_gpu_cluster import liveness
from pytest_gpu_cluster.contract.waits import WAITS
from tests.acceptance.conftest import lone, shared_store  # noqa: F401 - fixtures
from tests.security.places import Place


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A project, a store and a directory of clusters of their own, and a victim beside them."""
    here = Place(tmp_path)
    monkeypatch.setenv("GPU_CLUSTER_INTERNAL_CLUSTERS", str(here.base))
    monkeypatch.delenv("GPU_CLUSTER_STORE", raising=False)
    monkeypatch.delenv("CI", raising=False)
    # No client is alive here: nobody has to wait for the next beat of its heart.
    monkeypatch.setattr(liveness, "WAITS", replace(WAITS, lost_s=0.02, settle_s=0.0))
    return here


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this user that is none of ours."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()
