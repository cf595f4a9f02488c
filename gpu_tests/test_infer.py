"""Batch inference: every tile once, the same result as a plain loop, and files that name their model; whatever dies."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from .conftest import SHARE, ZOOM, Accelerators, Bucket
from .nodes import Node
from .pipelines.infer import (
    CONFIG_KEY,
    MODEL_KEY,
    NODE_KEY,
    SCHEMA,
    InferConfig,
    Inferred,
    infer,
    load,
    one_by_one,
)
from .pipelines.job import save_model
from .pipelines.network import CrownNet
from .pipelines.store import names, open_store, read

# Ray Data warns of its own settings.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")
SHARD = 16
AT_ONCE = 8


@pytest.fixture
def config(bucket: Bucket) -> InferConfig:
    """A model of seeded weights, which is as good as any to see that every tile goes through it."""
    torch.manual_seed(0)
    save_model(f"{bucket.url}/model.pt", CrownNet(8).state_dict(), width=8, epoch=0)
    url = bucket.url
    return InferConfig(
        tiles=f"{url}/tiles",
        zoom=ZOOM,
        model=f"{url}/model.pt",
        output=f"{url}/crowns",
        shard=SHARD,
        at_once=AT_ONCE,
        gpus_per_replica=SHARE,
    )


@pytest.mark.ray(gpus=2)
@pytest.mark.smoke
def test_i1_every_tile_is_inferred_once_and_as_in_a_plain_loop(
    bucket: Bucket, config: InferConfig, accelerators: Accelerators, figures: Callable[..., None]
) -> None:
    """Distribution may change how long it takes, and nothing else; not with a store that is busy either."""
    tiles = bucket.tiles(10, 10)
    plain = pa.concat_tables(one_by_one(config))
    bucket.server.most_at_once("GET")
    bucket.server.throttle(get_s=0.02)
    bucket.server.fault("503", times=12, method="GET", path="tiles/images")
    seen = len(bucket.server.requests())
    began = time.monotonic()

    result = infer(config, cuda=accelerators.cuda)

    seconds, most = time.monotonic() - began, bucket.server.most_at_once("GET")
    requests = bucket.server.requests()[seen:]
    figures(
        tiles=len(tiles),
        infer_s=round(seconds, 1),
        simulated_get_s=0.02,
        refused=12,
        most_requests_at_once=most,
    )
    check_files(bucket, config, result, tiles)
    check_equal(load(config.output), plain, cuda=accelerators.cuda)
    assert 1 < most <= AT_ONCE, (
        f"{most} tiles were asked for at the same moment; {AT_ONCE} are allowed"
    )
    reads = Counter(line for line in requests if line.startswith("GET") and "/images/" in line)
    assert sum(reads.values()) == len(tiles) + 12, (
        "each tile was to be read once, and once more for each refusal"
    )


def check_files(bucket: Bucket, config: InferConfig, result: Inferred, tiles: list[str]) -> None:
    """A file that lies about alone still tells what is in it, which model made it, and how."""
    store = open_store(config.output)
    files = [key for key in names(store, "") if key.endswith(".parquet")]
    assert len(files) == -(-len(tiles) // SHARD), (
        f"{len(files)} files for {len(tiles)} tiles of {SHARD} a file"
    )
    found: list[str] = []
    for file in files:
        held = pq.ParquetFile(io.BytesIO(read(store, file)))
        footer = held.schema_arrow.metadata or {}
        assert held.schema_arrow.remove_metadata() == SCHEMA
        assert footer.get(MODEL_KEY) == result.model.encode(), (
            f"{file} names another model, or none"
        )
        assert footer.get(CONFIG_KEY) == result.config.encode(), (
            f"{file} names another configuration, or none"
        )
        assert 1 <= held.metadata.num_rows <= SHARD, (
            f"{file} has {held.metadata.num_rows} rows; {SHARD} are allowed"
        )
        found += held.read()["tile"].to_pylist()
    check_exactly_once(found, tiles)
    complete = json.loads(read(store, "complete.json"))
    assert (complete["tiles"], complete["files"]) == (len(tiles), len(files))


def check_exactly_once(found: list[str], expected: list[str]) -> None:
    times, wanted = Counter(found), Counter(expected)
    off = {name: times[name] for name in {*times, *wanted} if times[name] != wanted[name]}
    assert not off, (
        f"{len(off)} tiles were not inferred exactly once (tile: times): {dict(list(off.items())[:5])}"
    )


def crowns(table: pa.Table) -> npt.NDArray[np.int16]:
    return np.stack([np.frombuffer(one, np.uint8) for one in table["crown"].to_pylist()]).astype(
        np.int16
    )


def check_equal(found: pa.Table, plain: pa.Table, *, cuda: bool) -> None:
    """To the last bit on the CPU; on a GPU within about a hundredth, because its kernels sum in another order."""
    found, plain = found.replace_schema_metadata(None).sort_by("tile"), plain.sort_by("tile")
    assert found["tile"].equals(plain["tile"])
    if not cuda:
        assert found.equals(plain), "Ray Data and the plain loop disagree"
        return
    assert np.abs(crowns(found) - crowns(plain)).max() <= 3
    assert np.allclose(found["crown_share"], plain["crown_share"], rtol=0, atol=0.01)


@pytest.mark.ray(gpus=2)
def test_i1_nodes_may_join_and_leave(
    bucket: Bucket,
    config: InferConfig,
    accelerators: Accelerators,
    another_node: Callable[..., Node],
    figures: Callable[..., None],
) -> None:
    """A cluster of machines that are rented by the minute is never the same for long."""
    tiles = bucket.tiles(12, 12)
    cpus = ray.cluster_resources()["CPU"]  # type: ignore[no-untyped-call]  # ray
    most = int(cpus) + 1  # fetchers: more than there is room for without the node
    config = replace(config, shard=4, at_once=2 * most, fetchers=(1, most), fetcher_cpus=1)
    plain = pa.concat_tables(one_by_one(config))
    bucket.server.throttle(
        get_s=2
    )  # it cannot end before the node has worked: that alone would take two minutes
    began = time.monotonic()
    with ThreadPoolExecutor(1) as beside:
        run = beside.submit(infer, config, cuda=accelerators.cuda)
        node = another_node(CPU=2)
        joined = time.monotonic() - began
        wait_for_files(config, 1, node=node.id, run=run)
        node.die()
        left = time.monotonic() - began
        bucket.server.throttle()
        files = len(files_of(config))
        run.result(180)

    infer_s = round(time.monotonic() - began, 1)
    figures(
        tiles=len(tiles),
        joined_s=round(joined, 1),
        left_s=round(left, 1),
        files_then=files,
        infer_s=infer_s,
    )
    assert files < len(tiles) // config.shard, "the node was to leave before the end"
    check_exactly_once(load(config.output)["tile"].to_pylist(), tiles)
    check_equal(load(config.output), plain, cuda=accelerators.cuda)


def files_of(config: InferConfig, node: str = "") -> list[str]:
    """The shards that are there, or only those whose tiles this node fetched."""
    store = open_store(config.output)
    files = [key for key in names(store, "") if key.endswith(".parquet")]
    if node:
        return [
            file
            for file in files
            if pq.read_schema(io.BytesIO(read(store, file))).metadata[NODE_KEY] == node.encode()
        ]
    return files


def wait_for_files(
    config: InferConfig, count: int, *, node: str = "", run: Future[Inferred] | None = None
) -> None:
    """Raises what the run raised, if that is why there are none."""
    end = time.monotonic() + 120
    while (found := len(files_of(config, node))) < count:
        if run is not None and run.done():
            run.result()
        assert time.monotonic() < end, (
            f"after two minutes there are {found} files{' of the node that joined' if node else ''}"
        )
        time.sleep(0.1)


@pytest.mark.ray(gpus=2)
def test_i2_a_run_that_is_killed_is_completed_by_the_next(
    bucket: Bucket, config: InferConfig, accelerators: Accelerators, figures: Callable[..., None]
) -> None:
    """A run over a country takes days: what is done is not done again, and nothing is there twice."""
    tiles = bucket.tiles(12, 12)
    config = replace(config, shard=6, at_once=4)
    bucket.server.throttle(get_s=0.2)
    process = subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.pipelines.infer", json.dumps(asdict(config))],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        text=True,
        stderr=subprocess.PIPE,
    )
    wait_for_files(config, 5)
    process.kill()
    process.communicate()
    bucket.server.throttle()
    with pytest.raises(FileNotFoundError):
        load(config.output)  # nobody takes it for the whole
    with pytest.raises(ValueError, match="another job"):
        infer(replace(config, shard=7), cuda=accelerators.cuda)
    time.sleep(1)  # a file that was on its way arrives
    before, seen = files_of(config), len(bucket.server.requests())

    result = infer(config, cuda=accelerators.cuda)

    requests = bucket.server.requests()[seen:]
    again = [line for line in requests if line.startswith("GET") and "/images/" in line]
    figures(tiles=len(tiles), kept=result.kept, done=result.done)
    assert result.kept == len(before), (
        f"{result.kept} of {len(before)} files that were there were kept"
    )
    assert result.done == len(tiles) // 6 - len(before), (
        f"{result.done} files were made again, of which {len(before)} were there"
    )
    assert len(before) >= 5
    assert len(again) == result.done * 6, (
        f"{len(again)} tiles were read again for {result.done} files of 6"
    )
    check_exactly_once(load(config.output)["tile"].to_pylist(), tiles)
    check_equal(load(config.output), pa.concat_tables(one_by_one(config)), cuda=accelerators.cuda)
    assert infer(config, cuda=accelerators.cuda).done == 0, "what is complete is done again"
