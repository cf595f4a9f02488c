"""Train CrownNet: a loop for one process that Ray Train runs on many; what it holds is saved and restored whole."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import ray
import torch
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model
from torch import nn
from torch.distributed import all_gather_object, all_reduce, broadcast_object_list
from torch.nn import functional

from .network import CrownNet, digest, one_thread, predict, score, to_input
from .store import arrow, open_store, write
from .tiles import Stored, Tiles, held_out

ANSWERS = 4  # tiles whose predictions a checkpoint keeps, so that whoever restores it can see that it is the same model
CHECKPOINTS = "checkpoints"  # the folder of all of a job's, and the name of the run in it
KEPT = 2  # checkpoints: if the newest cannot be read, there is one more


class Source(Protocol):
    """Tiles that can be asked for by place, a batch at a time: in memory, or in a store."""

    def __len__(self) -> int: ...

    def batches(self, chosen: Iterable[npt.NDArray[np.int64]]) -> Iterator[Tiles]: ...


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All that decides the weights, beside the tiles and the number of workers."""

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

    def begin(self, count: int, world: int) -> list[list[npt.NDArray[np.int64]]]:
        """Set the rate of the next epoch; the places of its batches among `count` tiles, for each of `world` processes.

        Every share has the same length: where `count` is no multiple of `world` some tiles rest, in each epoch others.
        """
        done = len(self.curve)
        for group in self.optimiser.param_groups:
            group["lr"] = (
                self.config.learning_rate * (1 + math.cos(math.pi * done / self.config.epochs)) / 2
            )
        order = np.random.default_rng((self.config.seed, done)).permutation(count)
        shares = [order[: count // world * world][rank::world] for rank in range(world)]
        return [
            [share[at : at + self.config.batch] for at in range(0, len(share), self.config.batch)]
            for share in shares
        ]

    def epoch(
        self, tiles: Source, rank: int = 0, world: int = 1, forward: nn.Module | None = None
    ) -> list[int]:
        """Train on this process's share, once, and return which tiles those were.

        `forward` is the network as a distributed wrapper shows it, when there is one.
        """
        mine = self.begin(len(tiles), world)[rank]
        losses = []
        with one_thread():
            for batch in tiles.batches(mine):
                self.optimiser.zero_grad()
                losses.append(self.backward(forward or self.net, batch) * len(batch))
                self.optimiser.step()
        total = torch.tensor(sum(losses) / sum(len(places) for places in mine), device=self.device)
        if world > 1:
            all_reduce(total)
        self.curve.append(float(total) / world)
        return [int(place) for places in mine for place in places]

    def backward(self, forward: nn.Module, batch: Tiles) -> float:
        """Add the gradients of one batch; returns its mean loss (cross-entropy per pixel, in nats)."""
        forward.train()
        truth = torch.from_numpy(batch.masks).to(self.device).float()
        loss = functional.binary_cross_entropy_with_logits(
            forward(to_input(batch.images, self.device)), truth
        )
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        return float(loss.detach())

    def save(self, folder: Path, sample: Tiles) -> None:
        """Write everything that the next epoch depends on, and the predictions for `sample`."""
        held = {
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "curve": self.curve,
        }
        torch.save({**held, "config": asdict(self.config)}, folder / "training.pt")
        np.save(folder / "answers.npy", predict(self.net, sample.images, self.device))

    def restore(self, folder: Path, sample: Tiles) -> float:
        """Take over what `save` wrote; returns how far predictions for `sample` are from those of then, 0 to 1."""
        held = torch.load(folder / "training.pt", map_location=self.device, weights_only=True)
        self.net.load_state_dict(held["net"])
        self.optimiser.load_state_dict(held["optimiser"])
        self.curve = held["curve"]
        return float(
            np.abs(
                predict(self.net, sample.images, self.device) - np.load(folder / "answers.npy")
            ).max()
        )


def in_one_process(config: TrainConfig, tiles: Tiles, *, world: int) -> Training:
    """What `world` workers come to, without Ray: their batches one after the other, the mean of their gradients.

    With two workers it is the same to the last bit on one kind of CPU; with more, sums come in another order.
    """
    training = Training(config, torch.device("cpu"))
    learn = tiles.pick(~held_out(tiles.names))
    while len(training.curve) < config.epochs:
        shares = training.begin(len(learn), world)
        totals = [0.0] * world
        with one_thread():
            for step in zip(*(learn.batches(share) for share in shares), strict=True):
                mean = [torch.zeros_like(weights) for weights in training.net.parameters()]
                for rank, batch in enumerate(step):
                    training.optimiser.zero_grad()
                    totals[rank] += training.backward(training.net, batch) * len(batch)
                    for held, weights in zip(mean, training.net.parameters(), strict=True):
                        assert weights.grad is not None
                        held += weights.grad / world
                for held, weights in zip(mean, training.net.parameters(), strict=True):
                    weights.grad = held
                training.optimiser.step()
        count = sum(len(places) for places in shares[0])
        training.curve.append(float(sum(torch.tensor(total / count) for total in totals)) / world)
    return training


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every worker is told. `until`: unix seconds, after which no epoch begins that would end later."""

    config: TrainConfig
    tiles: Stored
    output: str
    cuda: bool
    until: float


def work(told: dict[str, Work]) -> None:
    """What each Ray Train worker does."""
    job = told["work"]
    if job.cuda and not torch.cuda.is_available():
        raise RuntimeError("the job is to compute on GPUs, and this worker's torch finds none")
    device = get_device() if job.cuda else torch.device("cpu")
    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    # Ray Train's own node rank takes nodes of one address for one.
    place = {
        "node": ray.get_runtime_context().get_node_id(),
        "gpus": ray.get_gpu_ids(),
        "device": str(device),
    }
    write(
        open_store(job.output),
        f"workers/{rank}.json",
        json.dumps({**place, "pid": os.getpid(), "since": time.time()}).encode(),
    )
    validation = held_out(job.tiles.names)
    learn, judge = (
        job.tiles.pick(~validation),
        job.tiles.pick(validation).load() if rank == 0 else None,
    )
    sample = (
        job.tiles.pick(validation & (np.cumsum(validation) <= ANSWERS)).load()
        if judge is None
        else judge.pick(np.arange(len(judge)) < ANSWERS)
    )
    training, restored = Training(job.config, device), None
    if (checkpoint := train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            difference = training.restore(Path(folder), sample)
        restored = {
            "weights": digest(training.net.state_dict()),
            "difference": difference,
            "epoch": len(training.curve),
        }
    forward = prepare_model(training.net, move_to_device=device)
    stopped, took = False, 0.0
    while len(training.curve) < job.config.epochs and not stopped:
        began = time.time()
        share = training.epoch(learn, rank, world, forward)
        took = max(took, time.time() - began)
        stopped = agreed(time.time() + took > job.until, world)
        if (
            len(training.curve) % job.config.checkpoint_every
            and len(training.curve) < job.config.epochs
            and not stopped
        ):
            continue
        mine = {**place, "tiles": share, "weights": digest(training.net.state_dict())}
        report(training, judge, sample, {"restored": restored, "workers": gathered(mine, world)})


def agreed(mine: bool, world: int) -> bool:
    """What the first of all workers thinks: their clocks and paces differ, and all must stop after the same epoch."""
    said = [mine]
    if world > 1:
        broadcast_object_list(said, src=0)
    return said[0]


def gathered(mine: dict[str, Any], world: int) -> list[dict[str, Any]]:
    everybody: list[Any] = [mine] * world
    if world > 1:
        all_gather_object(everybody, mine)
    return everybody


def report(training: Training, judge: Tiles | None, sample: Tiles, metrics: dict[str, Any]) -> None:
    """Tell Ray Train where this worker is; the one with tiles to `judge` by also scores the network and saves a checkpoint.

    Every worker must call it equally often: Ray waits for all.
    """
    if judge is None:
        train.report({})
        return
    found = score(predict(training.net, judge.images, training.device), judge.masks)
    with tempfile.TemporaryDirectory() as folder:
        training.save(Path(folder), sample)
        metrics = {
            **metrics,
            **asdict(found),
            "epoch": len(training.curve),
            "curve": list(training.curve),
        }
        train.report(metrics, checkpoint=train.Checkpoint.from_directory(folder))


def fit(
    job: Work, *, workers: int, gpus_per_worker: float = 1, failures: int = 3
) -> Sequence[tuple[train.Checkpoint, dict[str, Any]]]:
    """Train on `workers` workers with so much of a GPU each, on the Ray cluster that this process has joined.

    Returns the checkpoints that are kept, oldest first, each with what was reported with it. They are in `job.output`; the
    same output again goes on with the newest there. A worker that dies is started again, `failures` times, from the newest
    checkpoint. Raises Ray's TrainingFailedError with the worker's traceback.
    """
    filesystem, path = arrow(job.output)
    trainer = TorchTrainer(
        work,
        train_loop_config={"work": job},
        torch_config=TorchConfig(
            backend="nccl" if job.cuda and gpus_per_worker >= 1 else "gloo"
        ),  # nccl takes a GPU for each rank
        scaling_config=train.ScalingConfig(
            num_workers=workers,
            use_gpu=True,
            resources_per_worker={"GPU": gpus_per_worker},
            placement_strategy="SPREAD",
        ),
        run_config=train.RunConfig(
            name=CHECKPOINTS,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=train.FailureConfig(max_failures=failures),
            checkpoint_config=train.CheckpointConfig(num_to_keep=KEPT),
        ),
    )
    return sorted(trainer.fit().best_checkpoints or (), key=lambda kept: int(kept[1]["epoch"]))
