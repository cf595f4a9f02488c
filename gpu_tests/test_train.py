"""Training on two workers: it learns, both take part, and a checkpoint gives back exactly what was saved."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from gpu_tests.conftest import Accelerators, training_config
from gpu_tests.pipelines.network import digest
from gpu_tests.pipelines.tiles import decode, held_out
from gpu_tests.pipelines.train import fit, load_network

# Ray Data warns of its own settings.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")


@pytest.mark.ray(gpus=2)
def test_two_workers_learn_crowns_and_a_checkpoint_goes_on_exactly(
    tile_table: pa.Table,
    accelerators: Accelerators,
    figures: Callable[..., None],
    tmp_path: Path,
) -> None:
    """A training that was interrupted must end with the model that an uninterrupted one ends with."""
    tiles = decode(tile_table)
    config = training_config(tiles)
    place = str(tmp_path)  # on several machines: a URL that all of them reach
    began = time.monotonic()

    whole = fit(tiles, config, name="whole", storage_path=place, cuda=accelerators.cuda)
    whole_s = time.monotonic() - began
    middle, before = whole.saved[config.checkpoint_every]
    rest = fit(tiles, config, name="rest", start=middle, storage_path=place, cuda=accelerators.cuda)

    end, resumed = whole.end[1], rest.end[1]
    reached = {key: end[key] for key in ("curve", "accuracy", "majority", "iou")}
    figures(tiles=len(tiles), train_s=round(whole_s, 1), **reached, restored=resumed["restored"])
    check_both_took_part(end["workers"], training_tiles=int((~held_out(tiles.names)).sum()), cuda=accelerators.cuda)
    check_learning(end)
    check_restored(resumed["restored"], before, cuda=accelerators.cuda)
    check_same_end(end, resumed, cuda=accelerators.cuda)
    for checkpoint, metrics in whole.saved.values():
        with checkpoint.as_directory() as folder:
            net = load_network(Path(folder), torch.device("cpu"))
        assert digest(net.state_dict()) == metrics["workers"][0]["weights"], "a checkpoint holds other weights"


def check_both_took_part(workers: list[dict[str, Any]], *, training_tiles: int, cuda: bool) -> None:
    """Each worker had a GPU of its own and half of the tiles, and gradients were shared: the weights are the same."""
    assert len(workers) == 2
    taken = [(worker["node"], *worker["gpus"]) for worker in workers]
    assert len(set(taken)) == 2, f"both workers were given the same GPU: {taken}"
    assert all(len(worker["gpus"]) == 1 for worker in workers), taken
    assert {worker["device"].partition(":")[0] for worker in workers} == {"cuda" if cuda else "cpu"}
    seen = sorted(index for worker in workers for index in worker["tiles"])
    assert len(set(seen)) == len(seen), "a tile was trained on twice in one epoch"
    assert len(seen) >= training_tiles - 1, f"{len(seen)} of {training_tiles} tiles were used; only an odd one may rest"
    assert workers[0]["weights"] == workers[1]["weights"], "the workers have drifted apart: gradients were not shared"


def check_learning(end: dict[str, Any]) -> None:
    first, last = end["curve"][0], end["curve"][-1]
    assert last < 0.9 * first, f"the loss did not fall: {first:.3f} to {last:.3f}"
    margin = end["accuracy"] - end["majority"]
    assert margin > 0.03, f"accuracy {end['accuracy']:.3f} is not above the commoner class's {end['majority']:.3f}"


def check_restored(restored: dict[str, Any] | None, before: dict[str, Any], *, cuda: bool) -> None:
    """In fresh processes, before any further step: the same weights, and the same predictions."""
    assert restored is not None, "the second run began anew, without the checkpoint"
    assert restored["epoch"] == before["epoch"], "the training did not go on where the checkpoint was"
    assert restored["weights"] == before["workers"][0]["weights"], "other weights came back than were saved"
    assert restored["difference"] <= (1e-3 if cuda else 0.0), "the same weights predict something else after restoring"


def check_same_end(end: dict[str, Any], resumed: dict[str, Any], *, cuda: bool) -> None:
    """The rest of a training depends on nothing that a checkpoint lacks."""
    assert len(resumed["curve"]) == len(end["curve"])
    if cuda:  # some sums come in another order there
        assert resumed["curve"] == pytest.approx(end["curve"], rel=0.02)
        return
    assert resumed["curve"] == end["curve"], "the resumed training went another way"
    assert resumed["workers"][0]["weights"] == end["workers"][0]["weights"], "the resumed training ended elsewhere"
