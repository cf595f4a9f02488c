"""Hyper-parameter search: most epochs are not computed, and the best configuration is found."""

from __future__ import annotations

import csv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from .accelerators import SHARE, Accelerators
from .pipelines.search import (
    REDUCTION,
    Cost,
    Space,
    Trial,
    best_trial,
    epochs_saved,
    full_grid,
    search_tiles,
)
from .pipelines.tiles import Tiles, decode_table

pytestmark = pytest.mark.filterwarnings(
    r"ignore::DeprecationWarning:ray\.", "ignore::FutureWarning"
)
REGRET = 0.005  # of the best trial's loss, over the lowest loss of the whole grid


@pytest.fixture
def tiles(all_tiles: pa.Table) -> Tiles:
    """Return the first 90 tiles of the photographs, decoded."""
    return decode_table(all_tiles.slice(0, 90))


@pytest.mark.ray(gpus=2)
def test_t3_early_termination_saves_four_fifths_and_keeps_the_best(
    tiles: Tiles,
    accelerators: Accelerators,
    figures: Callable[..., None],
    artifacts: Path,
    tmp_path: Path,
) -> None:
    """GPU hours are the cost of a search; saving them may cost the best configuration."""
    space = Space.read()
    device = torch.device("cuda" if accelerators.cuda else "cpu")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(full_grid, tiles, space, device)
        storage = f"file://{tmp_path}"
        costs = search_tiles(tiles, space, storage=storage, device=device, gpus=SHARE / 2)
        grid = future.result()

    share = epochs_saved(costs, space.epochs)
    write_table(costs, artifacts / "trials.csv")
    figures(trials=len(costs), epochs_saved=round(share, 3), best=best_trial(costs).row())
    check_prefixes(costs, grid, cuda=accelerators.cuda)
    check_rungs(costs, space, stopping=(1, REDUCTION))
    assert share >= 0.8, f"only {share:.1%} of the epochs were saved"
    lowest = min(min(losses) for losses in grid)
    assert best_trial(costs).best <= lowest + REGRET, (
        f"the search ends at {best_trial(costs).best:.4f}; the grid has {lowest:.4f}"
    )


def check_prefixes(costs: list[Cost[Trial]], grid: list[list[float]], *, cuda: bool) -> None:
    """A trial is the beginning of its curve in the grid: only its end was changed."""
    for cost, curve in zip(costs, grid, strict=True):
        prefix = curve[: len(cost.losses)]
        assert list(cost.losses) == (pytest.approx(prefix, rel=0.02) if cuda else prefix), (
            f"{cost.trial} went another way on the cluster"
        )


def check_rungs(costs: list[Cost[Trial]], space: Space, *, stopping: tuple[int, ...]) -> None:
    """The lower rungs each stopped a trial, and one trial got all the epochs."""
    lengths = [len(cost.losses) for cost in costs]
    for rung in stopping:
        assert rung in lengths, f"no trial was stopped after {rung} epochs: {sorted(lengths)}"
    assert max(lengths) == space.epochs, "no trial was carried through"


def write_table(costs: list[Cost[Trial]], path: Path) -> None:
    """Write a row for each trial."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(costs[0].row()))
        table.writeheader()
        table.writerows(cost.row() for cost in costs)
