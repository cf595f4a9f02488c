"""Train CrownNet: a loop for one process that Ray Train runs on many; what it holds is saved and restored whole."""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model
from torch import nn
from torch.distributed import all_gather_object, all_reduce
from torch.nn import functional

from gpu_tests.pipelines.network import CrownNet, digest, one_thread, predict, score, to_input
from gpu_tests.pipelines.tiles import Tiles, held_out

ANSWERS = 4  # tiles whose predictions a checkpoint keeps, so that whoever restores it can see that it is the same model


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

    def epoch(self, tiles: Tiles, rank: int = 0, world: int = 1, forward: nn.Module | None = None) -> list[int]:
        """Train on this process's share, once, and return which tiles those were; every share has the same length.

        `forward` is the network as a distributed wrapper shows it, when there is one.
        """
        done = len(self.curve)
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * (1 + math.cos(math.pi * done / self.config.epochs)) / 2
        order = np.random.default_rng((self.config.seed, done)).permutation(len(tiles))
        share = order[: len(tiles) // world * world][rank::world]
        losses = []
        with one_thread():
            for first in range(0, len(share), self.config.batch):
                chosen = share[first : first + self.config.batch]
                losses.append(self.step(forward or self.net, tiles, chosen) * len(chosen))
        total = torch.tensor(sum(losses) / len(share), device=self.device)
        if world > 1:
            all_reduce(total)
        self.curve.append(float(total) / world)
        return [int(index) for index in share]

    def step(self, forward: nn.Module, tiles: Tiles, chosen: npt.NDArray[np.int64]) -> float:
        """One step on the chosen tiles; returns their mean loss (cross-entropy per pixel, in nats)."""
        forward.train()
        truth = torch.from_numpy(tiles.masks[chosen]).to(self.device).float()
        loss = functional.binary_cross_entropy_with_logits(forward(to_input(tiles.images[chosen], self.device)), truth)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        self.optimiser.step()
        return float(loss.detach())

    def save(self, folder: Path, sample: Tiles) -> None:
        """Write everything that the next epoch depends on, and the predictions for `sample`."""
        held = {"net": self.net.state_dict(), "optimiser": self.optimiser.state_dict(), "curve": self.curve}
        torch.save({**held, "config": asdict(self.config)}, folder / "training.pt")
        np.save(folder / "answers.npy", predict(self.net, sample.images, self.device))

    def restore(self, folder: Path, sample: Tiles) -> float:
        """Take over what `save` wrote; returns how far predictions for `sample` are from those of then, 0 to 1."""
        held = torch.load(folder / "training.pt", map_location=self.device, weights_only=True)
        self.net.load_state_dict(held["net"])
        self.optimiser.load_state_dict(held["optimiser"])
        self.curve = held["curve"]
        return float(np.abs(predict(self.net, sample.images, self.device) - np.load(folder / "answers.npy")).max())


def load_network(folder: Path, device: torch.device) -> CrownNet:
    """The network of a checkpoint, for inference."""
    held = torch.load(folder / "training.pt", map_location=device, weights_only=True)
    net = CrownNet(held["config"]["width"]).to(device)
    net.load_state_dict(held["net"])
    return net.eval()


def work(job: dict[str, Any]) -> None:
    """What each Ray Train worker does. `job`: config, tiles (a reference), cuda, start (a Checkpoint or None)."""
    config: TrainConfig = job["config"]
    tiles: Tiles = ray.get(job["tiles"])
    if job["cuda"] != torch.cuda.is_available():
        raise RuntimeError(f"the job says cuda={job['cuda']}; this worker's torch finds the opposite")
    device = get_device() if job["cuda"] else torch.device("cpu")
    validation = held_out(tiles.names)
    learn, judge = tiles.pick(~validation), tiles.pick(validation)
    sample = judge.pick(np.arange(len(judge)) < ANSWERS)
    training, context, restored = Training(config, device), train.get_context(), None
    # After a failure Ray gives back the newest checkpoint of this run; `start` is another run's.
    if (checkpoint := train.get_checkpoint() or job["start"]) is not None:
        with checkpoint.as_directory() as folder:
            difference = training.restore(Path(folder), sample)
        weights = digest(training.net.state_dict())
        restored = {"weights": weights, "difference": difference, "epoch": len(training.curve)}
    rank, world = context.get_world_rank(), context.get_world_size()
    node = ray.get_runtime_context().get_node_id()  # Ray Train's own node rank takes nodes of one address for one
    forward = prepare_model(training.net, move_to_device=device)
    while len(training.curve) < config.epochs:
        share = training.epoch(learn, rank, world, forward)
        if len(training.curve) % config.checkpoint_every and len(training.curve) < config.epochs:
            continue
        mine = {"gpus": ray.get_gpu_ids(), "node": node, "device": str(device), "tiles": share}
        workers: list[Any] = [None] * world
        all_gather_object(workers, {**mine, "weights": digest(training.net.state_dict())})
        report(training, judge, sample, {"restored": restored, "workers": workers}, keep=rank == 0)


def report(training: Training, judge: Tiles, sample: Tiles, metrics: dict[str, Any], *, keep: bool) -> None:
    """Tell Ray Train where this worker is; the one with `keep` also scores the network and hands in a checkpoint.

    Every worker must call it equally often: Ray waits for all.
    """
    if not keep:
        train.report({})
        return
    found = score(predict(training.net, judge.images, training.device), judge.masks)
    with tempfile.TemporaryDirectory() as folder:
        training.save(Path(folder), sample)
        metrics = {**metrics, **asdict(found), "epoch": len(training.curve), "curve": list(training.curve)}
        train.report(metrics, checkpoint=train.Checkpoint.from_directory(folder))


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run left: per epoch that was saved, the checkpoint and what was reported with it."""

    saved: dict[int, tuple[train.Checkpoint, dict[str, Any]]]

    @property
    def end(self) -> tuple[train.Checkpoint, dict[str, Any]]:
        return self.saved[max(self.saved)]


def fit(
    tiles: Tiles,
    config: TrainConfig,
    *,
    storage_path: str,
    name: str,
    cuda: bool,
    workers: int = 2,
    start: train.Checkpoint | None = None,
) -> Trained:
    """Train on `workers` workers with a GPU each, on the Ray cluster that this process has joined.

    Tiles travel through Ray's object store. Checkpoints go to `storage_path`/`name`, which all nodes must reach: a
    folder does on one machine, on several it is a URL such as s3://bucket/prefix. The same path and name again go on
    with the newest checkpoint there. `cuda`: whether those GPUs are real; where Ray only counts them, workers train on
    the CPU and gloo carries the gradients. Raises Ray's TrainingFailedError with the worker's traceback.
    """
    job = {"config": config, "tiles": ray.put(tiles), "cuda": cuda, "start": start}
    trainer = TorchTrainer(
        work,
        train_loop_config=job,
        torch_config=TorchConfig(backend="nccl" if cuda else "gloo"),
        scaling_config=train.ScalingConfig(num_workers=workers, use_gpu=True),
        run_config=train.RunConfig(name=name, storage_path=storage_path),
    )
    result = trainer.fit()
    return Trained(saved={metrics["epoch"]: (kept, metrics) for kept, metrics in result.best_checkpoints or ()})
