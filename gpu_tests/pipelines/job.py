"""A training job that is described by an object in a store: `python -m gpu_tests.pipelines.job s3://bucket/job.toml`.

    tiles = "s3://bucket/survey"       # images/z/x/y.png and masks/z/x/y.png lie there
    zoom = 17
    epochs = 12
    learning-rate = 0.01
    output = "s3://bucket/models/7"    # model.pt, config.json and checkpoints come there
    max-runtime-s = 25200

Everything that can be wrong with it is found before a GPU is asked for. The same job again, after whatever ended it, goes
on where it was.
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
from typing import Any

import obstore
import torch

from .network import CrownNet, digest
from .store import open_store, read, write
from .tiles import Stored, held_out, listed
from .train import TrainConfig, Work, fit

ZOOMS = range(25)


class ConfigError(ValueError):
    """The job's description is wrong: which key, which value, and what is expected."""


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
                raise ConfigError(f"{key(name)} = {getattr(self, name)}: expected more than 0")
        if self.zoom not in ZOOMS:
            raise ConfigError(f"zoom = {self.zoom}: expected {ZOOMS[0]} to {ZOOMS[-1]}")
        if self.width < 4 or self.width % 4:
            raise ConfigError(
                f"width = {self.width}: expected a multiple of 4, for the network normalises groups of 4 channels"
            )

    @property
    def training(self) -> TrainConfig:
        return TrainConfig(
            **{field.name: getattr(self, field.name) for field in fields(TrainConfig)}
        )


def key(name: str) -> str:
    return name.replace("_", "-")


def parse(text: str) -> Job:
    """Raises ConfigError for what is no TOML, an unknown key, one that is missing, and a value of another type."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise ConfigError(f"the configuration is no TOML: {problem}") from problem
    known = {key(field.name): field for field in fields(Job)}
    if unknown := sorted(set(raw) - set(known)):
        raise ConfigError(f"unknown key {unknown[0]!r}: expected one of {', '.join(known)}")
    if missing := [
        name for name, field in known.items() if field.default is MISSING and name not in raw
    ]:
        raise ConfigError(f"the configuration lacks {', '.join(missing)}")
    types: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}
    for name, value in raw.items():
        if isinstance(value, bool) or not isinstance(value, types[str(known[name].type)]):
            raise ConfigError(f"{name} = {value!r}: expected {known[name].type}")
    return Job(**{known[name].name: value for name, value in raw.items()})


def resolve(url: str) -> tuple[Job, Stored]:
    """The job that the object at `url` describes, and its tiles. Nothing is computed and nothing written.

    Raises ConfigError: no such object, one that is wrong, or tiles that are not there or have no masks.
    """
    folder, _, name = url.rpartition("/")
    try:
        text = read(open_store(folder), name).decode()
    except (FileNotFoundError, UnicodeDecodeError) as problem:
        raise ConfigError(
            f"there is no configuration at {url}: {problem}".split("\n")[0]
        ) from problem
    job = parse(text)
    try:
        store, _ = open_store(job.tiles), open_store(job.output)
        images, masks = listed(store, "images", job.zoom), set(listed(store, "masks", job.zoom))
    except (obstore.exceptions.BaseError, ValueError) as problem:
        raise ConfigError(
            f"tiles = {job.tiles!r} or output = {job.output!r} cannot be opened: {problem}".split(
                "\n"
            )[0]
        ) from problem
    if not images:
        raise ConfigError(f"there are no tiles of zoom {job.zoom} at {job.tiles}/images/{job.zoom}")
    if bare := [one for one in images if one not in masks]:
        raise ConfigError(
            f"{len(bare)} of {len(images)} tiles at {job.tiles} have no mask, {bare[0]} for one"
        )
    validation = int(held_out(images).sum())
    if not validation or len(images) - validation < job.workers:
        raise ConfigError(
            f"{len(images)} tiles are too few: {validation} for validation, the rest for {job.workers} workers"
        )
    return job, Stored(url=job.tiles, names=tuple(images))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a job came to. `stopped`: at its maximum runtime, with a checkpoint; `metrics` are of its last epoch."""

    stopped: bool
    model: str  # digest
    metrics: dict[str, Any]


def run(url: str, *, cuda: bool) -> Outcome:
    """Do the job that the object at `url` describes, on the Ray cluster that this process has joined.

    Raises ConfigError before anything is asked of the cluster, also where the output is another job's.
    """
    began = time.time()
    job, tiles = resolve(url)
    output = open_store(job.output)
    keep_resolved(job, tiles, output)
    told = Work(
        config=job.training,
        tiles=tiles,
        output=job.output,
        cuda=cuda,
        until=began + job.max_runtime_s,
    )
    checkpoint, metrics = fit(told, workers=job.workers, gpus_per_worker=job.gpus_per_worker)[-1]
    with checkpoint.as_directory() as folder:
        net = torch.load(Path(folder, "training.pt"), map_location="cpu", weights_only=True)["net"]
    save_model(f"{job.output}/model.pt", net, width=job.width, epoch=metrics["epoch"])
    return Outcome(stopped=metrics["epoch"] < job.epochs, model=digest(net), metrics=metrics)


def keep_resolved(job: Job, tiles: Stored, output: Any) -> None:
    """Write config.json: every value, given or not, and which tiles. Only the maximum runtime may differ from what is there."""
    names = sha256("\n".join(tiles.names).encode()).hexdigest()
    resolved = {
        **{key(name): value for name, value in asdict(job).items()},
        "tile-count": len(tiles),
        "tiles-sha256": names,
    }
    try:
        before = json.loads(read(output, "config.json"))
    except FileNotFoundError:
        before = resolved
    free = ("max-runtime-s",)
    if other := [
        name for name in resolved if name not in free and before.get(name) != resolved[name]
    ]:
        said = ", ".join(
            f"{name} was {before.get(name)!r} and is {resolved[name]!r}" for name in other
        )
        raise ConfigError(f"{job.output} holds another job: {said}; choose another output")
    write(output, "config.json", json.dumps(resolved, indent=1).encode())


def save_model(url: str, weights: Mapping[str, torch.Tensor], *, width: int, epoch: int) -> None:
    """Put a network where `load_model` finds it, whole or not at all."""
    folder, _, name = url.rpartition("/")
    held = io.BytesIO()
    torch.save({"net": dict(weights), "width": width, "epoch": epoch}, held)
    write(open_store(folder), name, held.getvalue())


def load_model(url: str, device: torch.device) -> CrownNet:
    """The network of `url`, a model.pt, for inference. Raises FileNotFoundError."""
    folder, _, name = url.rpartition("/")
    held = torch.load(
        io.BytesIO(read(open_store(folder), name)), map_location=device, weights_only=True
    )
    net = CrownNet(held["width"]).to(device)
    net.load_state_dict(held["net"])
    return net.eval()


def main(argv: list[str], environ: Mapping[str, str]) -> int:
    if len(argv) != 1:
        print("usage: python -m gpu_tests.pipelines.job s3://bucket/job.toml", file=sys.stderr)
        return 2
    from .cluster import join

    try:
        resolve(argv[0])
        with join(environ) as cuda:
            outcome = run(argv[0], cuda=cuda)
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
