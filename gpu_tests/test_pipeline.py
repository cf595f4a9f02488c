"""The whole pipeline as one program: photographs become a map, through a promoted model."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from .accelerators import Accelerators
from .bucket import Bucket
from .pipelines.infer import load_crowns
from .pipelines.network import Score
from .pipelines.pipeline import APART, RATES, ZOOM, PipelineReport, promote
from .pipelines.store import list_keys, open_store, read, write
from .pipelines.tiles import draw_tile, encode_png
from .programs import last_line, start_program

pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")
COLUMNS, ROWS = 6, 4


def photograph(number: int) -> tuple[bytes, bytes]:
    """Draw an image and its mask.

    They hold tiles side by side, and a remainder at the edges that fills no tile.
    """
    drawn = [
        [draw_tile(ZOOM, number * APART + x, y, seed=1) for x in range(COLUMNS)]
        for y in range(ROWS)
    ]
    image, mask = (
        np.concatenate([np.concatenate([both[kind] for both in row], 1) for row in drawn])
        for kind in (0, 1)
    )
    image, mask = (
        np.pad(array, ((0, 30), (0, 50)) + ((0, 0),) * (array.ndim - 2)) for array in (image, mask)
    )
    return encode_png(Image.fromarray(image)), encode_png(Image.fromarray(mask).convert("1"))


@pytest.mark.ray(gpus=2)
def test_p1_photographs_become_a_map_with_one_command(
    bucket: Bucket, accelerators: Accelerators, figures: Callable[..., None]
) -> None:
    """Parts that work alone may not fit together: each reads the results of the one before it."""
    store = open_store(bucket.url)
    for number in (0, 1):
        image, mask = photograph(number)
        write(store, f"raw/{number}.png", image)
        write(store, f"raw/{number}.mask.png", mask)
    began = time.monotonic()

    process = start_program("pipeline", bucket.url)
    report: PipelineReport = json.loads(last_line(process, "pipeline", timeout_s=280))

    figures(seconds=round(time.monotonic() - began, 1), **report)
    expected = sorted(
        f"{ZOOM}/{number * APART + x}/{y}"
        for number in (0, 1)
        for x in range(COLUMNS)
        for y in range(ROWS)
    )
    assert report["ingest"]["tiles"] == len(expected)
    trials = {trial["learning_rate"]: trial["best"] for trial in report["search"]["trials"]}
    assert set(trials) == set(RATES)
    assert report["train"]["learning_rate"] == min(trials, key=lambda rate: trials[rate]), (
        "another rate was trained with than was found"
    )
    assert report["promote"], f"the model was not good enough: {report['evaluate']}"
    assert report["evaluate"]["iou"] > report["evaluate"]["share"]
    assert read(store, "promoted/model.pt") == read(store, "model/model.pt")
    crowns = load_crowns(f"{bucket.url}/crowns")
    assert sorted(crowns["tile"].to_pylist()) == expected, (
        "the map has other tiles than the photographs"
    )
    check_map(crowns, report["evaluate"]["iou"])


def check_map(crowns: pa.Table, measured_iou: float) -> None:
    """The map's crowns are where they were drawn.

    On all tiles they are about as good as on the held-out ones.
    """
    both = union = 0
    for tile, crown in zip(crowns["tile"].to_pylist(), crowns["crown"].to_pylist(), strict=True):
        _, x, y = (int(part) for part in tile.split("/"))
        predicted = np.frombuffer(crown, np.uint8).reshape(128, 128) > 127
        actual = draw_tile(ZOOM, x, y, seed=1)[1] > 0
        both += int((predicted & actual).sum())
        union += int((predicted | actual).sum())
    assert both / union > measured_iou - 0.15, (
        f"IoU {both / union:.2f} of the map; {measured_iou:.2f} was measured"
    )


def test_p1_a_model_that_is_no_better_is_not_promoted(tmp_path: Path) -> None:
    """Whatever comes out of a night's training, the map is made with the best model so far."""
    store = open_store(f"file://{tmp_path}")
    for name in ("good", "worse", "better"):
        write(store, f"{name}.pt", name.encode())

    def scored(iou: float, accuracy: float = 0.9) -> Score:
        return Score(accuracy=accuracy, majority=0.8, iou=iou, share=0.2)

    assert not promote(store, "worse.pt", scored(0.1)), "worth less than calling everything a crown"
    assert not promote(store, "worse.pt", scored(0.5, accuracy=0.7)), (
        "worth less than calling nothing a crown"
    )
    assert "promoted/model.pt" not in list_keys(store, "promoted")
    assert promote(store, "good.pt", scored(0.5))
    assert not promote(store, "worse.pt", scored(0.4))
    assert read(store, "promoted/model.pt") == b"good"
    assert promote(store, "better.pt", scored(0.6))
    assert json.load(io.BytesIO(read(store, "promoted/model.json")))["from"] == "better.pt"
