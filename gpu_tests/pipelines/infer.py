"""Batch inference: every tile through a trained network, with Ray Data, to Parquet shards that name their model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
import torch

from gpu_tests.pipelines.network import PREDICT_BATCH, CrownNet, digest, predict
from gpu_tests.pipelines.tiles import pixels

# crown: the probability of a crown in 255ths, uint8, row by row. crown_share: the mean probability over the tile.
SCHEMA = pa.schema([("tile", pa.string()), ("crown", pa.binary()), ("crown_share", pa.float32())])
MODEL_KEY = b"model_sha256"
SHARD = 3 * PREDICT_BATCH  # tiles that go to an actor at once, and into a file


def rows(names: list[str], probabilities: npt.NDArray[np.float32]) -> pa.Table:
    """What is stored of predictions, float32, (tiles, px, px): a table of SCHEMA."""
    crown = [np.rint(one * 255).astype(np.uint8).tobytes() for one in probabilities]
    share = [float(one.mean()) for one in probabilities]
    return pa.table({"tile": names, "crown": crown, "crown_share": share}, schema=SCHEMA)


class Segmenter:
    """One copy of the network, on the GPU that its actor was given; called with batches of tiles."""

    def __init__(self, net: list[ray.ObjectRef[CrownNet]], cuda: bool) -> None:
        self.device = torch.device("cuda" if cuda else "cpu")
        self.net = ray.get(net[0]).to(self.device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        images = pixels(batch["image"].to_pylist())
        return rows(batch["tile"].to_pylist(), predict(self.net, images, self.device))


def infer(tiles: pa.Table, net: CrownNet, *, output: str, cuda: bool, actors: int = 2) -> str:
    """Write a row of SCHEMA for every row of `tiles` into Parquet files at `output`; returns the model's digest.

    Runs on the Ray cluster that this process has joined, on `actors` copies of `net` with a GPU each; tiles and
    weights travel through Ray's object store. `output` is a folder that does not exist yet and that all nodes reach: on
    several machines a URL such as s3://bucket/prefix. `cuda`: whether the GPUs are real. Every file's footer has the
    model's digest under MODEL_KEY.
    """
    model = digest(net.state_dict())
    held = ray.put(net.cpu())  # one copy for all actors; it must outlive them, or Ray could not restart one
    dataset = ray.data.from_arrow([tiles.slice(first, SHARD) for first in range(0, len(tiles), SHARD)])
    predictions = dataset.map_batches(
        Segmenter,
        fn_constructor_args=([held], cuda),
        batch_format="pyarrow",
        batch_size=PREDICT_BATCH,
        num_gpus=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
    )
    predictions.write_parquet(output, schema=SCHEMA.with_metadata({MODEL_KEY: model.encode()}), compression="zstd")
    return model
