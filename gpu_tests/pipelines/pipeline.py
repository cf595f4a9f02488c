"""From photographs to a map of crowns, as one program.

    python -m gpu_tests.pipelines.pipeline s3://bucket/run

    ingest -> search -> train -> evaluate -> promote -> infer

Photographs are under raw/: name.png, and name.mask.png with the crowns drawn in. The results are
beside them: tiles/, model/, promoted/ and crowns/. A model that is no better than the promoted one
is not promoted; the map is always made with the promoted one.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import ray
import torch
from obstore.store import ObjectStore
from PIL import Image

from . import job
from .infer import InferConfig, infer
from .network import Score, predict, score
from .search import Cost, best_trial, epochs_saved, search
from .store import list_keys, open_store, read, write
from .tiles import TILE_PX, StoredTiles, Tiles, encode_png, held_out, list_tiles, upload_tiles
from .train import TrainConfig, Training

ZOOM = 17
APART = 100  # columns between the tiles of two photographs
RATES = (3e-4, 3e-3, 2e-2, 3e-1)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The length of search and training. `gpus`: for each worker and replica."""

    search_epochs: int = 4
    epochs: int = 10
    batch: int = 4
    max_runtime_s: int = 3600
    gpus: float = 1.0


@ray.remote(num_cpus=0.5)
def upload_photograph(url: str, name: str, column: int) -> list[str]:
    """Cut one photograph and put its tiles into tiles/; return their names."""
    store = open_store(url)
    image, mask = (
        np.asarray(Image.open(io.BytesIO(read(store, f"raw/{name}{kind}.png"))))
        for kind in ("", ".mask")
    )
    return upload_tiles(open_store(f"{url}/tiles"), cut_tiles(image, mask > 0, column))


def cut_tiles(
    image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], column: int
) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield a photograph's whole tiles: name, image, mask.

    `image`: (height, width, 3); `mask`: (height, width); `column`: of its first tile on the map.
    """
    for y in range(image.shape[0] // TILE_PX):
        for x in range(image.shape[1] // TILE_PX):
            area = slice(y * TILE_PX, (y + 1) * TILE_PX), slice(x * TILE_PX, (x + 1) * TILE_PX)
            yield (
                f"{ZOOM}/{column + x}/{y}",
                encode_png(Image.fromarray(image[area]).convert("RGB")),
                encode_png(Image.fromarray(mask[area])),
            )


def ingest_photographs(url: str) -> list[str]:
    """Cut all photographs under raw/ and return the names of their tiles.

    Raises ValueError when there are none, and FileNotFoundError when one has no mask.
    """
    raw = [
        key.removeprefix("raw/").removesuffix(".png") for key in list_keys(open_store(url), "raw")
    ]
    photographs = [name for name in raw if not name.endswith(".mask")]
    if not photographs:
        raise ValueError(f"there are no photographs at {url}/raw")
    if bare := [name for name in photographs if f"{name}.mask" not in raw]:
        raise FileNotFoundError(
            f"{url}/raw/{bare[0]}.mask.png is missing: a photograph comes with its mask"
        )
    cuts = [
        upload_photograph.remote(url, name, number * APART)
        for number, name in enumerate(photographs)
    ]
    return sorted(tile for tiles in ray.get(cuts) for tile in tiles)


def validation_losses(config: TrainConfig, tiles: Tiles, device: torch.device) -> Iterator[float]:
    """Train, and yield the loss on held-out tiles after each epoch."""
    validation = held_out(tiles.names)
    learn, judge = tiles.pick(~validation), tiles.pick(validation)
    training = Training(config, device)
    for _ in range(config.epochs):
        training.train_epoch(learn)
        probability = np.clip(predict(training.net, judge.images, device), 1e-6, 1 - 1e-6)
        yield float(-np.where(judge.masks > 0, np.log(probability), np.log(1 - probability)).mean())


def evaluate(model: str, tiles: Tiles) -> Score:
    """Score the model at this URL on held-out tiles.

    It runs on the CPU, so that models of all times compare.
    """
    judge = tiles.pick(held_out(tiles.names))
    device = torch.device("cpu")
    return score(predict(job.load_model(model, device), judge.images, device), judge.masks)


def promote(store: ObjectStore, candidate: str, result: Score) -> bool:
    """Promote the model under this key, if it is better than the promoted one.

    It must also be worth more than a constant answer. promoted/model.json is written last: it names
    the model and its score.
    """
    try:
        before = float(json.loads(read(store, "promoted/model.json"))["iou"])
    except FileNotFoundError:
        before = result.share  # of calling everything a crown
    if result.iou <= before or result.accuracy <= result.majority:
        return False
    write(store, "promoted/model.pt", read(store, candidate))
    write(store, "promoted/model.json", json.dumps({"from": candidate, **asdict(result)}).encode())
    return True


class TrainReport(TypedDict):
    """The model's digest, the rate it was trained with, and the loss of every epoch."""

    model: str
    learning_rate: float
    curve: list[float]


