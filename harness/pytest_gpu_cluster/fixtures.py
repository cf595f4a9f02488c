"""Marks and fixtures of a suite that wants GPUs: the same names on the cluster and in a plain local run.

On the cluster the worker's specification is in `config.stash[SPEC]`. Without it (plain pytest, no --gpu-cluster) `device` is what
torch finds, `gpus` is empty, `artifacts` is a temporary directory, and `cluster` skips its test.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SPEC = pytest.StashKey[Mapping[str, Any]]()
MARKERS = (
    "gpu(count=1, memory_gib=None): the test's process gets `count` GPUs (0.25 shares one, 0 sees none) of at least `memory_gib`",
    "ray(gpus=0, nodes=1): the test drives the Ray cluster itself; that much is left free for it",
)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A device that this test's process may use."""

    id: str
    name: str
    memory_gib: float
    simulated: bool = False


def pytest_configure(config: pytest.Config) -> None:
    for line in MARKERS:
        config.addinivalue_line("markers", line)


@pytest.fixture(scope="session")
def device() -> Any:
    """The `torch.device` of this test: its first GPU, or the CPU where it has none."""
    torch = pytest.importorskip(
        "torch", reason="the fixture `device` needs torch, which is not installed here"
    )
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def gpus(pytestconfig: pytest.Config) -> list[Gpu]:
    """The devices that were given to this test's process; empty in a plain local run."""
    spec = pytestconfig.stash.get(SPEC, {})
    names = Gpu.__dataclass_fields__
    return [
        Gpu(**{key: value for key, value in fact.items() if key in names})
        for fact in spec.get("gpus", ())
    ]


@pytest.fixture
def artifacts(request: pytest.FixtureRequest) -> Path:
    """A directory of this test; on the cluster its files land in the store and on the session's page."""
    spec = request.config.stash.get(SPEC, None)
    if spec is None:
        return Path(request.getfixturevalue("tmp_path"))
    nodeid = request.node.nodeid
    readable = re.sub(r"[^\w.\-]+", "_", nodeid)[:120]
    path = Path(
        spec["scratch"],
        "artifacts",
        f"{readable}-{hashlib.sha256(nodeid.encode()).hexdigest()[:8]}",
    )
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def cluster(pytestconfig: pytest.Config) -> SimpleNamespace:
    """Facts of the cluster: `id`, `session`, `nodes`, `store` (its URL) and `prefix` (of this session's keys in it)."""
    spec = pytestconfig.stash.get(SPEC, None)
    if spec is None:
        pytest.skip("this test needs a cluster: run it with `pytest --gpu-cluster`")
    return SimpleNamespace(**spec["cluster"])


@pytest.fixture(scope="session")
def worker_id(pytestconfig: pytest.Config) -> str:
    """`gw0`, `gw1`, … as under pytest-xdist; `master` in a plain local run."""
    spec = pytestconfig.stash.get(SPEC, {"worker": "master"})
    return str(getattr(pytestconfig, "workerinput", {}).get("workerid", spec["worker"]))


@pytest.fixture(scope="session")
def testrun_uid(pytestconfig: pytest.Config) -> str:
    """The same in every worker of one run."""
    spec = pytestconfig.stash.get(SPEC, {"testrun": uuid.uuid4().hex})
    return str(getattr(pytestconfig, "workerinput", {}).get("testrunuid", spec["testrun"]))
