"""Real aerial photographs through the same job and the same inference: a configuration, and no code of their own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from .conftest import SHARE, ZOOM, Accelerators, Bucket, configure
from .pipelines.infer import InferConfig, infer, load
from .pipelines.job import run
from .pipelines.network import score
from .pipelines.store import open_store
from .pipelines.tiles import Stored, held_out, real, upload

# Ray Data warns of its own settings.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")


@pytest.mark.ray(gpus=2)
def test_a1_crowns_are_learned_from_photographs_and_found_in_them(
    all_tiles: pa.Table, bucket: Bucket, accelerators: Accelerators, figures: Callable[..., None]
) -> None:
    """What is drawn is easy; photographs of four forests, with boxes by hand, are what a team has."""
    tiles = upload(open_store(f"{bucket.url}/tiles"), real(all_tiles, zoom=ZOOM))
    began = time.monotonic()
    trained = run(
        configure(bucket, epochs=6, learning_rate=0.01, checkpoint_every=6), cuda=accelerators.cuda
    )
    train_s, began = time.monotonic() - began, time.monotonic()
    url = bucket.url
    infer(
        InferConfig(
            tiles=f"{url}/tiles",
            zoom=ZOOM,
            model=f"{url}/model/model.pt",
            output=f"{url}/crowns",
            gpus_per_replica=SHARE,
        ),
        cuda=accelerators.cuda,
    )
    infer_s = time.monotonic() - began

    curve = trained.metrics["curve"]
    judge = Stored(url=f"{url}/tiles", names=tuple(tiles)).pick(held_out(tiles)).load()
    reached = score(stored(load(f"{url}/crowns"), judge.names), judge.masks)
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


def stored(crowns: pa.Table, tiles: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """The stored probabilities of these tiles, float32, (tiles, px, px), 0 to 1."""
    held = dict(zip(crowns["tile"].to_pylist(), crowns["crown"].to_pylist(), strict=True))
    found = (np.stack([np.frombuffer(held[name], np.uint8) for name in tiles]) / 255).astype(
        np.float32
    )
    side = int(np.sqrt(found.shape[1]))
    return found.reshape((-1, side, side))
