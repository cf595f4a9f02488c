"""Training: a job from a configuration in the store, and its recovery from killed parts."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from typing import TypedDict

import numpy as np
import pytest
import torch

from .accelerators import ONE_GPU, Accelerators
from .bucket import EPOCHS, Bucket
from .nodes import Node
from .pipelines.job import ConfigError, load_model, run_job
from .pipelines.network import predict, weights_digest
from .pipelines.ray_train import Metrics, WorkerReport
from .pipelines.store import list_keys, open_store, read
from .pipelines.tiles import StoredTiles, held_out
from .pipelines.train import TrainConfig, train_in_one_process
from .programs import last_line, start_program

# Ray Data warns of its own settings.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")
CPU = torch.device("cpu")


def uninterrupted_digest(bucket: Bucket, tiles: list[str]) -> str:
    """Return the digest of the weights of two workers, by a plain loop in this process."""
    config = TrainConfig(epochs=EPOCHS, learning_rate=0.02, batch=4)
    loaded = StoredTiles(url=f"{bucket.url}/tiles", names=tuple(tiles)).load()
    return weights_digest(train_in_one_process(config, loaded, world=2).net.state_dict())


@pytest.mark.ray(gpus=2)
@pytest.mark.smoke
def test_t1_a_job_from_the_store_learns_and_leaves_its_model_there(
    bucket: Bucket, accelerators: Accelerators, figures: Callable[..., None]
) -> None:
    """A team's service starts this: one object in, a model out, and nothing beyond that object."""
    tiles = bucket.draw_tiles(6, 8)
    url = bucket.write_job()
    earlier = len(bucket.server.requests())
    began = time.monotonic()

    outcome = run_job(url, cuda=accelerators.cuda)

    seconds = time.monotonic() - began
    requests = bucket.server.requests()[earlier:]
    end = outcome.metrics
    figures(
        tiles=len(tiles),
        train_s=round(seconds, 1),
        curve=end["curve"],
        accuracy=end["accuracy"],
        majority=end["majority"],
        iou=end["iou"],
        share=end["share"],
    )
    check_both_took_part(end["workers"], accelerators)
    check_learning(end)
    check_reads(requests, tiles, end["workers"])
    check_artifact(bucket, outcome.model, tiles, end)
    if not accelerators.cuda:
        assert outcome.model == uninterrupted_digest(bucket, tiles), (
            "two workers came to other weights than a plain loop"
        )


def check_both_took_part(workers: list[WorkerReport], accelerators: Accelerators) -> None:
    """Each worker had a GPU of its own, or a half of one, and the workers' weights are the same."""
    gpus = [(worker["node"], *worker["gpus"]) for worker in workers]
    assert len(workers) == 2
    assert ONE_GPU or len(set(gpus)) == 2, f"two workers were to have a GPU each: {gpus}"
    assert all(len(worker["gpus"]) == 1 for worker in workers), gpus
    assert {worker["device"].partition(":")[0] for worker in workers} == {
        "cuda" if accelerators.cuda else "cpu"
    }
    assert workers[0]["weights"] == workers[1]["weights"], (
        "the workers have drifted apart: gradients were not shared"
    )


def check_learning(end: Metrics) -> None:
    """The loss fell, and the network is better than both constant answers."""
    first, last = end["curve"][0], end["curve"][-1]
    assert last < 0.9 * first, f"the loss did not fall: {first:.3f} to {last:.3f}"
    assert end["accuracy"] > end["majority"], (
        f"accuracy {end['accuracy']:.3f} is not above the commoner class's {end['majority']:.3f}"
    )
    assert end["iou"] > end["share"], (
        f"IoU {end['iou']:.3f} is not above that of calling everything a crown, {end['share']:.3f}"
    )


def check_reads(requests: list[str], tiles: list[str], workers: list[WorkerReport]) -> None:
    """By the server's own count, a training tile is read once an epoch; an odd one rests.

    A validation tile is read once to judge by, and once more for the sample.
    """
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


