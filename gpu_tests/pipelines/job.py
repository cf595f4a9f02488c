"""A training job that is described by an object in a store.

    python -m gpu_tests.pipelines.job s3://bucket/job.toml

    tiles = "s3://bucket/survey"       # images/z/x/y.png and masks/z/x/y.png lie there
    zoom = 17
    epochs = 12
    learning-rate = 0.01
    output = "s3://bucket/models/7"    # model.pt, config.json and checkpoints come there
    max-runtime-s = 25200

Every fault of a description is reported before a GPU is requested. The same job again, after
whatever ended it, goes on from its newest checkpoint.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path

import obstore
import torch
from obstore.store import ObjectStore

from .network import CrownNet, weights_digest
from .ray_train import Metrics, TrainTask, fit
from .store import open_store, read, write
from .tiles import StoredTiles, held_out, list_tiles
from .train import TrainConfig

ZOOMS = range(25)


class ConfigError(ValueError):
    """The job's description is wrong: the message names key, value and what is expected."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The keys of a configuration object, with - for _."""

    tiles: str
    zoom: int
    epochs: int
    output: str
    max_runtime_s: float
    learning_rate: float = 1e-2
    batch: int = 8
    width: int = 8
    seed: int = 0
    checkpoint_every: int = 1
    workers: int = 2
    gpus_per_worker: float = 1.0

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch",
            "checkpoint_every",
            "workers",
            "gpus_per_worker",
            "learning_rate",
            "max_runtime_s",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{toml_key(name)} = {getattr(self, name)}: expected more than 0")
        if self.zoom not in ZOOMS:
            raise ConfigError(f"zoom = {self.zoom}: expected {ZOOMS[0]} to {ZOOMS[-1]}")
        if self.width < 4 or self.width % 4:
            raise ConfigError(
                f"width = {self.width}: expected a multiple of 4, "
                "for the network normalises groups of 4 channels"
            )

    @property
    def training(self) -> TrainConfig:
        """Return the values that decide the weights."""
        return TrainConfig(
            **{field.name: getattr(self, field.name) for field in fields(TrainConfig)}
        )


def toml_key(name: str) -> str:
    """Return the key of a configuration object for a field of Job."""
    return name.replace("_", "-")


def parse_job(text: str) -> Job:
    """Parse a configuration object.

    Raises ConfigError for text that is no TOML, an unknown or a missing key, and a value of another
    type.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise ConfigError(f"the configuration is no TOML: {problem}") from problem
    keys = {toml_key(field.name): field for field in fields(Job)}
    if unknown := sorted(set(raw) - set(keys)):
        raise ConfigError(f"unknown key {unknown[0]!r}: expected one of {', '.join(keys)}")
    if missing := [
        name for name, field in keys.items() if field.default is MISSING and name not in raw
    ]:
        raise ConfigError(f"the configuration lacks {', '.join(missing)}")
    types: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}
    for name, value in raw.items():
        if isinstance(value, bool) or not isinstance(value, types[str(keys[name].type)]):
            raise ConfigError(f"{name} = {value!r}: expected {keys[name].type}")
    return Job(**{keys[name].name: value for name, value in raw.items()})


def read_text(url: str) -> str:
    """Read the object at `url`. Raises ConfigError when there is none, or it is no UTF-8."""
    folder, _, name = url.rpartition("/")
    try:
        return read(open_store(folder), name).decode()
    except (FileNotFoundError, UnicodeDecodeError) as problem:
        raise ConfigError(
            f"there is no configuration at {url}: {problem}".split("\n")[0]
        ) from problem


def resolve_job(url: str) -> tuple[Job, StoredTiles]:
    """Return the job that the object at `url` describes, and its tiles, without side effects.

    Raises ConfigError: no such object, a wrong one, or tiles that do not exist or have no masks.
    """
    job = parse_job(read_text(url))
    try:
        store, _ = open_store(job.tiles), open_store(job.output)
        images, masks = (
            list_tiles(store, "images", job.zoom),
            set(list_tiles(store, "masks", job.zoom)),
        )
    except (obstore.exceptions.BaseError, ValueError) as problem:
        message = f"tiles = {job.tiles!r} or output = {job.output!r} cannot be opened: {problem}"
        raise ConfigError(message.split("\n", maxsplit=1)[0]) from problem
    if not images:
        raise ConfigError(f"there are no tiles of zoom {job.zoom} at {job.tiles}/images/{job.zoom}")
    if bare := [name for name in images if name not in masks]:
        raise ConfigError(
            f"{len(bare)} of {len(images)} tiles at {job.tiles} have no mask, {bare[0]} for one"
        )
    validation = int(held_out(images).sum())
    if not validation or len(images) - validation < job.workers:
        raise ConfigError(
            f"{len(images)} tiles are too few: {validation} for validation, "
            f"the rest for {job.workers} workers"
        )
    return job, StoredTiles(url=job.tiles, names=tuple(images))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a job.

    `stopped`: at its maximum runtime, with a checkpoint. `model`: the digest of its weights.
    `metrics` are of its last epoch.
    """

    stopped: bool
    model: str
    metrics: Metrics


