"""Fixtures of the workloads: a device, an S3, tiles, and a driver on the session's cluster."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import torch

from . import fetch
from .accelerators import ONE_GPU, Accelerators, computes_on_gpu, find_accelerators
from .bucket import Bucket
from .nodes import Node
from .pipelines.cluster import join
from .pipelines.tiles import read_table
from .s3_server import S3Server


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark for a project that runs this package with --pyargs."""
    config.addinivalue_line("markers", "smoke: a small variant that runs on every change")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests that drive two GPUs do with the only one, when GPU_TESTS_GPUS=1."""
    for item in items if ONE_GPU else ():
        if (mark := item.get_closest_marker("ray")) and mark.kwargs.get("gpus", 0) > 1:
            item.add_marker(pytest.mark.ray(gpus=1), append=False)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Return the test's first GPU, or the CPU where it has none or the mode is `sim`."""
    return torch.device("cuda" if computes_on_gpu(torch.cuda.is_available()) else "cpu")


@pytest.fixture(scope="session")
def all_tiles() -> pa.Table:
    """Return the tiles of real photographs, from the tree, or else fetched once per machine."""
    cache = fetch.cache_folder(os.environ)
    cache.mkdir(parents=True, exist_ok=True)
    with Path(cache, "fetching").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # An installed package is not written to.
        present = fetch.up_to_date(fetch.DEEPFOREST, fetch.DATA)
        data = fetch.DATA if present else cache / "tiles"
        fetch.fetch(fetch.DEEPFOREST, data, cache)
    return read_table(data / "tiles.parquet")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Yield an S3 bucket of this test alone.

    Its variables are set in this process, and so in the Ray workers that the test drives.
    """
    with S3Server() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        server.make_bucket("bucket")
        yield Bucket(url="s3://bucket", server=server)


@pytest.fixture
def accelerators(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Accelerators]:
    """Join the session's cluster as a Ray driver and yield its GPUs.

    The test is marked `ray(gpus=2)`.
    """
    if "bucket" in request.fixturenames:
        request.getfixturevalue("bucket")  # its variables are handed to the workers
    # The default of 2 s would delay each report.
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # The default of 60 s is little on a busy machine of two cores.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "180")
    with join(os.environ) as cuda:
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]  # ray
        yield find_accelerators(resources, computes_on_gpu(cuda))


@pytest.fixture
def another_node(accelerators: Accelerators, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Yield a function that starts a node with the resources it is called with.

    The node is of the same cluster and on this machine. It is ended after the test.
    """
    with ExitStack() as stack:

        def start(**resources: float) -> Node:
            folder = tmp_path / f"node-{len(list(tmp_path.glob('node-*')))}"
            folder.mkdir()
            return stack.enter_context(Node(folder, resources))

        yield start


@pytest.fixture
def figures(artifacts: Path, accelerators: Accelerators) -> Callable[..., None]:
    """Return a function that prints figures and writes them to figures.json.

    The count and the name of the GPUs are added.
    """

    def record(**measurements: object) -> None:
        gpus = {
            "gpus": accelerators.count,
            "gpu": accelerators.name,
            "cuda": accelerators.cuda,
        }
        text = json.dumps({**gpus, **measurements}, indent=1)
        (artifacts / "figures.json").write_text(text + "\n")
        print(text)

    return record