class SearchReport(TypedDict):
    """A row for each trial, and the share of all epochs that were not computed."""

    trials: list[dict[str, float]]
    epochs_saved: float


class PipelineReport(TypedDict):
    """The results of the stages: what the program prints. `evaluate`: the fields of Score."""

    ingest: dict[str, int]
    search: SearchReport
    train: TrainReport
    evaluate: dict[str, float]
    promote: bool
    infer: dict[str, object]


def run_pipeline(url: str, sizes: Sizes, *, cuda: bool) -> PipelineReport:
    """Run all stages on the Ray cluster that this process has joined; return their results."""
    names = ingest_photographs(url)
    folder = f"{url}/tiles"
    tiles = StoredTiles(
        url=folder, names=tuple(list_tiles(open_store(folder), "images", ZOOM))
    ).load()
    costs = search_rates(url, sizes, tiles, cuda=cuda)
    chosen = replace(best_trial(costs).trial, epochs=sizes.epochs)
    trained = train_model(url, sizes, chosen, cuda=cuda)
    result = evaluate(f"{url}/model/model.pt", tiles)
    promoted = promote(open_store(url), "model/model.pt", result)
    config = InferConfig(
        tiles=folder,
        zoom=ZOOM,
        model=f"{url}/promoted/model.pt",
        output=f"{url}/crowns",
        shard=16,
        gpus_per_replica=sizes.gpus,
    )
    inferred = infer(config, cuda=cuda)
    return {
        "ingest": {"tiles": len(names)},
        "search": {
            "trials": [cost.row() for cost in costs],
            "epochs_saved": epochs_saved(costs, sizes.search_epochs),
        },
        "train": {
            "model": trained.model,
            "learning_rate": chosen.learning_rate,
            "curve": trained.metrics["curve"],
        },
        "evaluate": asdict(result),
        "promote": promoted,
        "infer": asdict(inferred),
    }


def search_rates(url: str, sizes: Sizes, tiles: Tiles, *, cuda: bool) -> list[Cost[TrainConfig]]:
    """Search for the best of RATES; return the cost of each."""
    device = torch.device("cuda" if cuda else "cpu")
    reference = ray.put(tiles)  # one copy for all trials
    trials = [
        TrainConfig(epochs=sizes.search_epochs, batch=sizes.batch, learning_rate=rate)
        for rate in RATES
    ]
    return search(
        lambda trial: validation_losses(trial, ray.get(reference), device),
        trials,
        epochs=sizes.search_epochs,
        storage=f"{url}/search",
        gpus=sizes.gpus / 2,
    )


def train_model(url: str, sizes: Sizes, config: TrainConfig, *, cuda: bool) -> job.Outcome:
    """Write job.toml and run it."""
    settings = {
        "tiles": f"{url}/tiles",
        "zoom": ZOOM,
        "output": f"{url}/model",
        "max-runtime-s": sizes.max_runtime_s,
        "epochs": config.epochs,
        "batch": config.batch,
        "learning-rate": config.learning_rate,
        "gpus-per-worker": sizes.gpus,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    write(open_store(url), "job.toml", "\n".join(lines).encode())
    return job.run_job(f"{url}/job.toml", cuda=cuda)


def main(argv: list[str], environ: Mapping[str, str]) -> int:
    """Run the pipeline under the URL argv[0] and print its report as JSON."""
    from .cluster import join

    with join(environ) as cuda:
        gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]  # ray
        print(json.dumps(run_pipeline(argv[0], Sizes(gpus=min(1.0, gpus / 2)), cuda=cuda)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