def run_job(url: str, *, cuda: bool) -> Outcome:
    """Do the job that the object at `url` describes, on the Ray cluster of this process.

    Raises ConfigError before the cluster is used, also where the output is another job's.
    """
    began = time.time()
    job, tiles = resolve_job(url)
    output = open_store(job.output)
    write_resolved_config(job, tiles, output)
    task = TrainTask(
        config=job.training,
        tiles=tiles,
        output=job.output,
        cuda=cuda,
        until=began + job.max_runtime_s,
    )
    checkpoint, metrics = fit(task, workers=job.workers, gpus_per_worker=job.gpus_per_worker)[-1]
    with checkpoint.as_directory() as folder:
        net = torch.load(Path(folder, "training.pt"), map_location="cpu", weights_only=True)["net"]
    save_model(f"{job.output}/model.pt", net, width=job.width, epoch=metrics["epoch"])
    return Outcome(
        stopped=metrics["epoch"] < job.epochs, model=weights_digest(net), metrics=metrics
    )


def write_resolved_config(job: Job, tiles: StoredTiles, output: ObjectStore) -> None:
    """Write config.json: every value, default or not, and which tiles.

    Raises ConfigError when the output's config.json differs in more than the maximum runtime.
    """
    names = sha256("\n".join(tiles.names).encode()).hexdigest()
    resolved = {
        **{toml_key(name): value for name, value in asdict(job).items()},
        "tile-count": len(tiles),
        "tiles-sha256": names,
    }
    try:
        before = json.loads(read(output, "config.json"))
    except FileNotFoundError:
        before = resolved
    free = ("max-runtime-s",)
    if changes := [
        f"{name} was {before.get(name)!r} and is {value!r}"
        for name, value in resolved.items()
        if name not in free and before.get(name) != value
    ]:
        raise ConfigError(
            f"{job.output} holds another job: {', '.join(changes)}; choose another output"
        )
    write(output, "config.json", json.dumps(resolved, indent=1).encode())


def save_model(url: str, weights: Mapping[str, torch.Tensor], *, width: int, epoch: int) -> None:
    """Put a network where `load_model` finds it, whole or not at all."""
    folder, _, name = url.rpartition("/")
    buffer = io.BytesIO()
    torch.save({"net": dict(weights), "width": width, "epoch": epoch}, buffer)
    write(open_store(folder), name, buffer.getvalue())


def load_model(url: str, device: torch.device) -> CrownNet:
    """Load the network of `url`, a model.pt, for inference. Raises FileNotFoundError."""
    folder, _, name = url.rpartition("/")
    model = torch.load(
        io.BytesIO(read(open_store(folder), name)), map_location=device, weights_only=True
    )
    net = CrownNet(model["width"]).to(device)
    net.load_state_dict(model["net"])
    return net.eval()


def main(argv: list[str], environ: Mapping[str, str]) -> int:
    """Run the job at URL argv[0] and print its outcome as JSON; 2 for a wrong description."""
    if len(argv) != 1:
        print("usage: python -m gpu_tests.pipelines.job s3://bucket/job.toml", file=sys.stderr)
        return 2
    from .cluster import join

    try:
        resolve_job(argv[0])
        with join(environ) as cuda:
            outcome = run_job(argv[0], cuda=cuda)
    except ConfigError as problem:
        print(problem, file=sys.stderr)
        return 2
    print(
        json.dumps(
            {
                "stopped": outcome.stopped,
                "model": outcome.model,
                "epoch": outcome.metrics["epoch"],
                "iou": outcome.metrics["iou"],
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
