"""Real aerial photographs through the same job and the same inference, by configuration alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from .accelerators import SHARE, Accelerators
from .bucket import ZOOM, Bucket
from .pipelines.infer import InferConfig, infer, load_crowns
from .pipelines.job import run_job
from .pipelines.network import score
from .pipelines.store import open_store
from .pipelines.tiles import StoredTiles, held_out, photograph_tiles, upload_tiles

# Ray Data warns of its own settings.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")


@pytest.mark.ray(gpus=2)
def test_a1_crowns_are_learned_from_photographs_and_found_in_them(
    all_tiles: pa.Table, bucket: Bucket, accelerators: Accelerators, figures: Callable[..., None]
) -> None:
    """Drawn tiles are easy; a team has photographs of four forests, with boxes by hand."""
    tiles = upload_tiles(open_store(f"{bucket.url}/tiles"), photograph_tiles(all_tiles, zoom=ZOOM))
    began = time.monotonic()
    job = bucket.write_job(epochs=6, learning_rate=0.01, checkpoint_every=6)
    trained = run_job(job, cuda=accelerators.cuda)
    train_s, began = time.monotonic() - began, time.monotonic()
    url = bucket.url
    config = InferConfig(
        tiles=f"{url}/tiles",
        zoom=ZOOM,
        model=f"{url}/model/model.pt",
        output=f"{url}/crowns",
        gpus_per_replica=SHARE,
    )
    infer(config, cuda=accelerators.cuda)
    infer_s = time.monotonic() - began

    curve = trained.metrics["curve"]
    judge = StoredTiles(url=f"{url}/tiles", names=tuple(tiles)).pick(held_out(tiles)).load()
    reached = score(stored_probabilities(load_crowns(f"{url}/crowns"), judge.names), judge.masks)
    figures(
        tiles=len(tiles),
        train_s=round(train_s, 1),
        infer_s=round(infer_s, 1),
        curve=curve,
        **asdict(reached),
    )
    assert curve[-1] < 0.9 * curve[0], f"the loss did not fall: {curve[0]:.3f} to {curve[-1]:.3f}"
    assert reached.accuracy > reached.majority + 0.02, (
        f"what was stored is no better than the commoner class: {reached}"
    )
    assert reached.iou == pytest.approx(trained.metrics["iou"], abs=0.01), (
        "inference found something else than training had measured"
    )


def stored_probabilities(crowns: pa.Table, tiles: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """Return the stored probabilities of these tiles, float32, (tiles, px, px), 0 to 1."""
    rows = dict(zip(crowns["tile"].to_pylist(), crowns["crown"].to_pylist(), strict=True))
    pixels = np.stack([np.frombuffer(rows[name], np.uint8) for name in tiles])
    side = int(np.sqrt(pixels.shape[1]))
    return (pixels / 255).astype(np.float32).reshape((-1, side, side))
