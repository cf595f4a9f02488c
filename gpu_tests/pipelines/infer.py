"""Batch inference with Ray Data: every tile of a zoom in a store -> Parquet shards in a store.

    listing -> fetch (threads in a few processes) -> decode -> model replicas, a GPU each
            -> post-processing -> a shard each

The shard is the unit of work. The listing alone decides the tiles of a shard; its file appears
whole or not at all, under a name that identifies the job. Whatever ends a run, the same call again
computes what is missing, and a shard that two nodes both computed is one file all the same.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from obstore.store import ObjectStore

from .store import list_keys, map_in_order, open_store, read, write
from .tiles import TILE_PX, decode_images, list_tiles

# crown: the probability of a crown in 255ths, uint8, row by row.
# crown_share: the mean probability over the tile.
SCHEMA = pa.schema([("tile", pa.string()), ("crown", pa.binary()), ("crown_share", pa.float32())])
# In every file's footer.
MODEL_KEY, CONFIG_KEY, NODE_KEY = b"model_sha256", b"config_sha256", b"fetched_on_node"
COMPLETE = "complete.json"
START_S = 600  # for all processes to be up


@dataclass(frozen=True, kw_only=True)
class InferConfig:
    """The job: `tiles` and `output` are URLs of folders, `model` is the URL of a model.pt.

    `at_once`: requests for tiles in flight in all processes together, at most. `fetchers` and
    `replicas`: processes that read, and copies of the model with `gpus_per_replica` each; at least
    and at most, as nodes come and go.
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
        """Return the SHA-256 of all that decides the content of the files.

        How they are computed, and where model and output lie, does not enter.
        """
        inputs = {
            "tiles": self.tiles,
            "zoom": self.zoom,
            "shard": self.shard,
            "model": sha256(model).hexdigest(),
        }
        return sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class InferResult:
    """Digests of model and configuration, and numbers of shards: already `present`, `computed`."""

    model: str
    config: str
    present: int
    computed: int


class Shard(TypedDict):
    """A file to make, and the names of its tiles."""

    file: str
    tiles: list[str]


class FetchedShard(Shard):
    """`images`: uint8, (tiles, px, px, 3), as bytes. `node`: id of the node that fetched them."""

    images: bytes
    node: str


class PredictedShard(Shard):
    """`probabilities`: float32, (tiles, px, px), as bytes."""

    probabilities: bytes
    node: str


def crown_table(tiles: Sequence[str], probabilities: npt.NDArray[np.float32]) -> pa.Table:
    """Post-process probabilities, float32, (tiles, px, px), to a table of SCHEMA."""
    crown = [np.rint(tile * 255).astype(np.uint8).tobytes() for tile in probabilities]
    share = [float(tile.mean()) for tile in probabilities]
    return pa.table({"tile": list(tiles), "crown": crown, "crown_share": share}, schema=SCHEMA)


def plan_shards(tiles: Sequence[str], size: int, config: str) -> dict[str, list[str]]:
    """Assign the tiles to files of `size` tiles: file name -> names of tiles."""
    return {
        f"part-{first // size:05d}-{config[:12]}.parquet": list(tiles[first : first + size])
        for first in range(0, len(tiles), size)
    }


def list_shards(output: ObjectStore) -> list[str]:
    """Return the names of the shards that the output folder has."""
    return [key for key in list_keys(output, "") if key.endswith(".parquet")]


class Fetcher:
    """Reads and decodes the tiles of a shard, `at_once` of them at the same time."""

    def __init__(self, tiles: str, at_once: int) -> None:
        self.store, self.at_once = open_store(tiles), at_once

    def __call__(self, shard: Shard) -> FetchedShard:
        images = b"".join(map_in_order(self.fetch, list(shard["tiles"]), at_once=self.at_once))
        node = ray.get_runtime_context().get_node_id()
        return {"file": shard["file"], "tiles": shard["tiles"], "images": images, "node": node}

    def fetch(self, tile: str) -> bytes:
        """Return the pixels of one tile, uint8, (px, px, 3), as bytes."""
        return decode_images([read(self.store, f"images/{tile}.png")]).tobytes()


class Replica:
    """One copy of the model, on the GPU of its process."""

    def __init__(self, model: str, cuda: bool) -> None:
        import torch  # in this class only: the other processes start sooner without it

        from .job import load_model

        self.device = torch.device("cuda" if cuda else "cpu")
        self.net = load_model(model, self.device)

    def __call__(self, shard: FetchedShard) -> PredictedShard:
        from .network import predict

        images = np.frombuffer(shard["images"], np.uint8).reshape(-1, TILE_PX, TILE_PX, 3)
        return {
            "file": shard["file"],
            "tiles": shard["tiles"],
            "probabilities": predict(self.net, images, self.device).tobytes(),
            "node": shard["node"],
        }


class ShardWriter:
    """Post-processes a shard and puts its file into the store."""

    def __init__(self, output: str, model: str, config: str) -> None:
        self.store = open_store(output)
        self.footer = {MODEL_KEY: model.encode(), CONFIG_KEY: config.encode()}

    def __call__(self, shard: PredictedShard) -> dict[str, str]:
        probabilities = np.frombuffer(shard["probabilities"], np.float32).reshape(
            -1, TILE_PX, TILE_PX
        )
        buffer = io.BytesIO()
        table = crown_table(list(shard["tiles"]), probabilities).replace_schema_metadata(
            {**self.footer, NODE_KEY: shard["node"].encode()}
        )
        pq.write_table(table, buffer, compression="zstd", row_group_size=len(table))
        write(self.store, shard["file"], buffer.getvalue())
        return {"file": shard["file"]}


