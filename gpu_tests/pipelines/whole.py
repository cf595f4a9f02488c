"""From photographs to a map of crowns, as one program: `python -m gpu_tests.pipelines.whole s3://bucket/run`.

    ingest -> search -> train -> evaluate -> promote -> infer

Photographs are under raw/ (name.png, and name.mask.png with the crowns drawn in). What comes of it is beside them: tiles/,
model/, promoted/ and crowns/. A model that is no better than the promoted one is not promoted; the map is always made with
the promoted one.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import ray
import torch
from obstore.store import ObjectStore
from PIL import Image

from . import job
from .infer import InferConfig, infer
from .network import Score, predict, score
from .search import best, saved, search
from .store import names, open_store, read, write
from .tiles import TILE_PX, Stored, Tiles, held_out, listed, png, upload
from .train import TrainConfig, Training

ZOOM = 17
APART = 100  # columns between the tiles of two photographs
RATES = (3e-4, 3e-3, 2e-2, 3e-1)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How long it searches and trains."""

    search_epochs: int = 4
    epochs: int = 10
    batch: int = 4
    max_runtime_s: int = 3600
    gpus: float = 1.0  # for each worker and replica


@ray.remote(num_cpus=0.5)
def cut(url: str, name: str, column: int) -> list[str]:
    """Put the tiles of one photograph into tiles/; their names."""
    store = open_store(url)
    image, mask = (
        np.asarray(Image.open(io.BytesIO(read(store, f"raw/{name}{kind}.png"))))
        for kind in ("", ".mask")
    )
    return upload(open_store(f"{url}/tiles"), pieces(image, mask > 0, column))


def pieces(image: Any, mask: Any, column: int) -> Iterator[tuple[str, bytes, bytes]]:
    """A photograph's whole tiles, the first of them at this column of the map."""
    for y in range(image.shape[0] // TILE_PX):
        for x in range(image.shape[1] // TILE_PX):
            at = slice(y * TILE_PX, (y + 1) * TILE_PX), slice(x * TILE_PX, (x + 1) * TILE_PX)
            yield (
                f"{ZOOM}/{column + x}/{y}",
                png(Image.fromarray(image[at]).convert("RGB")),
                png(Image.fromarray(mask[at])),
            )


def ingest(url: str) -> list[str]:
    """Cut all photographs under raw/. Raises ValueError when there are none, FileNotFoundError when one has no mask."""
    raw = [key.removeprefix("raw/").removesuffix(".png") for key in names(open_store(url), "raw")]
    photographs = [name for name in raw if not name.endswith(".mask")]
    if not photographs:
        raise ValueError(f"there are no photographs at {url}/raw")
    if bare := [name for name in photographs if f"{name}.mask" not in raw]:
        raise FileNotFoundError(
            f"{url}/raw/{bare[0]}.mask.png is missing: a photograph comes with its mask"
        )
    cuts = [cut.remote(url, name, number * APART) for number, name in enumerate(photographs)]
    return sorted(tile for tiles in ray.get(cuts) for tile in tiles)


def judged(config: TrainConfig, tiles: Tiles, device: torch.device) -> Iterator[float]:
    """The loss on held-out tiles after each epoch."""
    validation = held_out(tiles.names)
    learn, judge = tiles.pick(~validation), tiles.pick(validation)
    training = Training(config, device)
    for _ in range(config.epochs):
        training.epoch(learn)
        said = np.clip(predict(training.net, judge.images, device), 1e-6, 1 - 1e-6)
        yield float(-np.where(judge.masks > 0, np.log(said), np.log(1 - said)).mean())


def evaluate(model: str, tiles: Tiles) -> Score:
    """The model at this URL on held-out tiles, on the CPU, so that models of all times compare."""
    judge = tiles.pick(held_out(tiles.names))
    device = torch.device("cpu")
    return score(predict(job.load_model(model, device), judge.images, device), judge.masks)


def promote(store: ObjectStore, candidate: str, found: Score) -> bool:
    """Let the model under this key be the promoted one, if it is worth anything and better than the one that is.

    promoted/model.json is written last: it says which model it is, and how good.
    """
    try:
        before = float(json.loads(read(store, "promoted/model.json"))["iou"])
    except FileNotFoundError:
        before = found.share  # of calling everything a crown
    if found.iou <= before or found.accuracy <= found.majority:
        return False
    write(store, "promoted/model.pt", read(store, candidate))
    write(store, "promoted/model.json", json.dumps({"from": candidate, **asdict(found)}).encode())
    return True


def run(url: str, sizes: Sizes, *, cuda: bool) -> dict[str, Any]:
    """All of it, on the Ray cluster that this process has joined; what each step came to."""
    store, device = open_store(url), torch.device("cuda" if cuda else "cpu")
    tiles = ingest(url)
    loaded = Stored(
        url=f"{url}/tiles", names=tuple(listed(open_store(f"{url}/tiles"), "images", ZOOM))
    ).load()

    held = ray.put(loaded)
    trials = [
        TrainConfig(epochs=sizes.search_epochs, batch=sizes.batch, learning_rate=rate)
        for rate in RATES
    ]
    costs = search(
        lambda trial: judged(trial, ray.get(held), device),
        trials,
        epochs=sizes.search_epochs,
        storage=f"{url}/search",
        gpus=sizes.gpus / 2,
    )
    chosen = replace(best(costs).trial, epochs=sizes.epochs)

    described = {
        "tiles": f"{url}/tiles",
        "zoom": ZOOM,
        "output": f"{url}/model",
        "max-runtime-s": sizes.max_runtime_s,
        "epochs": chosen.epochs,
        "batch": chosen.batch,
        "learning-rate": chosen.learning_rate,
        "gpus-per-worker": sizes.gpus,
    }
    write(
        store,
        "job.toml",
        "\n".join(f"{name} = {json.dumps(value)}" for name, value in described.items()).encode(),
    )
    trained = job.run(f"{url}/job.toml", cuda=cuda)

    found = evaluate(f"{url}/model/model.pt", loaded)
    promoted = promote(store, "model/model.pt", found)
    inferred = infer(
        InferConfig(
            tiles=f"{url}/tiles",
            zoom=ZOOM,
            model=f"{url}/promoted/model.pt",
            output=f"{url}/crowns",
            shard=16,
            gpus_per_replica=sizes.gpus,
        ),
        cuda=cuda,
    )
    return {
        "ingest": {"tiles": len(tiles)},
        "search": {
            "trials": [cost.row() for cost in costs],
            "epochs_saved": saved(costs, sizes.search_epochs),
        },
        "train": {
            "model": trained.model,
            "learning_rate": chosen.learning_rate,
            "curve": trained.metrics["curve"],
        },
        "evaluate": asdict(found),
        "promote": promoted,
        "infer": asdict(inferred),
    }


def main(argv: list[str], environ: Mapping[str, str]) -> int:
    from .cluster import join

    with join(environ) as cuda:
        gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]  # ray
        print(json.dumps(run(argv[0], Sizes(gpus=min(1.0, gpus / 2)), cuda=cuda)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
