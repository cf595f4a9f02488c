"""Train on Ray Train: the loop of a worker, its reports, and the checkpoints that are retained."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import ray
import torch
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model
from torch.distributed import all_gather_object, broadcast_object_list

from .network import predict, score, weights_digest
from .store import arrow_filesystem, open_store, write
from .tiles import StoredTiles, Tiles, held_out
from .train import TrainConfig, Training

# Tiles whose predictions a checkpoint holds, so that a restore can verify the model.
ANSWERS = 4
CHECKPOINTS = "checkpoints"  # the folder of all of a job's, and the name of the run in it
RETAINED = 2  # checkpoints: if the newest cannot be read, there is one more


@dataclass(frozen=True, kw_only=True)
class TrainTask:
    """The task of every worker. `until`: unix seconds; no epoch begins that would end later."""

    config: TrainConfig
    tiles: StoredTiles
    output: str
    cuda: bool
    until: float


class Placement(TypedDict):
    """The node id, the GPU ids and the torch device of one worker."""

    node: str
    gpus: list[int] | list[str]
    device: str


class WorkerReport(Placement):
    """A worker's last epoch. `tiles`: places of its share; `weights`: digest after the epoch."""

    tiles: list[int]
    weights: str


class Restored(TypedDict):
    """The state after a restore: digest, epochs so far, and the predictions' largest difference."""

    weights: str
    difference: float
    epoch: int


class Metrics(TypedDict):
    """A checkpoint's metrics: the fields of Score, and the loss of every epoch up to `epoch`."""

    accuracy: float
    majority: float
    iou: float
    share: float
    epoch: int
    curve: list[float]
    restored: Restored | None
    workers: list[WorkerReport]


def train_worker(settings: dict[str, TrainTask]) -> None:
    """Train as one of Ray Train's workers, from the newest checkpoint on."""
    task = settings["task"]
    if task.cuda and not torch.cuda.is_available():
        raise RuntimeError("the job is to compute on GPUs, and this worker's torch finds none")
    device = get_device() if task.cuda else torch.device("cpu")
    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    placement = register_worker(task, rank, device)
    learn = task.tiles.pick(~held_out(task.tiles.names))
    judge, sample = validation_tiles(task, rank)
    training = Training(task.config, device)
    restored = restore_newest(training, sample)
    forward = prepare_model(training.net, move_to_device=device)
    stopped, epoch_s = False, 0.0
    while len(training.curve) < task.config.epochs and not stopped:
        began = time.time()
        share = training.train_epoch(learn, rank, world, forward)
        epoch_s = max(epoch_s, time.time() - began)
        stopped = broadcast_flag(time.time() + epoch_s > task.until, world)
        if stopped or training.at_checkpoint():
            weights = weights_digest(training.net.state_dict())
            workers = gather({**placement, "tiles": share, "weights": weights}, world)
            report_epoch(training, judge, sample, restored, workers)


def register_worker(task: TrainTask, rank: int, device: torch.device) -> Placement:
    """Write this worker's placement, process id and start time to workers/`rank`.json."""
    # Ray Train's own node rank counts nodes of one address as one.
    placement: Placement = {
        "node": ray.get_runtime_context().get_node_id(),
        "gpus": ray.get_gpu_ids(),
        "device": str(device),
    }
    body = json.dumps({**placement, "pid": os.getpid(), "since": time.time()})
    write(open_store(task.output), f"workers/{rank}.json", body.encode())
    return placement


def validation_tiles(task: TrainTask, rank: int) -> tuple[Tiles | None, Tiles]:
    """Return the tiles to judge by, for rank 0 alone, and the sample that a checkpoint answers."""
    validation = held_out(task.tiles.names)
    if rank == 0:
        judge = task.tiles.pick(validation).load()
        return judge, judge.pick(np.arange(len(judge)) < ANSWERS)
    return None, task.tiles.pick(validation & (np.cumsum(validation) <= ANSWERS)).load()


def restore_newest(training: Training, sample: Tiles) -> Restored | None:
    """Restore the newest checkpoint that Ray Train has; None when it has none."""
    if (checkpoint := train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            difference = training.restore(Path(folder), sample)
        return {
            "weights": weights_digest(training.net.state_dict()),
            "difference": difference,
            "epoch": len(training.curve),
        }
    return None


def broadcast_flag(flag: bool, world: int) -> bool:
    """Return the flag of rank 0 on every worker.

    The workers' clocks and paces differ, and all must stop after the same epoch.
    """
    flags = [flag]
    if world > 1:
        broadcast_object_list(flags, src=0)
    return flags[0]


def gather(report: WorkerReport, world: int) -> list[WorkerReport]:
    """Return the reports of all workers, in the order of their ranks."""
    reports = [report] * world
    if world > 1:
        all_gather_object(reports, report)
    return reports


def report_epoch(
    training: Training,
    judge: Tiles | None,
    sample: Tiles,
    restored: Restored | None,
    workers: list[WorkerReport],
) -> None:
    """Report an epoch to Ray Train; the worker with tiles to `judge` by also saves a checkpoint.

    Every worker must call it equally often, because Ray waits for all.
    """
    if judge is None:
        train.report({})
        return
    result = score(predict(training.net, judge.images, training.device), judge.masks)
    metrics: Metrics = {
        "accuracy": result.accuracy,
        "majority": result.majority,
        "iou": result.iou,
        "share": result.share,
        "epoch": len(training.curve),
        "curve": list(training.curve),
        "restored": restored,
        "workers": workers,
    }
    with tempfile.TemporaryDirectory() as folder:
        training.save(Path(folder), sample)
        train.report(dict(metrics), checkpoint=train.Checkpoint.from_directory(folder))


def fit(
    task: TrainTask, *, workers: int, gpus_per_worker: float = 1, failures: int = 3
) -> Sequence[tuple[train.Checkpoint, Metrics]]:
    """Train on `workers` workers, on the Ray cluster that this process has joined.

    Each worker has `gpus_per_worker` of a GPU. Returns the checkpoints that are retained in
    `task.output`, oldest first, each with its metrics. The same output again goes on with its
    newest. A worker that dies is started again, `failures` times, from the newest checkpoint.
    Raises Ray's TrainingFailedError with the worker's traceback.
    """
    filesystem, path = arrow_filesystem(task.output)
    alone = gpus_per_worker >= 1  # nccl takes a GPU for each rank
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"task": task},
        torch_config=TorchConfig(backend="nccl" if task.cuda and alone else "gloo"),
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
            checkpoint_config=train.CheckpointConfig(num_to_keep=RETAINED),
        ),
    )
    checkpoints = [
        (checkpoint, cast("Metrics", metrics))
        for checkpoint, metrics in trainer.fit().best_checkpoints or ()
    ]
    return sorted(checkpoints, key=lambda pair: pair[1]["epoch"])
