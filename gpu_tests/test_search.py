"""Hyper-parameter search: most epochs are never computed, and the best configuration is found all the same."""

from __future__ import annotations

import csv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import torch

from .conftest import SHARE, Accelerators
from .pipelines.search import REDUCTION, Cost, Space, best, curve, saved, search
from .pipelines.tiles import Tiles, decode

pytestmark = pytest.mark.filterwarnings(
    r"ignore::DeprecationWarning:ray\.", "ignore::FutureWarning"
)
REGRET = 0.005  # of the best trial's loss, over what the whole grid would have found


@pytest.fixture
def tiles(all_tiles: pa.Table) -> Tiles:
    return decode(all_tiles.slice(0, 90))


@pytest.mark.ray(gpus=2)
def test_t3_early_termination_saves_four_fifths_and_keeps_the_best(
    tiles: Tiles,
    accelerators: Accelerators,
    figures: Callable[..., None],
    artifacts: Path,
    tmp_path: Path,
) -> None:
    """GPU hours are what a search costs; a configuration that is thrown away too early is what saving them may cost."""
    space = Space.read()
    with ThreadPoolExecutor(1) as beside:  # the whole grid, in this process
        grid_to_come = beside.submit(grid_of, tiles, space, cuda=accelerators.cuda)
        held, device = (
            ray.put(tiles),
            torch.device("cuda" if accelerators.cuda else "cpu"),
        )  # one copy for all trials
        costs = search(
            lambda trial: curve(
                ray.get(held), trial, seed=space.seed, epochs=space.epochs, device=device
            ),
            space.trials,
            epochs=space.epochs,
            storage=f"file://{tmp_path}",
            gpus=SHARE / 2,
        )
        grid = grid_to_come.result()

    share = saved(costs, space.epochs)
    keep_table(costs, artifacts / "trials.csv")
    figures(trials=len(costs), epochs_saved=round(share, 3), best=best(costs).row())
    check_prefixes(costs, grid, cuda=accelerators.cuda)
    check_rungs(costs, space, stopping=(1, REDUCTION))
    assert share >= 0.8, f"only {share:.1%} of the epochs were saved"
    lowest = min(min(losses) for losses in grid)
    assert best(costs).best <= lowest + REGRET, (
        f"the search ends at {best(costs).best:.4f}; the grid has {lowest:.4f}"
    )


def grid_of(tiles: Tiles, space: Space, *, cuda: bool) -> list[list[float]]:
    """What every trial would come to with all its epochs."""
    device = torch.device("cuda" if cuda else "cpu")
    return [
        list(curve(tiles, trial, seed=space.seed, epochs=space.epochs, device=device))
        for trial in space.trials
    ]


def check_prefixes(costs: list[Cost], grid: list[list[float]], *, cuda: bool) -> None:
    """A trial is the beginning of what it would have been: nothing but its end was changed."""
    for found, whole in zip(costs, grid, strict=True):
        given = whole[: len(found.losses)]
        assert list(found.losses) == (pytest.approx(given, rel=0.02) if cuda else given), (
            f"{found.trial} went another way on the cluster"
        )


def check_rungs(costs: list[Cost], space: Space, *, stopping: tuple[int, ...]) -> None:
    """The lower rungs each stopped somebody, and somebody got all the epochs."""
    lengths = [len(one.losses) for one in costs]
    for rung in stopping:
        assert rung in lengths, f"no trial was stopped after {rung} epochs: {sorted(lengths)}"
    assert max(lengths) == space.epochs, "no trial was carried through"


def keep_table(costs: list[Cost], path: Path) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(costs[0].row()))
        table.writeheader()
        table.writerows(one.row() for one in costs)
