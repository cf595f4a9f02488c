"""What the workloads share: the fetched tiles, and a Ray driver joined to the session's cluster."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
import ray.data
from pyarrow import compute

from gpu_tests import fetch
from gpu_tests.pipelines.tiles import Tiles, read
from gpu_tests.pipelines.train import TrainConfig
from harness.errors import HarnessError


@dataclass(frozen=True, kw_only=True)
class Accelerators:
    """The GPUs that Ray hands out. `cuda` is false when it only counts them: then workers compute on the CPU."""

    count: int
    name: str
    cuda: bool


@pytest.fixture(scope="session")
def all_tiles() -> pa.Table:
    """All tiles as they were fetched and shipped with the tree. Missing or damaged tiles are an error, never a skip."""
    if not fetch.up_to_date(fetch.DEEPFOREST, fetch.DATA):
        raise HarnessError(
            f"{fetch.DATA.name}/tiles.parquet is missing from the shipped tree, or is not as it was fetched",
            remedy="run `python -m gpu_tests.fetch` first; [tool.gpu-cluster] include must name gpu_tests/data/**",
        )
    return read(fetch.DATA / "tiles.parquet")


@pytest.fixture(scope="session", params=[pytest.param("small", marks=pytest.mark.smoke), "all"])
def tile_table(request: pytest.FixtureRequest, all_tiles: pa.Table) -> pa.Table:
    """The size of a workload: all 413 tiles, or, in the small variant, the 90 of the three smaller photographs."""
    if request.param == "all":
        return all_tiles
    return all_tiles.filter(compute.invert(compute.match_substring(all_tiles["tile"], "528000")))


@pytest.fixture
def accelerators(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accelerators]:
    """This test as a Ray driver on the session's cluster, and the GPUs there. For tests marked `ray(gpus=2)`."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # of 2 s: each report would wait for it
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "180")  # of 60 s: little on a busy machine of two cores
    monkeypatch.setattr(ray.data.DataContext.get_current(), "enable_progress_bars", False)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # Workers may be on nodes that have no copy of this tree: Ray gives them this package, and the tiles stay here.
    code = {"py_modules": [str(fetch.HERE)], "excludes": ["data"]}
    ray.init(runtime_env=code, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield find_accelerators(ray.cluster_resources())  # type: ignore[no-untyped-call]  # ray
    finally:
        ray.shutdown()


def training_config(tiles: Tiles) -> TrainConfig:
    """As short as it may be while the loss falls by a tenth; saved at two thirds and at the end."""
    epochs = 12 if len(tiles) < 100 else 6
    return TrainConfig(epochs=epochs, batch=4, checkpoint_every=epochs * 2 // 3)


def find_accelerators(resources: dict[str, float]) -> Accelerators:
    """Ray names the type of a GPU that it has seen, and none for one that it was merely told of."""
    count = int(resources.get("GPU", 0))
    if count < 2:
        raise HarnessError(
            f"the workloads need 2 GPUs, real or simulated; Ray has {count}",
            remedy="run them with `pytest --gpu-cluster gpu_tests`, simulated-gpus = 2 where there is no GPU",
        )
    types = [key.partition(":")[2] for key in resources if key.startswith("accelerator_type:")]
    return Accelerators(count=count, name=" + ".join(sorted(types)) or "simulated GPU", cuda=bool(types))


@pytest.fixture
def figures(artifacts: Path, accelerators: Accelerators) -> Callable[..., None]:
    """Call it with what was measured: it is printed and kept as figures.json, with the name of the GPUs."""

    def keep(**measured: Any) -> None:
        text = json.dumps({"gpus": accelerators.count, "gpu": accelerators.name, **measured}, indent=1)
        (artifacts / "figures.json").write_text(text + "\n")
        print(text)

    return keep
