"""Batch inference: every tile once, the same result as a plain loop, and files that name their model."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gpu_tests.conftest import Accelerators, training_config
from gpu_tests.pipelines.infer import MODEL_KEY, SCHEMA, infer, rows
from gpu_tests.pipelines.network import CrownNet, Score, digest, predict, score
from gpu_tests.pipelines.tiles import Tiles, decode, held_out
from gpu_tests.pipelines.train import Training, fit, load_network

# Ray Data warns of its own settings.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")

CPU = torch.device("cpu")


def trained_here(tiles: Tiles, folder: Path) -> CrownNet:
    """A model out of a checkpoint, trained in this process: for a few tiles that is quicker than starting workers."""
    training = Training(training_config(tiles), CPU)
    for _ in range(training.config.epochs):
        training.epoch(tiles.pick(~held_out(tiles.names)))
    training.save(folder, tiles.pick(held_out(tiles.names)))
    return load_network(folder, CPU)


def trained_there(tiles: Tiles, folder: Path, *, cuda: bool) -> CrownNet:
    """The model that two workers trained: inference starts where training ended."""
    checkpoint, _ = fit(tiles, training_config(tiles), storage_path=str(folder), name="model", cuda=cuda).end
    with checkpoint.as_directory() as held:
        return load_network(Path(held), CPU)


@pytest.mark.ray(gpus=2)
def test_every_tile_is_inferred_once_and_as_in_a_plain_loop(
    tile_table: pa.Table,
    accelerators: Accelerators,
    figures: Callable[..., None],
    tmp_path: Path,
) -> None:
    """Distribution may change how long it takes, and nothing else."""
    cuda = accelerators.cuda
    tiles = decode(tile_table)
    net = trained_here(tiles, tmp_path) if len(tiles) < 100 else trained_there(tiles, tmp_path, cuda=cuda)
    output = tmp_path / "crowns"  # on several machines: a URL that all of them reach
    began = time.monotonic()

    model = infer(tile_table, net, output=str(output), cuda=cuda)
    seconds = time.monotonic() - began

    files = sorted(output.glob("*.parquet"))
    check_files(files, model)
    assert model == digest(net.state_dict())
    found = pa.concat_tables([pq.read_table(file) for file in files])
    check_exactly_once(found["tile"].to_pylist(), list(tiles.names))
    check_equal(found, rows(list(tiles.names), predict(net, tiles.images, CPU)), tiles, cuda=cuda)
    reached = check_worth(found, tiles)
    figures(tiles=len(tiles), infer_s=round(seconds, 1), files=len(files), **asdict(reached))


def check_files(files: list[Path], model: str) -> None:
    """A file that lies about alone still tells what is in it, and which model made it."""
    assert len(files) >= 2, "one shard: nothing was distributed"
    for file in files:
        schema = pq.read_schema(file)
        assert schema.remove_metadata() == SCHEMA
        assert (schema.metadata or {}).get(MODEL_KEY) == model.encode(), f"{file.name} names another model, or none"


def check_exactly_once(found: list[str], expected: list[str]) -> None:
    times, wanted = Counter(found), Counter(expected)
    off = {name: times[name] for name in {*times, *wanted} if times[name] != wanted[name]}
    assert not off, f"{len(off)} tiles were not inferred exactly once (tile: times): {dict(list(off.items())[:5])}"


def crowns(table: pa.Table, tiles: Tiles) -> npt.NDArray[np.uint8]:
    """The stored probabilities in 255ths, uint8, (tiles, px, px), in the order of `tiles`."""
    stored = dict(zip(table["tile"].to_pylist(), table["crown"].to_pylist(), strict=True))
    return np.stack([np.frombuffer(stored[name], np.uint8) for name in tiles.names]).reshape(tiles.masks.shape)


def check_equal(found: pa.Table, plain: pa.Table, tiles: Tiles, *, cuda: bool) -> None:
    """To the last bit on the CPU; on a GPU within about a hundredth, because its kernels sum in another order."""
    found, plain = found.replace_schema_metadata(None).sort_by("tile"), plain.sort_by("tile")
    if not cuda:
        assert found.equals(plain), "Ray Data and the plain loop disagree"
        return
    assert np.abs(crowns(found, tiles).astype(int) - crowns(plain, tiles)).max() <= 3
    assert np.allclose(found["crown_share"], plain["crown_share"], rtol=0, atol=0.01)


def check_worth(found: pa.Table, tiles: Tiles) -> Score:
    """What was stored is good for something: it beats the commoner class on tiles that were not trained on."""
    judged = held_out(tiles.names)
    reached = score(crowns(found, tiles)[judged] / 255, tiles.masks[judged])
    assert reached.accuracy > reached.majority + 0.02, f"{reached}"
    return reached


@pytest.mark.smoke
def test_a_tile_is_judged_by_itself(all_tiles: pa.Table, device: torch.device) -> None:
    """Which tiles share a batch is chance on a cluster: were it seen in the results, no run could be compared."""
    images = decode(all_tiles.slice(0, 40)).images
    torch.manual_seed(0)
    net = CrownNet().to(device)

    together = predict(net, images, device)
    apart = np.concatenate([predict(net, images[at : at + 7], device) for at in range(0, len(images), 7)])

    np.testing.assert_allclose(apart, together, rtol=0, atol=0 if device.type == "cpu" else 1e-3)
