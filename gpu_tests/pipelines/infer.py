"""Batch inference: every tile of a zoom in a store -> Parquet shards in a store, with Ray Data.

    listing -> fetch (threads in a few processes) -> decode -> model replicas, a GPU each -> post-processing -> a shard each

A shard is the unit of everything: which tiles are in it is decided by the listing alone, its file appears whole or not at
all, under a name that says which job's it is. So whatever ends a run, the same call again does what is missing, and what two
nodes may both have done is one file all the same.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from .store import in_order, names, open_store, read, write
from .tiles import TILE_PX, listed, pixels

# crown: the probability of a crown in 255ths, uint8, row by row. crown_share: the mean probability over the tile.
SCHEMA = pa.schema([("tile", pa.string()), ("crown", pa.binary()), ("crown_share", pa.float32())])
MODEL_KEY, CONFIG_KEY, NODE_KEY = (
    b"model_sha256",
    b"config_sha256",
    b"fetched_on_node",
)  # in every file's footer
COMPLETE = "complete.json"
START_S = 600  # for all processes to be up


@dataclass(frozen=True, kw_only=True)
class InferConfig:
    """What to infer, with what, to where. `tiles` and `output` are URLs of folders, `model` of a model.pt.

    `at_once`: requests for tiles that are under way in all processes together, at most. `fetchers` and `replicas`: processes
    that read, and copies of the model with `gpus_per_replica` each; at least and at most, as nodes come and go.
    """

    tiles: str
    zoom: int
    model: str
    output: str
    shard: int = 48  # tiles in a file
    at_once: int = 32
    fetchers: tuple[int, int] = (2, 2)
    fetcher_cpus: float = 0.5
    replicas: tuple[int, int] = (2, 2)
    gpus_per_replica: float = 1

    def digest(self, model: bytes) -> str:
        """Of all that decides what is in the files: not of how it is computed, nor of where model and output lie."""
        decides = {
            "tiles": self.tiles,
            "zoom": self.zoom,
            "shard": self.shard,
            "model": sha256(model).hexdigest(),
        }
        return sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Inferred:
    """`model` and `config` are digests; `kept` shards were there already, `done` were computed."""

    model: str
    config: str
    kept: int
    done: int


def rows(tiles: Sequence[str], probabilities: npt.NDArray[np.float32]) -> pa.Table:
    """Post-processing. `probabilities`: float32, (tiles, px, px): a table of SCHEMA."""
    crown = [np.rint(one * 255).astype(np.uint8).tobytes() for one in probabilities]
    share = [float(one.mean()) for one in probabilities]
    return pa.table({"tile": list(tiles), "crown": crown, "crown_share": share}, schema=SCHEMA)


def shards(tiles: Sequence[str], size: int, config: str) -> dict[str, list[str]]:
    """File names and what is to be in them."""
    return {
        f"part-{at // size:05d}-{config[:12]}.parquet": list(tiles[at : at + size])
        for at in range(0, len(tiles), size)
    }


class Fetch:
    """Reads and decodes the tiles of a shard, `at_once` of them at the same time."""

    def __init__(self, tiles: str, at_once: int) -> None:
        self.store, self.at_once = open_store(tiles), at_once

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        found = in_order(self.one, list(shard["tiles"]), at_once=self.at_once)
        return {**shard, "images": b"".join(found), "node": ray.get_runtime_context().get_node_id()}

    def one(self, tile: str) -> bytes:
        return pixels([read(self.store, f"images/{tile}.png")]).tobytes()


class Replica:
    """One copy of the model, on the GPU that its process was given."""

    def __init__(self, model: str, cuda: bool) -> None:
        import torch  # only here: the other processes start sooner without it

        from .job import load_model

        self.device = torch.device("cuda" if cuda else "cpu")
        self.net = load_model(model, self.device)

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        from .network import predict

        images = np.frombuffer(shard.pop("images"), np.uint8).reshape(-1, TILE_PX, TILE_PX, 3)
        return {**shard, "probabilities": predict(self.net, images, self.device).tobytes()}


class Keep:
    """Post-processes a shard and puts its file into the store."""

    def __init__(self, output: str, model: str, config: str) -> None:
        self.store = open_store(output)
        self.footer = {MODEL_KEY: model.encode(), CONFIG_KEY: config.encode()}

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        probabilities = np.frombuffer(shard["probabilities"], np.float32).reshape(
            -1, TILE_PX, TILE_PX
        )
        held = io.BytesIO()
        table = rows(list(shard["tiles"]), probabilities).replace_schema_metadata(
            {**self.footer, NODE_KEY: shard["node"].encode()}
        )
        pq.write_table(table, held, compression="zstd", row_group_size=len(table))
        write(self.store, shard["file"], held.getvalue())
        return {"file": shard["file"]}


def infer(config: InferConfig, *, cuda: bool) -> Inferred:
    """Write what is missing of the job's shards, on the Ray cluster that this process has joined, and COMPLETE at the end.

    Requests that the store refuses for now are made again. Raises FileNotFoundError for a model that is not there, and
    ValueError where there are no tiles or the output is another job's, before anything is asked of the cluster.
    """
    folder, _, name = config.model.rpartition("/")
    weights = read(open_store(folder), name)
    digest, model = config.digest(weights), sha256(weights).hexdigest()
    tiles = listed(open_store(config.tiles), "images", config.zoom)
    if not tiles:
        raise ValueError(
            f"there are no tiles of zoom {config.zoom} at {config.tiles}/images/{config.zoom}"
        )
    wanted, output = shards(tiles, config.shard, digest), open_store(config.output)
    there = {key for key in names(output, "") if key.endswith(".parquet")}
    if foreign := sorted(there - set(wanted)):
        raise ValueError(
            f"{config.output} holds {len(foreign)} files of another job, {foreign[0]} for one: choose another output"
        )
    missing = [
        {"file": file, "tiles": names} for file, names in wanted.items() if file not in there
    ]
    if missing:
        compute(config, missing, model, digest, cuda=cuda)
    summary = {
        "files": len(wanted),
        "tiles": len(tiles),
        "model_sha256": model,
        "config_sha256": digest,
    }
    write(output, COMPLETE, json.dumps({**summary, "config": asdict(config)}, indent=1).encode())
    return Inferred(model=model, config=digest, kept=len(there), done=len(missing))


def compute(
    config: InferConfig, missing: list[dict[str, Any]], model: str, digest: str, *, cuda: bool
) -> None:
    """Make these shards. Raises ValueError when Ray Data lost or doubled one."""
    # A model that cannot be loaded fails before a tile is read; and from then on nothing is waited for.
    ray.data.DataContext.get_current().wait_for_min_actors_s = START_S
    stages: Any = (Fetch, Replica, Keep)  # Ray Data takes classes too, and its types do not say so
    at_once = max(1, config.at_once // config.fetchers[1])
    dataset = (
        ray.data.from_items(missing, override_num_blocks=len(missing))  # a block is a shard
        .map(
            stages[0],
            fn_constructor_args=(config.tiles, at_once),
            num_cpus=config.fetcher_cpus,
            compute=pool(config.fetchers),
        )
        .map(
            stages[1],
            fn_constructor_args=(config.model, cuda),
            num_cpus=0,
            num_gpus=config.gpus_per_replica,
            compute=pool(config.replicas),
        )
        .map(
            stages[2],
            fn_constructor_args=(config.output, model, digest),
            num_cpus=0.5,
            compute=pool((1, 1)),
        )
    )
    made = sorted(row["file"] for row in dataset.iter_rows())
    if made != sorted(shard["file"] for shard in missing):
        raise ValueError(f"{len(missing)} shards were to be made, and {len(made)} were said to be")


def pool(sizes: tuple[int, int]) -> ray.data.ActorPoolStrategy:
    return ray.data.ActorPoolStrategy(min_size=sizes[0], max_size=sizes[1])


def one_by_one(config: InferConfig) -> Iterator[pa.Table]:
    """The plain loop on this machine: a tile is read and decoded, then the next; the model sees a shard of them at a time, which
    becomes a table of SCHEMA."""
    import torch

    from .job import load_model
    from .network import predict

    store, device = open_store(config.tiles), torch.device("cpu")
    net = load_model(config.model, device)
    tiles = listed(store, "images", config.zoom)
    for first in range(0, len(tiles), config.shard):
        some = tiles[first : first + config.shard]
        images = np.concatenate([pixels([read(store, f"images/{tile}.png")]) for tile in some])
        yield rows(some, predict(net, images, device))


def load(output: str) -> pa.Table:
    """All shards of a job that is complete, as one table. Raises FileNotFoundError when it is not complete."""
    store = open_store(output)
    read(store, COMPLETE)
    files = [key for key in names(store, "") if key.endswith(".parquet")]
    tables = in_order(lambda file: pq.read_table(io.BytesIO(read(store, file))), files, at_once=8)
    return pa.concat_tables(table.replace_schema_metadata(None) for table in tables)


def main(argv: list[str], environ: Mapping[str, str]) -> int:
    """`python -m gpu_tests.pipelines.infer '{"tiles": …}'`: the fields of InferConfig as JSON."""
    from .cluster import join

    raw: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads(argv[0]).items()
    }
    with join(environ) as cuda:
        print(json.dumps(asdict(infer(InferConfig(**raw), cuda=cuda))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
