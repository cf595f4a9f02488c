"""The whole pipeline as one program: what goes in at one end comes out at the other, through a model that earned it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .conftest import Accelerators, Bucket
from .pipelines.infer import load
from .pipelines.network import Score
from .pipelines.store import names, open_store, read, write
from .pipelines.tiles import draw, png
from .pipelines.whole import APART, RATES, ZOOM, promote

pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")
COLUMNS, ROWS = 6, 4


def photograph(number: int) -> tuple[bytes, bytes]:
    """Tiles side by side, and a rest at the edges that fills none: an image and its mask."""
    drawn = [
        [draw(ZOOM, number * APART + x, y, seed=1) for x in range(COLUMNS)] for y in range(ROWS)
    ]
    image, mask = (
        np.concatenate([np.concatenate([both[kind] for both in row], 1) for row in drawn])
        for kind in (0, 1)
    )
    image, mask = (
        np.pad(one, ((0, 30), (0, 50)) + ((0, 0),) * (one.ndim - 2)) for one in (image, mask)
    )
    return png(Image.fromarray(image)), png(Image.fromarray(mask).convert("1"))


def program(url: str) -> dict[str, Any]:
    """The one command; what it says at the end. Fails with its words when it did not end well."""
    command = [sys.executable, "-m", f"{__package__}.pipelines.whole", url]
    path = {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(
        command,
        env={**os.environ, **path},
        text=True,
        capture_output=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"the program ended with {done.returncode}: {done.stderr[-3000:]}"
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.ray(gpus=2)
def test_p1_photographs_become_a_map_with_one_command(
    bucket: Bucket, accelerators: Accelerators, figures: Callable[..., None]
) -> None:
    """Parts that work alone may not fit together: here each takes what the one before it left in the store."""
    store = open_store(bucket.url)
    for number in (0, 1):
        image, mask = photograph(number)
        write(store, f"raw/{number}.png", image)
        write(store, f"raw/{number}.mask.png", mask)
    began = time.monotonic()

    said = program(bucket.url)

    figures(seconds=round(time.monotonic() - began, 1), **said)
    expected = sorted(
        f"{ZOOM}/{number * APART + x}/{y}"
        for number in (0, 1)
        for x in range(COLUMNS)
        for y in range(ROWS)
    )
    assert said["ingest"]["tiles"] == len(expected)
    trials = {trial["learning_rate"]: trial["best"] for trial in said["search"]["trials"]}
    assert set(trials) == set(RATES)
    assert said["train"]["learning_rate"] == min(trials, key=lambda rate: trials[rate]), (
        "another rate was trained with than was found"
    )
    assert said["promote"], f"the model was not good enough: {said['evaluate']}"
    assert said["evaluate"]["iou"] > said["evaluate"]["share"]
    assert read(store, "promoted/model.pt") == read(store, "model/model.pt")
    crowns = load(f"{bucket.url}/crowns")
    assert sorted(crowns["tile"].to_pylist()) == expected, (
        "the map has other tiles than the photographs"
    )
    check_map(crowns.to_pylist(), said["evaluate"])


def check_map(crowns: list[dict[str, Any]], evaluated: dict[str, float]) -> None:
    """What is in the map is where crowns were drawn: as good on all tiles as it was said to be on those that were held out."""
    both = union = 0
    for row in crowns:
        _, x, y = (int(part) for part in row["tile"].split("/"))
        said = np.frombuffer(row["crown"], np.uint8).reshape(128, 128) > 127
        true = draw(ZOOM, x, y, seed=1)[1] > 0
        both, union = both + int((said & true).sum()), union + int((said | true).sum())
    assert both / union > evaluated["iou"] - 0.15, (
        f"IoU {both / union:.2f} of the map; {evaluated['iou']:.2f} was measured"
    )


def test_p1_a_model_that_is_no_better_is_not_promoted(tmp_path: Path) -> None:
    """Whatever comes out of a night's training, the map of the morning is made with the best model so far."""
    store = open_store(f"file://{tmp_path}")
    for name in ("good", "worse", "better"):
        write(store, f"{name}.pt", name.encode())

    def scored(iou: float, accuracy: float = 0.9) -> Score:
        return Score(accuracy=accuracy, majority=0.8, iou=iou, share=0.2)

    assert not promote(store, "worse.pt", scored(0.1)), "worth less than calling everything a crown"
    assert not promote(store, "worse.pt", scored(0.5, accuracy=0.7)), (
        "worth less than calling nothing a crown"
    )
    assert "promoted/model.pt" not in names(store, "promoted")
    assert promote(store, "good.pt", scored(0.5))
    assert not promote(store, "worse.pt", scored(0.4))
    assert read(store, "promoted/model.pt") == b"good"
    assert promote(store, "better.pt", scored(0.6))
    assert json.load(io.BytesIO(read(store, "promoted/model.json")))["from"] == "better.pt"
