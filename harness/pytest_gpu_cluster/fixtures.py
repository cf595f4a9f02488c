"""Marks and fixtures of a suite that wants GPUs: the same names on the cluster and in a plain run.

On the cluster `config.stash[SPEC]` holds the WorkerSpec of the test process. Without it (plain
pytest, no --gpu-cluster) `device` is the one of torch, `gpus` is empty, `artifacts` is a temporary
directory, and `cluster` skips its test.

Every pytest run of an environment that has the plugin imports this module. So nothing of the
contract is imported here at run time.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

    from pytest_gpu_cluster.contract.gpus import Gpu
    from pytest_gpu_cluster.contract.specs import ClusterFacts, WorkerSpec

SPEC: pytest.StashKey[WorkerSpec] = pytest.StashKey()
MARKERS = (
    (
        "gpu(count=1, memory_gib=None): the test's process gets `count` GPUs (0.25 shares one, "
        "0 sees none) of at least `memory_gib`"
    ),
    "ray(gpus=0, nodes=1): the test drives the Ray cluster itself; that much is left free for it",
)


def pytest_configure(config: pytest.Config) -> None:
    for line in MARKERS:
        config.addinivalue_line("markers", line)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The `torch.device` of this test: its first GPU, or the CPU where it has none."""
    library = pytest.importorskip(
        "torch", reason="the fixture `device` needs torch, which is not installed here"
    )
    selected: torch.device = library.device("cuda" if library.cuda.is_available() else "cpu")
    return selected


@pytest.fixture(scope="session")
def gpus(pytestconfig: pytest.Config) -> list[Gpu]:
    """The devices that were given to this test's process; empty in a plain local run."""
    spec = pytestconfig.stash.get(SPEC, None)
    return [] if spec is None else list(spec.gpus)


@pytest.fixture
def artifacts(request: pytest.FixtureRequest) -> Path:
    """A directory of this test.

    On the cluster its files land in the session's record: `gpu-cluster artifacts` fetches them.
    """
    spec = request.config.stash.get(SPEC, None)
    if spec is None:
        return Path(request.getfixturevalue("tmp_path"))
    nodeid = request.node.nodeid
    readable = re.sub(r"[^\w.\-]+", "_", nodeid)[:120]
    digest = hashlib.sha256(nodeid.encode()).hexdigest()[:8]
    path = Path(spec.scratch, "artifacts", f"{readable}-{digest}")
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def cluster(pytestconfig: pytest.Config) -> ClusterFacts:
    """Facts of the cluster and of the tree: `id`, `session`, `nodes`, `store` and `prefix`.

    `store` is its URL, `prefix` that of this session's keys in it. `commit`, `branch` and `dirty`
    are git's word on the tree that was sent; empty outside of a repository.
    """
    spec = pytestconfig.stash.get(SPEC, None)
    if spec is None:
        pytest.skip("this test needs a cluster: run it with `pytest --gpu-cluster`")
    return spec.cluster


@pytest.fixture(scope="session")
def worker_id(pytestconfig: pytest.Config) -> str:
    """`gw0`, `gw1`, … as under pytest-xdist; `master` in a plain local run."""
    spec = pytestconfig.stash.get(SPEC, None)
    default = "master" if spec is None else spec.worker
    return str(getattr(pytestconfig, "workerinput", {}).get("workerid", default))


@pytest.fixture(scope="session")
def testrun_uid(pytestconfig: pytest.Config) -> str:
    """The same in every worker of one run."""
    spec = pytestconfig.stash.get(SPEC, None)
    default = uuid.uuid4().hex if spec is None else spec.testrun
    return str(getattr(pytestconfig, "workerinput", {}).get("testrunuid", default))
