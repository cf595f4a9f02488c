"""Early termination: the whole grid, Ray Tune's asynchronous halving, and halving by hand."""

from __future__ import annotations

import os
import statistics

import torch

from gpu_tests import fetch
from gpu_tests.pipelines.search import (
    REDUCTION,
    Space,
    best_trial,
    epochs_saved,
    full_grid,
    search_tiles,
)
from gpu_tests.pipelines.tiles import decode_table, read_table
from tests.benchmarks.measures.lab import Lab, ray_cluster
from tests.benchmarks.ratios import Figure, Ways, make_figure

CPU = torch.device("cpu")


def early_termination(lab: Lab) -> list[Figure]:
    """Measure the share of all epochs that a search does not compute."""
    fetch.fetch(fetch.DEEPFOREST, fetch.DATA, fetch.cache_folder(os.environ))
    tiles = decode_table(read_table(fetch.DATA / "tiles.parquet").slice(0, 90))
    space = Space.read()
    grid = full_grid(tiles, space, CPU)
    storage = f"file://{lab.scratch}/tune"
    with ray_cluster(lab.scratch / "ray", {}):
        searches = [
            search_tiles(tiles, space, storage=f"{storage}-{number}", device=CPU)
            for number in range(lab.rounds)
        ]
    lowest = min(min(losses) for losses in grid)
    regret = statistics.median(best_trial(costs).best - lowest for costs in searches)
    shares = [epochs_saved(costs, space.epochs) for costs in searches]
    total = len(grid) * space.epochs
    ways: dict[str, list[float]] = {
        "whole grid": [total],
        "ours": [total * (1 - share) for share in shares],
        "halving in rounds, by hand": [halve_in_rounds(grid, space.epochs)],
    }
    return [
        make_figure(
            "early_termination_epochs_saved",
            shares,
            Ways(ways, unit="epochs", busy=False, steady=None),
            unit="of epochs",
            floor=0.8,
            baseline="the whole grid",
            note=f"48 configurations × 32 epochs; loss of the best over the grid's: {regret:.4f}",
        )
    ]


def halve_in_rounds(grid: list[list[float]], epochs: int) -> int:
    """Return the epochs of successive halving in rounds: all trials to a rung, then the best."""
    computed, remaining, rung = 0, list(range(len(grid))), 1
    while True:
        computed += len(remaining) * (rung - rung // REDUCTION)
        if rung >= epochs:
            return computed
        ranked = sorted(remaining, key=lambda trial: min(grid[trial][:rung]))
        remaining = ranked[: max(1, len(remaining) // REDUCTION)]
        rung = min(rung * REDUCTION, epochs)
