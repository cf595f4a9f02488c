"""Train CrownNet: a loop for one process that Ray Train runs on many, with checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.distributed import all_reduce
from torch.nn import functional

from .network import CrownNet, one_thread, predict, to_input
from .tiles import Tiles, held_out


class Source(Protocol):
    """Tiles that are read by place, a batch at a time: from memory, or from a store."""

    def __len__(self) -> int: ...

    def batches(self, chosen: Iterable[npt.NDArray[np.int64]]) -> Iterator[Tiles]: ...


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All that decides the weights, besides the tiles and the number of workers."""

    epochs: int
    batch: int = 8  # tiles per step and worker
    learning_rate: float = 1e-2  # at the start; falls to nothing along a cosine
    width: int = 8
    seed: int = 0
    checkpoint_every: int = 1  # epochs


class Training:
    """One process's share of a training: network, optimiser and the loss of every epoch so far."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)  # the same weights at first in every process
        self.net = CrownNet(config.width).to(device)
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=config.learning_rate)
        self.curve: list[float] = []

    def begin_epoch(self, count: int, world: int) -> list[list[npt.NDArray[np.int64]]]:
        """Set the next epoch's learning rate and return the places of its batches for each process.

        The places are among `count` tiles; there are `world` processes. Every share has the same
        length: where `count` is no multiple of `world` some tiles rest, in each epoch others.
        """
        config, completed = self.config, len(self.curve)
        rate = config.learning_rate * (1 + math.cos(math.pi * completed / config.epochs)) / 2
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        order = np.random.default_rng((config.seed, completed)).permutation(count)
        shares = [order[: count // world * world][rank::world] for rank in range(world)]
        return [
            [share[first : first + config.batch] for first in range(0, len(share), config.batch)]
            for share in shares
        ]

    def train_epoch(
        self, tiles: Source, rank: int = 0, world: int = 1, forward: nn.Module | None = None
    ) -> list[int]:
        """Train on this process's share, once, and return the places of its tiles.

        `forward` is the network inside its distributed wrapper, when there is one.
        """
        batches = self.begin_epoch(len(tiles), world)[rank]
        losses = []
        with one_thread():
            for batch in tiles.batches(batches):
                self.optimiser.zero_grad()
                losses.append(self.backward(forward or self.net, batch) * len(batch))
                self.optimiser.step()
        total = torch.tensor(
            sum(losses) / sum(len(places) for places in batches), device=self.device
        )
        if world > 1:
            all_reduce(total)
        self.curve.append(float(total) / world)
        return [int(place) for places in batches for place in places]

    def backward(self, forward: nn.Module, batch: Tiles) -> float:
        """Add the gradients of one batch.

        Returns its mean loss: cross-entropy per pixel, in nats.
        """
        forward.train()
        truth = torch.from_numpy(batch.masks).to(self.device).float()
        loss = functional.binary_cross_entropy_with_logits(
            forward(to_input(batch.images, self.device)), truth
        )
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        return float(loss.detach())

    def at_checkpoint(self) -> bool:
        """Return True after an epoch that is to be saved; the last always is."""
        completed = len(self.curve)
        return completed % self.config.checkpoint_every == 0 or completed >= self.config.epochs

    def save(self, folder: Path, sample: Tiles) -> None:
        """Write everything that the next epoch depends on, and the predictions for `sample`."""
        state = {
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "curve": self.curve,
        }
        torch.save({**state, "config": asdict(self.config)}, folder / "training.pt")
        np.save(folder / "answers.npy", predict(self.net, sample.images, self.device))

    def restore(self, folder: Path, sample: Tiles) -> float:
        """Load the files of `save`.

        Returns the largest difference between predictions for `sample` now and then, 0 to 1.
        """
        state = torch.load(folder / "training.pt", map_location=self.device, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.curve = state["curve"]
        return float(
            np.abs(
                predict(self.net, sample.images, self.device) - np.load(folder / "answers.npy")
            ).max()
        )


def train_in_one_process(config: TrainConfig, tiles: Tiles, *, world: int) -> Training:
    """Train as `world` workers would, without Ray: one batch after the other, gradients averaged.

    With two workers the weights are the same to the last bit on one kind of CPU. With more, sums
    come in another order.
    """
    training = Training(config, torch.device("cpu"))
    learn = tiles.pick(~held_out(tiles.names))
    while len(training.curve) < config.epochs:
        shares = training.begin_epoch(len(learn), world)
        totals = [0.0] * world
        with one_thread():
            for step in zip(*(learn.batches(share) for share in shares), strict=True):
                mean = [torch.zeros_like(weights) for weights in training.net.parameters()]
                for rank, batch in enumerate(step):
                    training.optimiser.zero_grad()
                    totals[rank] += training.backward(training.net, batch) * len(batch)
                    for total, weights in zip(mean, training.net.parameters(), strict=True):
                        assert weights.grad is not None
                        total.add_(weights.grad / world)
                for gradient, weights in zip(mean, training.net.parameters(), strict=True):
                    weights.grad = gradient
                training.optimiser.step()
        count = sum(len(places) for places in shares[0])
        training.curve.append(float(sum(torch.tensor(total / count) for total in totals)) / world)
    return training
