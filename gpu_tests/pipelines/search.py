"""Hyper-parameter search with early termination: every configuration of a fixed list starts, the promising ones go on.

The list, its order and the seed are in `search_space.json`: successive halving compares a trial with those before it, so
another order would be another search.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from torch import Tensor, nn

from .network import one_thread
from .store import arrow
from .tiles import Tiles, held_out

SPACE = Path(__file__).with_name("search_space.json")
PX = 32  # a tile is looked at this small
REDUCTION = 4  # of the trials that reach a rung, one in so many goes on
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration: `rate` of learning, `width` of the network in channels, weight `decay`, `momentum`."""

    rate: float
    width: int
    decay: float
    momentum: float


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is searched: at most `epochs` for each of `trials`, in their order; `seed` of weights and shuffling."""

    seed: int
    epochs: int
    trials: tuple[Trial, ...]

    @classmethod
    def read(cls, path: Path = SPACE) -> Space:
        raw = json.loads(path.read_text("utf-8"))
        return cls(
            seed=raw["seed"],
            epochs=raw["epochs"],
            trials=tuple(Trial(**trial) for trial in raw["trials"]),
        )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a trial came to: validation loss after each epoch that it was given, and seconds of its process."""

    trial: Any
    losses: tuple[float, ...]
    seconds: float

    @property
    def best(self) -> float:
        return min(self.losses)

    def row(self) -> dict[str, Any]:
        return {
            **asdict(self.trial),
            "epochs": len(self.losses),
            "best": round(self.best, 5),
            "seconds": round(self.seconds, 3),
        }


def small(tiles: Tiles) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Tiles as means of squares, float32, (tiles, 3, PX, PX), 0 to 1; and the share of each that is crown, float32, (tiles,)."""
    count, px = tiles.masks.shape[:2]
    side = px // PX
    means = tiles.images.reshape(count, PX, side, PX, side, 3).mean(axis=(2, 4), dtype=np.float32)
    return np.ascontiguousarray(means.transpose(0, 3, 1, 2) / 255), tiles.masks.mean(
        axis=(1, 2), dtype=np.float32
    )


def network(width: int) -> nn.Module:
    """Three strided convolutions to one number, the share of a tile that is crown as a logit, (batch, 1)."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, width), (width, 2 * width), (2 * width, 2 * width)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 1))


def curve(
    tiles: Tiles, trial: Trial, *, seed: int, epochs: int, device: torch.device
) -> Iterator[float]:
    """Train a configuration; yields the validation loss after each epoch, the same bits on every run on one kind of CPU."""
    images, shares = small(tiles)
    judged = held_out(tiles.names)
    torch.manual_seed(seed)
    net = network(trial.width).to(device)
    steps = torch.optim.SGD(
        net.parameters(), lr=trial.rate, momentum=trial.momentum, weight_decay=trial.decay
    )
    inputs, wanted = torch.from_numpy(images).to(device), torch.from_numpy(shares).to(device)
    learned, order = np.flatnonzero(~judged), np.random.default_rng(seed)
    for _ in range(epochs):
        with one_thread():
            mixed = order.permutation(learned)
            for first in range(0, len(mixed), BATCH):
                step(
                    net,
                    steps,
                    inputs[mixed[first : first + BATCH]],
                    wanted[mixed[first : first + BATCH]],
                )
            with torch.inference_mode():
                loss = nn.functional.binary_cross_entropy_with_logits(
                    net(inputs[judged])[:, 0], wanted[judged]
                )
        yield float(loss) if torch.isfinite(loss) else float("inf")


def step(net: nn.Module, steps: torch.optim.Optimizer, images: Tensor, shares: Tensor) -> None:
    steps.zero_grad()
    nn.functional.binary_cross_entropy_with_logits(net(images)[:, 0], shares).backward()  # type: ignore[no-untyped-call]
    steps.step()


def search(
    curve: Callable[[Any], Iterator[float]],
    trials: Sequence[Any],
    *,
    epochs: int,
    storage: str,
    early: bool = True,
    gpus: float = 0.5,
) -> list[Cost]:
    """Run the trials on the Ray cluster that this process has joined; what each came to, in their order.

    `curve` of a trial yields its loss after each epoch, in a process with `gpus` of a GPU, which is also how many run at
    once. `early`: asynchronous successive halving, from one epoch on; else every trial gets all its epochs. Ray Tune keeps its
    state at `storage`, a URL. Raises what a trial raised.
    """

    def trainable(config: dict[str, Any]) -> None:
        for loss in curve(trials[config["index"]]):
            tune.report({"loss": loss})

    filesystem, path = arrow(storage)
    halving = ASHAScheduler(
        time_attr="training_iteration", max_t=epochs, grace_period=1, reduction_factor=REDUCTION
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 0, "gpu": gpus}),
        param_space={"index": tune.grid_search(list(range(len(trials))))},
        tune_config=tune.TuneConfig(
            metric="loss", mode="min", scheduler=halving if early else None, reuse_actors=True
        ),
        run_config=tune.RunConfig(storage_path=path, storage_filesystem=filesystem, verbose=0),
    )
    grid = tuner.fit()
    results: list[Any] = [grid[number] for number in range(len(grid))]
    return [
        cost(trials, result)
        for result in sorted(results, key=lambda result: int(result.config["index"]))
    ]


def cost(trials: Sequence[Any], result: Any) -> Cost:
    """Raises what a trial raised."""
    if result.error is not None:
        raise result.error
    table = result.metrics_dataframe
    return Cost(
        trial=trials[result.config["index"]],
        losses=tuple(float(loss) for loss in table["loss"]),
        seconds=float(table["time_total_s"].iloc[-1]),
    )


def best(costs: Sequence[Cost]) -> Cost:
    """The trial with the lowest loss it ever had."""
    return min(costs, key=lambda one: one.best)


def saved(costs: Sequence[Cost], epochs: int) -> float:
    """The share of all epochs that were not computed."""
    return 1 - sum(len(one.losses) for one in costs) / (len(costs) * epochs)