def infer(config: InferConfig, *, cuda: bool) -> InferResult:
    """Compute the missing shards on the Ray cluster that this process has joined; write COMPLETE.

    Requests that the store refuses for now are repeated. Raises FileNotFoundError when there is no
    such model, and ValueError where there are no tiles or the output is another job's, before the
    cluster is used.
    """
    folder, _, name = config.model.rpartition("/")
    weights = read(open_store(folder), name)
    digest, model = config.digest(weights), sha256(weights).hexdigest()
    tiles = list_tiles(open_store(config.tiles), "images", config.zoom)
    if not tiles:
        raise ValueError(
            f"there are no tiles of zoom {config.zoom} at {config.tiles}/images/{config.zoom}"
        )
    output, planned = open_store(config.output), plan_shards(tiles, config.shard, digest)
    present = present_shards(config, output, planned)
    missing: list[Shard] = [
        {"file": file, "tiles": names} for file, names in planned.items() if file not in present
    ]
    if missing:
        compute(config, missing, model, digest, cuda=cuda)
    summary = {
        "files": len(planned),
        "tiles": len(tiles),
        "model_sha256": model,
        "config_sha256": digest,
    }
    write(output, COMPLETE, json.dumps({**summary, "config": asdict(config)}, indent=1).encode())
    return InferResult(model=model, config=digest, present=len(present), computed=len(missing))


def present_shards(
    config: InferConfig, output: ObjectStore, planned: Mapping[str, list[str]]
) -> set[str]:
    """Return the shards that exist. Raises ValueError when one of them is another job's."""
    present = set(list_shards(output))
    if foreign := sorted(present - set(planned)):
        raise ValueError(
            f"{config.output} holds {len(foreign)} files of another job, {foreign[0]} for one: "
            "choose another output"
        )
    return present


def compute(
    config: InferConfig, missing: list[Shard], model: str, digest: str, *, cuda: bool
) -> None:
    """Make these shards. Raises ValueError when Ray Data lost or doubled one."""
    # A model that cannot be loaded fails before a tile is read, and later stages never wait.
    ray.data.DataContext.get_current().wait_for_min_actors_s = START_S
    stages: Any = (Fetcher, Replica, ShardWriter)  # Ray Data's types do not mention classes
    at_once = max(1, config.at_once // config.fetchers[1])
    dataset = (
        ray.data.from_items(missing, override_num_blocks=len(missing))  # a block is a shard
        .map(
            stages[0],
            fn_constructor_args=(config.tiles, at_once),
            num_cpus=config.fetcher_cpus,
            compute=actor_pool(config.fetchers),
        )
        .map(
            stages[1],
            fn_constructor_args=(config.model, cuda),
            num_cpus=0,
            num_gpus=config.gpus_per_replica,
            compute=actor_pool(config.replicas),
        )
        .map(
            stages[2],
            fn_constructor_args=(config.output, model, digest),
            num_cpus=0.5,
            compute=actor_pool((1, 1)),
        )
    )
    check_files(missing, [row["file"] for row in dataset.iter_rows()])


def check_files(missing: list[Shard], files: list[str]) -> None:
    """Raise ValueError unless each missing shard was made exactly once."""
    if sorted(files) != sorted(shard["file"] for shard in missing):
        raise ValueError(f"{len(missing)} shards were to be made, and {len(files)} were said to be")


def actor_pool(sizes: tuple[int, int]) -> ray.data.ActorPoolStrategy:
    """Return a pool of at least and at most so many processes."""
    return ray.data.ActorPoolStrategy(min_size=sizes[0], max_size=sizes[1])


def infer_sequentially(config: InferConfig) -> Iterator[pa.Table]:
    """Infer in a plain loop on this machine: read and decode one tile after the other.

    The model sees a shard of tiles at a time, which becomes a table of SCHEMA.
    """
    import torch

    from .job import load_model
    from .network import predict

    store, device = open_store(config.tiles), torch.device("cpu")
    net = load_model(config.model, device)
    tiles = list_tiles(store, "images", config.zoom)
    for first in range(0, len(tiles), config.shard):
        shard = tiles[first : first + config.shard]
        images = np.concatenate(
            [decode_images([read(store, f"images/{tile}.png")]) for tile in shard]
        )
        yield crown_table(shard, predict(net, images, device))


def load_crowns(output: str) -> pa.Table:
    """Load all shards of a complete job as one table.

    Raises FileNotFoundError when the job is not complete.
    """
    store = open_store(output)
    read(store, COMPLETE)
    tables = map_in_order(
        lambda file: pq.read_table(io.BytesIO(read(store, file))), list_shards(store), at_once=8
    )
    return pa.concat_tables(table.replace_schema_metadata(None) for table in tables)


def main(argv: list[str], environ: Mapping[str, str]) -> int:
    """Run the job of argv[0], the fields of InferConfig as JSON, and print its result as JSON."""
    from .cluster import join

    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads(argv[0]).items()
    }
    with join(environ) as cuda:
        print(json.dumps(asdict(infer(InferConfig(**fields), cuda=cuda))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
