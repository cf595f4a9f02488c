"""What the workloads share: the mode, an S3 that is as far away as one wants, tiles, and a driver on the session's cluster."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
import torch

from pytest_gpu_cluster.contract.errors import HarnessError

from . import fetch
from .nodes import Node
from .pipelines.cluster import join
from .pipelines.store import open_store, write
from .pipelines.tiles import drawn, read_table, upload
from .s3_server import S3Server

MODES = ("sim", "gpu")
# A cluster with a single GPU is accepted when it is said to be one: what takes two is then done on two halves of it.
ONE_GPU = os.environ.get("GPU_TESTS_GPUS") == "1"
SHARE = 0.5 if ONE_GPU else 1.0
ZOOM = 17
EPOCHS = 8  # as short as it may be while the loss falls by a tenth


@dataclass(frozen=True, kw_only=True)
class Accelerators:
    """The GPUs that Ray hands out. `cuda` is false when it only counts them: then workers compute on the CPU."""

    count: int
    name: str
    cuda: bool


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """An empty bucket of a server that is this test's own. `url` has no slash at its end."""

    url: str
    server: S3Server

    def tiles(
        self, columns: int, rows: int, *, folder: str = "tiles", zoom: int = ZOOM
    ) -> list[str]:
        """Draw tiles into a folder of it; their names."""
        return upload(open_store(f"{self.url}/{folder}"), drawn(zoom, columns, rows))


def configure(bucket: Bucket, **changed: Any) -> str:
    """Put a job's configuration into the bucket; its URL. A value of None leaves its key out."""
    given = {
        "tiles": f"{bucket.url}/tiles",
        "zoom": ZOOM,
        "epochs": EPOCHS,
        "learning-rate": 0.02,
        "batch": 4,
        "output": f"{bucket.url}/model",
        "max-runtime-s": 600,
        "gpus-per-worker": SHARE,
        **{name.replace("_", "-"): value for name, value in changed.items()},
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in given.items() if value is not None]
    write(open_store(bucket.url), "job.toml", "\n".join(lines).encode())
    return f"{bucket.url}/job.toml"


def pytest_configure(config: pytest.Config) -> None:
    """For a project that runs this package with --pyargs, and whose own settings know nothing of it."""
    config.addinivalue_line("markers", "smoke: a small variant that runs on every change")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items if ONE_GPU else ():
        if (mark := item.get_closest_marker("ray")) and mark.kwargs.get("gpus", 0) > 1:
            item.add_marker(pytest.mark.ray(gpus=1), append=False)


def forced_mode() -> str:
    """GPU_TESTS_MODE: `sim` computes on the CPU and simulates waits, `gpu` needs real GPUs; without it the device decides."""
    mode = os.environ.get("GPU_TESTS_MODE", "")
    if mode not in ("", *MODES):
        raise HarnessError(
            f"GPU_TESTS_MODE = {mode!r}: expected {' or '.join(MODES)}",
            remedy="unset it to let the device decide",
        )
    return mode


def computes_on_gpu(available: bool) -> bool:
    """Raises HarnessError when GPUs are demanded and there is none: it is never a skip."""
    mode = forced_mode()
    if mode == "gpu" and not available:
        raise HarnessError(
            "GPU_TESTS_MODE = 'gpu', and this test has no GPU",
            remedy="run on a cluster that has GPUs, or unset GPU_TESTS_MODE to simulate them",
        )
    return available and mode != "sim"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device of this test: its first GPU, or the CPU where it has none or the mode is `sim`."""
    return torch.device("cuda" if computes_on_gpu(torch.cuda.is_available()) else "cpu")


@pytest.fixture(scope="session")
def all_tiles() -> pa.Table:
    """The tiles of real photographs, as they came with the tree, or else fetched now, once for all workers of a machine."""
    cache = fetch.cache_folder(os.environ)
    cache.mkdir(parents=True, exist_ok=True)
    with Path(cache, "fetching").open("w") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)
        data = (
            fetch.DATA if fetch.up_to_date(fetch.DEEPFOREST, fetch.DATA) else cache / "tiles"
        )  # an installed package is not written to
        fetch.fetch(fetch.DEEPFOREST, data, cache)
    return read_table(data / "tiles.parquet")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An S3 of this test alone; its environment is that of this test and of the Ray workers that it drives."""
    with S3Server() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        server.make_bucket("bucket")
        yield Bucket(url="s3://bucket", server=server)


@pytest.fixture
def accelerators(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Accelerators]:
    """This test as a Ray driver on the session's cluster, and the GPUs there. For tests marked `ray(gpus=2)`."""
    if "bucket" in request.fixturenames:
        request.getfixturevalue("bucket")  # its environment is handed to the workers
    monkeypatch.setenv(
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2"
    )  # of 2 s: each report would wait for it
    monkeypatch.setenv(
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "180"
    )  # of 60 s: little on a busy machine of two cores
    with join(os.environ) as cuda:
        yield find_accelerators(ray.cluster_resources(), computes_on_gpu(cuda))  # type: ignore[no-untyped-call]  # ray


def find_accelerators(resources: dict[str, float], cuda: bool) -> Accelerators:
    """Raises HarnessError for fewer than two: collectives, replicas and trials need a pair, or two halves."""
    count = int(resources.get("GPU", 0))
    if count < 2 and not (ONE_GPU and count):
        raise HarnessError(
            f"the workloads need 2 GPUs, real or simulated; Ray has {count}",
            remedy="GPU_TESTS_GPUS=1 does everything on one; where there is none, simulated-gpus = 2",
        )
    types = [key.partition(":")[2] for key in resources if key.startswith("accelerator_type:")]
    return Accelerators(count=count, name=" + ".join(sorted(types)) or "simulated GPU", cuda=cuda)


@pytest.fixture
def another_node(accelerators: Accelerators, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Call it with resources: another node of the cluster, on this machine, that is gone after the test."""
    with ExitStack() as stack:

        def start(**resources: float) -> Node:
            folder = tmp_path / f"node-{len(list(tmp_path.glob('node-*')))}"
            folder.mkdir()
            return stack.enter_context(Node(folder, resources))

        yield start


@pytest.fixture
def figures(artifacts: Path, accelerators: Accelerators) -> Callable[..., None]:
    """Call it with what was measured: it is printed and kept as figures.json, with the name of the GPUs."""

    def keep(**measured: Any) -> None:
        text = json.dumps(
            {
                "gpus": accelerators.count,
                "gpu": accelerators.name,
                "cuda": accelerators.cuda,
                **measured,
            },
            indent=1,
        )
        (artifacts / "figures.json").write_text(text + "\n")
        print(text)

    return keep
