"""Training: a job from a configuration in the store, and what is left of it when a rank, the job or a node is killed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from .conftest import EPOCHS, ONE_GPU, Accelerators, Bucket, configure
from .nodes import Node
from .pipelines.job import ConfigError, load_model, run
from .pipelines.network import digest, predict
from .pipelines.store import names, open_store, read
from .pipelines.tiles import Stored, held_out
from .pipelines.train import TrainConfig, in_one_process

# Ray Data warns of its own settings.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")
CPU = torch.device("cpu")


def uninterrupted(bucket: Bucket, tiles: list[str]) -> str:
    """The digest of the weights that two workers come to, by a plain loop in this process."""
    config = TrainConfig(epochs=EPOCHS, learning_rate=0.02, batch=4)
    return digest(
        in_one_process(
            config, Stored(url=f"{bucket.url}/tiles", names=tuple(tiles)).load(), world=2
        ).net.state_dict()
    )


@pytest.mark.ray(gpus=2)
@pytest.mark.smoke
def test_t1_a_job_from_the_store_learns_and_leaves_its_model_there(
    bucket: Bucket, accelerators: Accelerators, figures: Callable[..., None]
) -> None:
    """What a team starts from its service: one object in, a model out, and nothing that is not said in it."""
    tiles = bucket.tiles(6, 8)
    url = configure(bucket)
    seen = len(bucket.server.requests())
    began = time.monotonic()

    outcome = run(url, cuda=accelerators.cuda)

    seconds = time.monotonic() - began
    requests = bucket.server.requests()[seen:]
    end = outcome.metrics
    figures(
        tiles=len(tiles),
        train_s=round(seconds, 1),
        **{key: end[key] for key in ("curve", "accuracy", "majority", "iou", "share")},
    )
    check_both_took_part(end["workers"], accelerators)
    check_learning(end)
    check_reads(requests, tiles, end["workers"])
    check_artifact(bucket, outcome.model, tiles, end)
    if not accelerators.cuda:
        assert outcome.model == uninterrupted(bucket, tiles), (
            "two workers came to other weights than a plain loop"
        )


def check_both_took_part(workers: list[dict[str, Any]], accelerators: Accelerators) -> None:
    """Each worker had a GPU of its own (or both a half of one), and gradients were shared: the weights are the same."""
    taken = [(worker["node"], *worker["gpus"]) for worker in workers]
    assert len(workers) == 2
    assert ONE_GPU or len(set(taken)) == 2, f"two workers were to have a GPU each: {taken}"
    assert all(len(worker["gpus"]) == 1 for worker in workers), taken
    assert {worker["device"].partition(":")[0] for worker in workers} == {
        "cuda" if accelerators.cuda else "cpu"
    }
    assert workers[0]["weights"] == workers[1]["weights"], (
        "the workers have drifted apart: gradients were not shared"
    )


def check_learning(end: dict[str, Any]) -> None:
    first, last = end["curve"][0], end["curve"][-1]
    assert last < 0.9 * first, f"the loss did not fall: {first:.3f} to {last:.3f}"
    assert end["accuracy"] > end["majority"], (
        f"accuracy {end['accuracy']:.3f} is not above the commoner class's {end['majority']:.3f}"
    )
    assert end["iou"] > end["share"], (
        f"IoU {end['iou']:.3f} is not above that of calling everything a crown, {end['share']:.3f}"
    )


def check_reads(requests: list[str], tiles: list[str], workers: list[dict[str, Any]]) -> None:
    """By the server's own count: a tile to learn from once an epoch (an odd one rests), one to judge by once and for a sample."""
    times = Counter(
        line.split("/tiles/images/")[1]
        for line in requests
        if line.startswith("GET") and "/tiles/images/" in line
    )
    learned = [name for name, judged in zip(tiles, held_out(tiles), strict=True) if not judged]
    resting = EPOCHS * (len(learned) % 2)
    read_times = [times[f"{name}.png"] for name in learned]
    assert max(read_times) <= EPOCHS, f"a tile was read {max(read_times)} times in {EPOCHS} epochs"
    assert sum(read_times) == EPOCHS * len(learned) - resting, (
        f"{sum(read_times)} reads of {len(learned)} tiles in {EPOCHS} epochs"
    )
    shares = sorted(place for worker in workers for place in worker["tiles"])
    assert len(set(shares)) == len(shares) == len(learned) - len(learned) % 2, (
        "a tile was learned from twice, or by nobody, in an epoch"
    )
    assert all(
        times[f"{name}.png"] in (1, 2)
        for name, judged in zip(tiles, held_out(tiles), strict=True)
        if judged
    )


