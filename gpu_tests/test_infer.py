"""Batch inference: every tile once, as in a plain loop, in files that name their model."""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from .accelerators import SHARE, Accelerators
from .bucket import ZOOM, Bucket
from .nodes import Node
from .pipelines.infer import (
    CONFIG_KEY,
    MODEL_KEY,
    NODE_KEY,
    SCHEMA,
    InferConfig,
    InferResult,
    infer,
    infer_sequentially,
    list_shards,
    load_crowns,
)
from .pipelines.job import save_model
from .pipelines.network import CrownNet
from .pipelines.store import open_store, read
from .programs import start_program

# Ray Data warns of its own settings.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")
SHARD = 16
AT_ONCE = 8


@pytest.fixture
def config(bucket: Bucket) -> InferConfig:
    """Return a job with a model of seeded weights: enough to see every tile go through it."""
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
    """Distribution may change the duration and nothing else, also with a store that is busy."""
    tiles = bucket.draw_tiles(10, 10)
    plain = pa.concat_tables(infer_sequentially(config))
    bucket.server.most_at_once("GET")
    bucket.server.throttle(get_s=0.02)
    bucket.server.fault("503", times=12, method="GET", path="tiles/images")
    earlier = len(bucket.server.requests())
    began = time.monotonic()

    result = infer(config, cuda=accelerators.cuda)

    seconds, most = time.monotonic() - began, bucket.server.most_at_once("GET")
    requests = bucket.server.requests()[earlier:]
    figures(
        tiles=len(tiles),
        infer_s=round(seconds, 1),
        simulated_get_s=0.02,
        refused=12,
        most_requests_at_once=most,
    )
    check_files(bucket, config, result, tiles)
    check_equal(load_crowns(config.output), plain, cuda=accelerators.cuda)
    assert 1 < most <= AT_ONCE, (
        f"{most} tiles were asked for at the same moment; {AT_ONCE} are allowed"
    )
    reads = Counter(line for line in requests if line.startswith("GET") and "/images/" in line)
    assert sum(reads.values()) == len(tiles) + 12, (
        "each tile was to be read once, and once more for each refusal"
    )


def check_files(bucket: Bucket, config: InferConfig, result: InferResult, tiles: list[str]) -> None:
    """A file without its folder still names its content, its model and its configuration."""
    store = open_store(config.output)
    files = list_shards(store)
    assert len(files) == -(-len(tiles) // SHARD), (
        f"{len(files)} files for {len(tiles)} tiles of {SHARD} a file"
    )
    rows: list[str] = []
    for file in files:
        shard = pq.ParquetFile(io.BytesIO(read(store, file)))
        footer = shard.schema_arrow.metadata or {}
        assert shard.schema_arrow.remove_metadata() == SCHEMA
        assert footer.get(MODEL_KEY) == result.model.encode(), (
            f"{file} names another model, or none"
        )
        assert footer.get(CONFIG_KEY) == result.config.encode(), (
            f"{file} names another configuration, or none"
        )
        assert 1 <= shard.metadata.num_rows <= SHARD, (
            f"{file} has {shard.metadata.num_rows} rows; {SHARD} are allowed"
        )
        rows += shard.read()["tile"].to_pylist()
    check_exactly_once(rows, tiles)
    complete = json.loads(read(store, "complete.json"))
    assert (complete["tiles"], complete["files"]) == (len(tiles), len(files))


def check_exactly_once(actual: list[str], expected: list[str]) -> None:
    """No tile is missing or doubled, and none is new."""
    times, once = Counter(actual), Counter(expected)
    wrong = {name: times[name] for name in {*times, *once} if times[name] != once[name]}
    assert not wrong, (
        f"{len(wrong)} tiles were not inferred exactly once (tile: times): "
        f"{dict(list(wrong.items())[:5])}"
    )


def crown_pixels(table: pa.Table) -> npt.NDArray[np.int16]:
    """Return the column `crown`, int16, (tiles, pixels), 0 to 255."""
    rows = [np.frombuffer(row, np.uint8) for row in table["crown"].to_pylist()]
    return np.stack(rows).astype(np.int16)


def check_equal(actual: pa.Table, plain: pa.Table, *, cuda: bool) -> None:
    """Equal to the last bit on the CPU; on a GPU within about a hundredth.

    A GPU's kernels sum in another order.
    """
    actual, plain = actual.replace_schema_metadata(None).sort_by("tile"), plain.sort_by("tile")
    assert actual["tile"].equals(plain["tile"])
    if not cuda:
        assert actual.equals(plain), "Ray Data and the plain loop disagree"
        return
    assert np.abs(crown_pixels(actual) - crown_pixels(plain)).max() <= 3
    assert np.allclose(actual["crown_share"], plain["crown_share"], rtol=0, atol=0.01)


