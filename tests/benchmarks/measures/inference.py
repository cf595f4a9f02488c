"""Batch inference of 1,024 tiles that are 50 ms away: a plain loop, 32 threads, and Ray Data."""

from __future__ import annotations

import io
import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from gpu_tests.pipelines.infer import (
    InferConfig,
    crown_table,
    infer,
    infer_sequentially,
    load_crowns,
)
from gpu_tests.pipelines.job import load_model, save_model
from gpu_tests.pipelines.network import CrownNet, predict
from gpu_tests.pipelines.store import list_keys, map_in_order, open_store, read, write
from gpu_tests.pipelines.tiles import decode_images, drawn_tiles, list_tiles, upload_tiles
from gpu_tests.s3_server import S3Server
from tests.benchmarks.measures.lab import Lab, ray_cluster, timed
from tests.benchmarks.ratios import Figure, Ways, make_figure

TILES, GET_S = 1024, 0.05
READING = "ours, once it reads"


def batch_inference(lab: Lab) -> list[Figure]:
    """Measure the seconds of each way, with and without the start of Ray's processes."""
    ways = Ways(measure_times(lab), unit="s", busy=lab.busy)
    note = (
        f"{TILES} tiles on loopback, a simulated {GET_S * 1000:.0f} ms each; "
        "2 model copies on simulated GPUs (CPU)"
    )
    return [
        make_figure(
            "batch_inference_vs_naive",
            ways.ratios("naive", "ours"),
            ways,
            floor=4 if lab.ci else 5,
            baseline="a tile after the other, the model 48 at a time",
            note=f"{note}; with the start of Ray's processes",
        ),
        make_figure(
            "batch_inference_vs_prefetch",
            ways.ratios("32 threads", READING),
            ways,
            floor=1,
            baseline="one process, 32 threads that read ahead",
            note=f"{note}; from its first request on, when all processes are up "
            "(the start takes the rest)",
        ),
    ]


def measure_times(lab: Lab) -> dict[str, list[float]]:
    """Return the seconds of each way."""
    times: dict[str, list[float]] = {"naive": [], "32 threads": [], "ours": [], READING: []}
    with S3Server() as server:
        prepare(server)
        with ray_cluster(lab.scratch / "ray", server.env):
            infer(configure("warm"), cuda=False)
            for number in range(lab.rounds):
                measure_round(server, number, times)
        check_equal_results()
    return times


def prepare(server: S3Server) -> None:
    """Put tiles and a model into the store, and let it answer slowly."""
    os.environ.update(server.env)
    server.make_bucket("bucket")
    upload_tiles(open_store("s3://bucket/tiles"), drawn_tiles(17, 32, TILES // 32))
    torch.manual_seed(0)
    save_model("s3://bucket/model.pt", CrownNet(8).state_dict(), width=8, epoch=0)
    server.throttle(get_s=GET_S)


def configure(output: str) -> InferConfig:
    """Return the job whose results are put into a folder of the bucket."""
    return InferConfig(
        tiles="s3://bucket/tiles",
        zoom=17,
        model="s3://bucket/model.pt",
        output=f"s3://bucket/{output}",
    )


def measure_round(server: S3Server, number: int, times: dict[str, list[float]]) -> None:
    """Measure each way once."""
    times["naive"].append(timed(lambda: run_naive(configure(f"naive-{number}")))[0])
    times["32 threads"].append(timed(lambda: run_threads(configure(f"threads-{number}")))[0])
    server.first_request("tiles/images")
    began = time.time()
    infer(configure(f"ours-{number}"), cuda=False)
    ended = time.time()
    times["ours"].append(ended - began)
    times[READING].append(ended - server.first_request("tiles/images"))


def run_naive(config: InferConfig) -> None:
    """Infer in a plain loop."""
    for number, table in enumerate(infer_sequentially(config)):
        write_part(config, number, table)


def run_threads(config: InferConfig) -> None:
    """Infer by hand in the strong way: 32 threads read ahead of one model."""
    store, device = open_store(config.tiles), torch.device("cpu")
    net = load_model(config.model, device)
    tiles = list_tiles(store, "images", config.zoom)
    images = map_in_order(
        lambda tile: decode_images([read(store, f"images/{tile}.png")]), tiles, at_once=32
    )
    for first in range(0, len(tiles), config.shard):
        shard = tiles[first : first + config.shard]
        batch = np.concatenate([next(images) for _ in shard])
        write_part(config, first, crown_table(shard, predict(net, batch, device)))


def write_part(config: InferConfig, number: int, table: pa.Table) -> None:
    """Put a shard of a way by hand into the store."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write(open_store(config.output), f"part-{number:05d}.parquet", buffer.getvalue())


def check_equal_results() -> None:
    """Raise RuntimeError when ours and the plain loop differ."""
    ours = load_crowns("s3://bucket/ours-0").sort_by("tile")
    store = open_store("s3://bucket/naive-0")
    plain = pa.concat_tables(
        pq.read_table(io.BytesIO(read(store, key))) for key in list_keys(store, "")
    ).sort_by("tile")
    if not ours.equals(plain):
        raise RuntimeError(
            "ours and the plain loop disagree: their times are not those of the same work"
        )