def check_artifact(bucket: Bucket, model: str, tiles: list[str], end: dict[str, Any]) -> None:
    """model.pt alone, in a process that knows nothing of the run, is the model that was measured."""
    net = load_model(f"{bucket.url}/model/model.pt", CPU)
    assert digest(net.state_dict()) == model == end["workers"][0]["weights"], (
        "model.pt holds other weights than were trained"
    )
    output = open_store(f"{bucket.url}/model")
    newest = [key for key in names(output, "checkpoints") if key.endswith("answers.npy")][-1]
    answers = np.load(io.BytesIO(read(output, newest)))
    judged = [name for name, chosen in zip(tiles, held_out(tiles), strict=True) if chosen][
        : len(answers)
    ]
    said = predict(net, Stored(url=f"{bucket.url}/tiles", names=tuple(judged)).load().images, CPU)
    assert np.abs(said - answers).max() <= (0 if end["workers"][0]["device"] == "cpu" else 1e-2), (
        "the artifact predicts something else"
    )
    config = json.loads(read(output, "config.json"))
    assert config["width"] == 8, "a default is not in the resolved configuration"
    assert config["tile-count"] == len(tiles)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown-key": ({"epoch": 3}, "unknown key 'epoch'"),
    "missing-key": ({"epochs": None}, "lacks epochs"),
    "no-number": ({"epochs": "many"}, "epochs = 'many'"),
    "negative": ({"learning_rate": -1.0}, "learning-rate = -1.0"),
    "no-such-zoom": ({"zoom": 3}, "no tiles of zoom 3"),
    "no-such-width": ({"width": 6}, "width = 6"),
    "no-store": ({"output": "elsewhere"}, "output = 'elsewhere'"),
    "no-config": ({}, "no configuration"),
}


@pytest.mark.smoke
def test_t1_a_wrong_configuration_is_refused_before_a_gpu_is_asked_for(bucket: Bucket) -> None:
    """An hour of waiting for GPUs, to be told of a misspelt key: here there is no Ray at all, and the answer is the same."""
    bucket.tiles(3, 4)
    for case, (changed, expected) in WRONG.items():
        url = configure(bucket, **changed) if case != "no-config" else f"{bucket.url}/nothing.toml"
        with pytest.raises(ConfigError) as caught:
            run(url, cuda=False)
        assert expected in str(caught.value), f"{case}: {caught.value}"
    assert not names(open_store(bucket.url), "model"), "a refused job left something"


@pytest.mark.ray(gpus=2)
def test_t1_the_runtime_limit_leaves_a_checkpoint_that_goes_on(
    bucket: Bucket, accelerators: Accelerators
) -> None:
    """A job that is stopped is not one that is lost; and an output is one job's."""
    tiles = bucket.tiles(4, 6)
    stopped = run(configure(bucket, max_runtime_s=0.001), cuda=accelerators.cuda)
    with pytest.raises(ConfigError, match="seed was 0 and is 1"):
        run(configure(bucket, seed=1), cuda=accelerators.cuda)
    whole = run(configure(bucket), cuda=accelerators.cuda)

    assert stopped.metrics["epoch"] == 1, (
        f"it was to stop after the first epoch, and had {stopped.metrics['epoch']}"
    )
    assert stopped.stopped
    assert not whole.stopped
    assert whole.metrics["restored"] == {
        "weights": stopped.model,
        "difference": pytest.approx(0, abs=1e-3),
        "epoch": 1,
    }
    if not accelerators.cuda:
        assert whole.model == uninterrupted(bucket, tiles), "the stopped job went another way"


def placed(bucket: Bucket, rank: int) -> dict[str, Any]:
    """Where a worker is, by its own word; empty before it has said so."""
    with suppress(FileNotFoundError):
        return dict(json.loads(read(open_store(f"{bucket.url}/model"), f"workers/{rank}.json")))
    return {}


def saved_checkpoints(bucket: Bucket) -> list[str]:
    return [
        key
        for key in names(open_store(f"{bucket.url}/model"), "checkpoints")
        if key.endswith("training.pt")
    ]


def when_saved(bucket: Bucket, count: int) -> None:
    """Wait for the job to have saved so many checkpoints; of which only the newest are kept."""
    end = time.monotonic() + 120
    while len(saved_checkpoints(bucket)) < count:
        assert time.monotonic() < end, "the job saved no checkpoint"
        time.sleep(0.05)