@pytest.mark.ray(gpus=2)
def test_i1_nodes_may_join_and_leave(
    bucket: Bucket,
    config: InferConfig,
    accelerators: Accelerators,
    another_node: Callable[..., Node],
    figures: Callable[..., None],
) -> None:
    """A cluster of machines that are rented by the minute is never the same for long."""
    tiles = bucket.draw_tiles(12, 12)
    cpus = ray.cluster_resources()["CPU"]  # type: ignore[no-untyped-call]  # ray
    most = int(cpus) + 1  # fetchers: more than fit on the cluster without the node
    config = replace(config, shard=4, at_once=2 * most, fetchers=(1, most), fetcher_cpus=1)
    plain = pa.concat_tables(infer_sequentially(config))
    # The run cannot end before the node has worked: that alone would take two minutes.
    bucket.server.throttle(get_s=2)
    began = time.monotonic()
    with ThreadPoolExecutor(1) as beside:
        run = beside.submit(infer, config, cuda=accelerators.cuda)
        node = another_node(CPU=2)
        joined_s = time.monotonic() - began
        wait_for_files(config, 1, node=node.id, run=run)
        node.die()
        node_left_s = time.monotonic() - began
        bucket.server.throttle()
        files = len(files_of(config))
        run.result(180)

    infer_s = round(time.monotonic() - began, 1)
    figures(
        tiles=len(tiles),
        joined_s=round(joined_s, 1),
        left_s=round(node_left_s, 1),
        files_then=files,
        infer_s=infer_s,
    )
    assert files < len(tiles) // config.shard, "the node was to leave before the end"
    check_exactly_once(load_crowns(config.output)["tile"].to_pylist(), tiles)
    check_equal(load_crowns(config.output), plain, cuda=accelerators.cuda)


def files_of(config: InferConfig, node: str = "") -> list[str]:
    """Return the shards in the output, or only those whose tiles this node fetched."""
    store = open_store(config.output)
    files = list_shards(store)
    if node:
        return [
            file
            for file in files
            if pq.read_schema(io.BytesIO(read(store, file))).metadata[NODE_KEY] == node.encode()
        ]
    return files


def wait_for_files(
    config: InferConfig, count: int, *, node: str = "", run: Future[InferResult] | None = None
) -> None:
    """Wait for so many shards. Raises the exception of the run, if it failed."""
    end = time.monotonic() + 120
    while (ready := len(files_of(config, node))) < count:
        if run is not None and run.done():
            run.result()
        assert time.monotonic() < end, (
            f"after two minutes there are {ready} files{' of the node that joined' if node else ''}"
        )
        time.sleep(0.1)


@pytest.mark.ray(gpus=2)
def test_i2_a_run_that_is_killed_is_completed_by_the_next(
    bucket: Bucket, config: InferConfig, accelerators: Accelerators, figures: Callable[..., None]
) -> None:
    """A run over a country takes days: no shard may be computed again, and none may exist twice."""
    tiles = bucket.draw_tiles(12, 12)
    config = replace(config, shard=6, at_once=4)
    bucket.server.throttle(get_s=0.2)
    kill_after(config, 5)
    bucket.server.throttle()
    with pytest.raises(FileNotFoundError):
        load_crowns(config.output)  # it does not pass for a complete run
    with pytest.raises(ValueError, match="another job"):
        infer(replace(config, shard=7), cuda=accelerators.cuda)
    time.sleep(1)  # a file that was on its way arrives
    before, earlier = files_of(config), len(bucket.server.requests())

    result = infer(config, cuda=accelerators.cuda)

    requests = bucket.server.requests()[earlier:]
    again = [line for line in requests if line.startswith("GET") and "/images/" in line]
    figures(tiles=len(tiles), kept=result.present, done=result.computed)
    assert result.present == len(before), (
        f"{result.present} of {len(before)} files that were there were kept"
    )
    assert result.computed == len(tiles) // 6 - len(before), (
        f"{result.computed} files were made again, of which {len(before)} were there"
    )
    assert len(before) >= 5
    assert len(again) == result.computed * 6, (
        f"{len(again)} tiles were read again for {result.computed} files of 6"
    )
    crowns = load_crowns(config.output)
    check_exactly_once(crowns["tile"].to_pylist(), tiles)
    check_equal(crowns, pa.concat_tables(infer_sequentially(config)), cuda=accelerators.cuda)
    assert infer(config, cuda=accelerators.cuda).computed == 0, "what is complete is done again"


def kill_after(config: InferConfig, count: int) -> None:
    """Run the job as a program of its own, and kill it when it has written so many shards."""
    process = start_program("infer", json.dumps(asdict(config)))
    wait_for_files(config, count)
    process.kill()
    process.communicate()