def check_artifact(bucket: Bucket, model: str, tiles: list[str], end: Metrics) -> None:
    """model.pt alone is the model that was measured."""
    net = load_model(f"{bucket.url}/model/model.pt", CPU)
    assert weights_digest(net.state_dict()) == model == end["workers"][0]["weights"], (
        "model.pt holds other weights than were trained"
    )
    output = open_store(f"{bucket.url}/model")
    newest = [key for key in list_keys(output, "checkpoints") if key.endswith("answers.npy")][-1]
    answers = np.load(io.BytesIO(read(output, newest)))
    stored = StoredTiles(url=f"{bucket.url}/tiles", names=tuple(tiles)).pick(held_out(tiles))
    predictions = predict(net, stored.load().images[: len(answers)], CPU)
    tolerance = 0 if end["workers"][0]["device"] == "cpu" else 1e-2
    assert np.abs(predictions - answers).max() <= tolerance, "the artifact predicts something else"
    config = json.loads(read(output, "config.json"))
    assert config["width"] == 8, "a default is not in the resolved configuration"
    assert config["tile-count"] == len(tiles)


WRONG: dict[str, tuple[dict[str, str | float | None], str]] = {
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
    """Nobody should wait an hour for GPUs to learn of a misspelt key; here is no Ray at all."""
    bucket.draw_tiles(3, 4)
    for case, (changes, expected) in WRONG.items():
        url = bucket.write_job(**changes)
        if case == "no-config":
            url = f"{bucket.url}/nothing.toml"
        with pytest.raises(ConfigError) as caught:
            run_job(url, cuda=False)
        assert expected in str(caught.value), f"{case}: {caught.value}"
    assert not list_keys(open_store(bucket.url), "model"), "a refused job left something"


@pytest.mark.ray(gpus=2)
def test_t1_the_runtime_limit_leaves_a_checkpoint_that_goes_on(
    bucket: Bucket, accelerators: Accelerators
) -> None:
    """A job that is stopped must not be lost, and an output belongs to one job."""
    tiles = bucket.draw_tiles(4, 6)
    stopped = run_job(bucket.write_job(max_runtime_s=0.001), cuda=accelerators.cuda)
    with pytest.raises(ConfigError, match="seed was 0 and is 1"):
        run_job(bucket.write_job(seed=1), cuda=accelerators.cuda)
    resumed = run_job(bucket.write_job(), cuda=accelerators.cuda)

    assert stopped.metrics["epoch"] == 1, (
        f"it was to stop after the first epoch, and had {stopped.metrics['epoch']}"
    )
    assert stopped.stopped
    assert not resumed.stopped
    assert resumed.metrics["restored"] == {
        "weights": stopped.model,
        "difference": pytest.approx(0, abs=1e-3),
        "epoch": 1,
    }
    if not accelerators.cuda:
        assert resumed.model == uninterrupted_digest(bucket, tiles), (
            "the stopped job went another way"
        )


class RunningWorker(TypedDict):
    """A worker's node id and process id, and its start in unix seconds."""

    node: str
    pid: int
    since: float


def read_placement(bucket: Bucket, rank: int) -> RunningWorker:
    """Return what a worker wrote at its start."""
    body = read(open_store(f"{bucket.url}/model"), f"workers/{rank}.json")
    worker: RunningWorker = json.loads(body)
    return worker


def saved_checkpoints(bucket: Bucket) -> list[str]:
    """Return the keys of the checkpoints in the job's output."""
    return [
        key
        for key in list_keys(open_store(f"{bucket.url}/model"), "checkpoints")
        if key.endswith("training.pt")
    ]


def wait_for_checkpoints(bucket: Bucket, count: int) -> None:
    """Wait for the job to have saved so many checkpoints; only the newest are retained."""
    end = time.monotonic() + 120
    while len(saved_checkpoints(bucket)) < count:
        assert time.monotonic() < end, "the job saved no checkpoint"
        time.sleep(0.05)


def kill_process(pid: int) -> None:
    """Kill as the kernel does when memory is short: without notice or clean-up."""
    os.kill(pid, signal.SIGKILL)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the job's program and return the digest of its model."""
    outcome = json.loads(last_line(process, "job", timeout_s=240))
    return str(outcome["model"])


def check_readable(bucket: Bucket) -> None:
    """Every checkpoint of a job can be read, also after a kill in the middle of writing one."""
    for key in saved_checkpoints(bucket):
        body = read(open_store(f"{bucket.url}/model"), key)
        checkpoint = torch.load(io.BytesIO(body), weights_only=True)
        assert len(checkpoint["curve"]) in range(1, EPOCHS + 1), key
    count = len(saved_checkpoints(bucket))
    assert count <= 3, f"{count} checkpoints are kept; two, and one that was cut off, were expected"


@pytest.mark.ray(gpus=2)
def test_t2_a_rank_that_is_killed_costs_time_and_nothing_else(
    bucket: Bucket, accelerators: Accelerators, figures: Callable[..., None]
) -> None:
    """The other rank waits in a sum that never ends; both must restart from a checkpoint."""
    tiles = bucket.draw_tiles(4, 6)
    began = time.monotonic()
    process = start_program("job", bucket.write_job())
    wait_for_checkpoints(bucket, 2)
    first = read_placement(bucket, 1)
    kill_process(first["pid"])
    model = finish(process)

    again = read_placement(bucket, 1)
    figures(
        seconds=round(time.monotonic() - began, 1),
        restarted_after_s=round(again["since"] - first["since"], 1),
    )
    assert again["pid"] != first["pid"], "the rank was not started again"
    check_readable(bucket)
    check_same(bucket, tiles, model, accelerators)


@pytest.mark.ray(gpus=2)
def test_t2_a_job_that_is_killed_goes_on_when_it_is_started_again(
    bucket: Bucket, accelerators: Accelerators
) -> None:
    """Only the store has anything left of the job; the same command must do the rest."""
    tiles = bucket.draw_tiles(4, 6)
    url = bucket.write_job()
    process = start_program("job", url)
    wait_for_checkpoints(bucket, 2)
    # A checkpoint takes time to be written: the job is killed in the middle of one.
    bucket.server.throttle(put_s=0.2)
    process.kill()
    process.communicate()
    bucket.server.throttle()
    before = len(saved_checkpoints(bucket))

    end = run_job(url, cuda=accelerators.cuda)

    assert before >= 1
    assert end.metrics["restored"] is not None, "the job began anew"
    assert end.metrics["restored"]["epoch"] >= 1
    assert end.metrics["restored"]["difference"] <= (1e-3 if accelerators.cuda else 0), (
        "the same weights predict something else"
    )
    check_readable(bucket)
    check_same(bucket, tiles, end.model, accelerators)


@pytest.mark.ray(gpus=2)
def test_t2_a_node_that_dies_takes_no_epoch_with_it(
    bucket: Bucket,
    accelerators: Accelerators,
    another_node: Callable[..., Node],
    figures: Callable[..., None],
) -> None:
    """When a machine is taken away in the middle, the rest of the cluster must finish the job."""
    tiles = bucket.draw_tiles(4, 6)
    node = another_node(CPU=1, GPU=1)
    began = time.monotonic()
    process = start_program("job", bucket.write_job())
    wait_for_checkpoints(bucket, 1)
    nodes = {read_placement(bucket, rank)["node"] for rank in (0, 1)}
    node.die()
    model = finish(process)

    figures(seconds=round(time.monotonic() - began, 1), nodes=len(nodes))
    assert node.id in nodes, "the job was to have a worker on the node that dies"
    assert node.id not in {read_placement(bucket, rank)["node"] for rank in (0, 1)}
    check_readable(bucket)
    check_same(bucket, tiles, model, accelerators)


def check_same(bucket: Bucket, tiles: list[str], model: str, accelerators: Accelerators) -> None:
    """The weights are those of an uninterrupted run, to the bit on the CPU.

    A GPU's sums come in another order each time: on GPUs the artifact must only be complete.
    """
    net = load_model(f"{bucket.url}/model/model.pt", CPU)
    assert weights_digest(net.state_dict()) == model
    if not accelerators.cuda:
        assert model == uninterrupted_digest(bucket, tiles), (
            "an interrupted training ended with other weights"
        )