def kill(pid: int) -> None:
    """As the kernel does when memory is short: no word, no clean-up."""
    os.kill(pid, signal.SIGKILL)


def in_background(url: str) -> subprocess.Popen[str]:
    """The job as its own program: a driver that can be killed."""
    command = [sys.executable, "-m", f"{__package__}.pipelines.job", url]
    path = {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return subprocess.Popen(
        command,
        env={**os.environ, **path},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What the job said at its end. Fails with its words when it did not end well."""
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, f"the job ended with {process.returncode}: {errors[-2000:]}"
    return dict(json.loads(out.splitlines()[-1]))


def check_whole(bucket: Bucket) -> None:
    """Everything that a job keeps can be read: what was being written when it was killed is not among it."""
    for key in saved_checkpoints(bucket):
        held = torch.load(
            io.BytesIO(read(open_store(f"{bucket.url}/model"), key)), weights_only=True
        )
        assert len(held["curve"]) in range(1, EPOCHS + 1), key
    kept = len(saved_checkpoints(bucket))
    assert kept <= 3, f"{kept} checkpoints are kept; two, and one that was cut off, were expected"


@pytest.mark.ray(gpus=2)
def test_t2_a_rank_that_is_killed_costs_time_and_nothing_else(
    bucket: Bucket, accelerators: Accelerators, figures: Callable[..., None]
) -> None:
    """The other rank waits in a sum that will not come; both are started again, from the newest checkpoint."""
    tiles = bucket.tiles(4, 6)
    began = time.monotonic()
    process = in_background(configure(bucket))
    when_saved(bucket, 2)
    first = placed(bucket, 1)
    kill(first["pid"])
    end = finished(process)

    again = placed(bucket, 1)
    figures(
        seconds=round(time.monotonic() - began, 1),
        restarted_after_s=round(again["since"] - first["since"], 1),
    )
    assert again["pid"] != first["pid"], "the rank was not started again"
    check_whole(bucket)
    check_same(bucket, tiles, end, accelerators)


@pytest.mark.ray(gpus=2)
def test_t2_a_job_that_is_killed_goes_on_when_it_is_started_again(
    bucket: Bucket, accelerators: Accelerators
) -> None:
    """Nothing of the job is left but what it put into the store; the same command does the rest."""
    tiles = bucket.tiles(4, 6)
    url = configure(bucket)
    process = in_background(url)
    when_saved(bucket, 2)
    bucket.server.throttle(
        put_s=0.2
    )  # a checkpoint takes time to be written: it is killed in the middle of one
    process.kill()
    process.communicate()
    bucket.server.throttle()
    before = len(saved_checkpoints(bucket))

    end = run(url, cuda=accelerators.cuda)

    assert before >= 1
    assert end.metrics["restored"] is not None, "the job began anew"
    assert end.metrics["restored"]["epoch"] >= 1
    assert end.metrics["restored"]["difference"] <= (1e-3 if accelerators.cuda else 0), (
        "the same weights predict something else"
    )
    check_whole(bucket)
    check_same(bucket, tiles, {"model": end.model}, accelerators)


@pytest.mark.ray(gpus=2)
def test_t2_a_node_that_dies_takes_no_epoch_with_it(
    bucket: Bucket,
    accelerators: Accelerators,
    another_node: Callable[..., Node],
    figures: Callable[..., None],
) -> None:
    """A machine that is taken away in the middle: the rest of the cluster carries the job to the same end."""
    tiles = bucket.tiles(4, 6)
    node = another_node(CPU=1, GPU=1)
    began = time.monotonic()
    process = in_background(configure(bucket))
    when_saved(bucket, 1)
    nodes = {placed(bucket, rank)["node"] for rank in (0, 1)}
    node.die()
    end = finished(process)

    figures(seconds=round(time.monotonic() - began, 1), nodes=len(nodes))
    assert node.id in nodes, "the job was to have a worker on the node that dies"
    assert node.id not in {placed(bucket, rank)["node"] for rank in (0, 1)}
    check_whole(bucket)
    check_same(bucket, tiles, end, accelerators)


def check_same(
    bucket: Bucket, tiles: list[str], end: dict[str, Any], accelerators: Accelerators
) -> None:
    """To the bit on the CPU; a GPU's sums come in another order each time, there it is the artifact that must be whole."""
    assert digest(load_model(f"{bucket.url}/model/model.pt", CPU).state_dict()) == end["model"]
    if not accelerators.cuda:
        assert end["model"] == uninterrupted(bucket, tiles), (
            "an interrupted training ended with other weights"
        )
