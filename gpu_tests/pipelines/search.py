"""Hyper-parameter search with early termination: all trials of a list start, promising ones go on.

The list, its order and the seed are in `search_space.json`: successive halving compares a trial
with those before it, so another order would be another search.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from torch import Tensor, nn

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

from .network import one_thread
from .store import arrow_filesystem
from .tiles import Tiles, held_out

SPACE = Path(__file__).with_name("search_space.json")
PX = 32  # a tile is looked at this small
REDUCTION = 4  # of the trials that reach a rung, one in so many goes on
BATCH = 16
Config = TypeVar("Config", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration of a training.

    `rate`: of learning; `width`: of the network in channels; `decay`: of weights; `momentum`.
    """

    rate: float
    width: int
    decay: float
    momentum: float


@dataclass(frozen=True, kw_only=True)
class Space:
    """The search space.

    At most `epochs` for each of `trials`, in their order; `seed` of weights and shuffling.
    """

    seed: int
    epochs: int
    trials: tuple[Trial, ...]

    @classmethod
    def read(cls, path: Path = SPACE) -> Space:
        """Read the space from a JSON file."""
        raw = json.loads(path.read_text("utf-8"))
        return cls(
            seed=raw["seed"],
            epochs=raw["epochs"],
            trials=tuple(Trial(**trial) for trial in raw["trials"]),
        )


@dataclass(frozen=True, kw_only=True)
class Cost(Generic[Config]):
    """The cost of a trial: its validation loss after each epoch, and the seconds of its process."""

    trial: Config
    losses: tuple[float, ...]
    seconds: float

    @property
    def best(self) -> float:
        """Return the lowest loss."""
        return min(self.losses)

    def row(self) -> dict[str, float]:
        """Return the trial and its cost, rounded, as a row of a table."""
        return {
            **asdict(self.trial),
            "epochs": len(self.losses),
            "best": round(self.best, 5),
            "seconds": round(self.seconds, 3),
        }


def shrink(tiles: Tiles) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Shrink tiles to means of squares, float32, (tiles, 3, PX, PX), 0 to 1.

    Also returns the share of each tile that is crown, float32, (tiles,).
    """
    count, px = tiles.masks.shape[:2]
    side = px // PX
    means = tiles.images.reshape(count, PX, side, PX, side, 3).mean(axis=(2, 4), dtype=np.float32)
    return np.ascontiguousarray(means.transpose(0, 3, 1, 2) / 255), tiles.masks.mean(
        axis=(1, 2), dtype=np.float32
    )


def share_network(width: int) -> nn.Module:
    """Return three strided convolutions to one number, (batch, 1).

    The number is the share of a tile that is crown, as a logit.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, width), (width, 2 * width), (2 * width, 2 * width)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 1))


def loss_curve(
    tiles: Tiles, trial: Trial, *, seed: int, epochs: int, device: torch.device
) -> Iterator[float]:
    """Train a configuration and yield the validation loss after each epoch.

    The losses are the same bits on every run on one kind of CPU.
    """
    images, shares = shrink(tiles)
    validation = held_out(tiles.names)
    torch.manual_seed(seed)
    net = share_network(trial.width).to(device)
    optimiser = torch.optim.SGD(
        net.parameters(), lr=trial.rate, momentum=trial.momentum, weight_decay=trial.decay
    )
    inputs, targets = torch.from_numpy(images).to(device), torch.from_numpy(shares).to(device)
    training, order = np.flatnonzero(~validation), np.random.default_rng(seed)
    for _ in range(epochs):
        with one_thread():
            mixed = order.permutation(training)
            for first in range(0, len(mixed), BATCH):
                train_step(
                    net,
                    optimiser,
                    inputs[mixed[first : first + BATCH]],
                    targets[mixed[first : first + BATCH]],
                )
            with torch.inference_mode():
                loss = nn.functional.binary_cross_entropy_with_logits(
                    net(inputs[validation])[:, 0], targets[validation]
                )
        yield float(loss) if torch.isfinite(loss) else float("inf")


def train_step(
    net: nn.Module, optimiser: torch.optim.Optimizer, images: Tensor, shares: Tensor
) -> None:
    """Take one step.

    `images`: float32, (batch, 3, PX, PX); `shares` of crown: float32, (batch,).
    """
    optimiser.zero_grad()
    loss = nn.functional.binary_cross_entropy_with_logits(net(images)[:, 0], shares)
    loss.backward()  # type: ignore[no-untyped-call]  # torch
    optimiser.step()


def search(
    curve: Callable[[Config], Iterator[float]],
    trials: Sequence[Config],
    *,
    epochs: int,
    storage: str,
    gpus: float = 0.5,
) -> list[Cost[Config]]:
    """Run the trials on the Ray cluster that this process has joined; return their costs, in order.

    `curve` of a trial yields its loss after each epoch, in a process with `gpus` of a GPU, which
    also bounds how many run at once. Trials are stopped by asynchronous successive halving, from
    one epoch on. Ray Tune keeps its state at `storage`, a URL. Raises the exception of a trial.
    """

    def trainable(config: dict[str, int]) -> None:
        for loss in curve(trials[config["index"]]):
            tune.report({"loss": loss})

    filesystem, path = arrow_filesystem(storage)
    halving = ASHAScheduler(
        time_attr="training_iteration", max_t=epochs, grace_period=1, reduction_factor=REDUCTION
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 0, "gpu": gpus}),
        param_space={"index": tune.grid_search(list(range(len(trials))))},
        tune_config=tune.TuneConfig(
            metric="loss", mode="min", scheduler=halving, reuse_actors=True
        ),
        run_config=tune.RunConfig(storage_path=path, storage_filesystem=filesystem, verbose=0),
    )
    return trial_costs(trials, tuner.fit())


def trial_costs(trials: Sequence[Config], grid: tune.ResultGrid) -> list[Cost[Config]]:
    """Return the costs in Ray Tune's results, in the trials' order. Raises a trial's exception."""
    results: list[Any] = [grid[number] for number in range(len(grid))]
    costs = {}
    for result in results:
        if result.error is not None:
            raise result.error
        table, index = result.metrics_dataframe, int(result.config["index"])
        costs[index] = Cost(
            trial=trials[index],
            losses=tuple(float(loss) for loss in table["loss"]),
            seconds=float(table["time_total_s"].iloc[-1]),
        )
    return [costs[index] for index in range(len(trials))]


def search_tiles(
    tiles: Tiles, space: Space, *, storage: str, device: torch.device, gpus: float = 0.5
) -> list[Cost[Trial]]:
    """Search the space by the losses on these tiles; return the cost of each trial, in order."""
    reference = ray.put(tiles)  # one copy for all trials
    return search(
        lambda trial: loss_curve(
            ray.get(reference), trial, seed=space.seed, epochs=space.epochs, device=device
        ),
        space.trials,
        epochs=space.epochs,
        storage=storage,
        gpus=gpus,
    )


def full_grid(tiles: Tiles, space: Space, device: torch.device) -> list[list[float]]:
    """Return the losses of every trial with all its epochs, computed in this process."""
    return [
        list(loss_curve(tiles, trial, seed=space.seed, epochs=space.epochs, device=device))
        for trial in space.trials
    ]


def best_trial(costs: Sequence[Cost[Config]]) -> Cost[Config]:
    """Return the trial with the lowest loss after any epoch."""
    return min(costs, key=lambda cost: cost.best)


def epochs_saved(costs: Sequence[Cost[Config]], epochs: int) -> float:
    """Return the share of all epochs that were not computed."""
    return 1 - sum(len(cost.losses) for cost in costs) / (len(costs) * epochs)
