"""Measure the workloads beside what one would write without a cluster: bench-workloads.json, a table and charts in docs/.

    python -m tests.benchmarks.workloads [--only NAME ...] [--rounds N] [--check]

Each figure is a ratio of one run: ours, the naive way and a strong way by hand, one after the other in the same round. What
is simulated is named in its note. A floor that is not reached is `low`; a machine too noisy to tell is `inconclusive`: its
load was high before, or the naive way, which is always the same work, took more than a quarter longer once than another time.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.bench import with_table

ROOT = Path(__file__).resolve().parents[2]
RESULTS, DOCUMENT, CHARTS = (
    ROOT / "bench-workloads.json",
    ROOT / "docs" / "workloads.md",
    ROOT / "docs" / "charts",
)
BEGIN, END = "<!-- bench-workloads:begin -->", "<!-- bench-workloads:end -->"
SPREAD = 0.25  # of the naive way's times, over their median
LOAD = 1.5  # for each core, before the start


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One ratio. `value` is a median over the rounds; `ways` are the medians that were compared, in `ways_unit`."""

    name: str
    value: float
    unit: str
    baseline: str
    floor: float | None
    samples: tuple[float, ...]
    verdict: str
    ways: Mapping[str, float]
    ways_unit: str
    note: str


def spread(samples: Sequence[float]) -> float:
    """The widest distance between two of them, over their median."""
    return (max(samples) - min(samples)) / statistics.median(samples)


def verdict(value: float, floor: float | None, *, noisy: bool) -> str:
    """`ok`, `low` or `inconclusive`: of a noisy machine nothing is said."""
    if noisy:
        return "inconclusive"
    return "ok" if floor is None or value >= floor else "low"


def figure(
    name: str,
    samples: Sequence[float],
    *,
    baseline: str,
    ways: Mapping[str, Sequence[float]],
    ways_unit: str,
    note: str,
    busy: bool,
    floor: float | None = None,
    unit: str = "×",
    steady: str | None = "naive",
) -> Figure:
    """The figure of these samples. `ways` are shown beside it; the one called `steady` tells whether the machine is."""
    value = statistics.median(samples)
    noisy = busy or (steady is not None and spread(ways[steady]) > SPREAD)
    return Figure(
        name=name,
        value=round(value, 4),
        unit=unit,
        baseline=baseline,
        floor=floor,
        samples=tuple(round(one, 4) for one in samples),
        verdict=verdict(value, floor, noisy=noisy),
        ways={way: round(statistics.median(found), 4) for way, found in ways.items()},
        ways_unit=ways_unit,
        note=note,
    )


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Where and how often. `busy`: the machine was, before anything was started."""

    scratch: Path
    rounds: int
    ci: bool
    busy: bool


@contextmanager
def ray_cluster(scratch: Path, environ: Mapping[str, str]) -> Iterator[None]:
    """A Ray of our own on this machine: two GPUs that it merely counts, and the groups of the served models."""
    import ray

    from gpu_tests.pipelines.store import credentials

    ray.init(
        num_gpus=2,
        resources={"cpu_models": 8, "api_models": 8},
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(scratch),
        runtime_env={"env_vars": {**credentials(environ), "PYTHONPATH": str(ROOT)}},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.tune", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def timed(work: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    """Seconds that it took, and what it returned."""
    began = time.monotonic()
    made = work(*given)
    return time.monotonic() - began, made


def early_termination(lab: Lab) -> list[Figure]:
    """The whole grid, asynchronous successive halving on Ray Tune, and successive halving in rounds by hand."""
    import ray
    import torch

    from gpu_tests import fetch
    from gpu_tests.pipelines.search import REDUCTION, Space, best, curve, saved, search
    from gpu_tests.pipelines.tiles import decode, read_table

    fetch.fetch(fetch.DEEPFOREST, fetch.DATA, fetch.cache_folder(os.environ))
    tiles, space, device = (
        decode(read_table(fetch.DATA / "tiles.parquet").slice(0, 90)),
        Space.read(),
        torch.device("cpu"),
    )
    grid = [
        list(curve(tiles, trial, seed=space.seed, epochs=space.epochs, device=device))
        for trial in space.trials
    ]
    lowest = min(min(losses) for losses in grid)
    by_rounds, left, rung = 0, list(range(len(grid))), 1
    while left:  # all trials to a rung, then the best of them to the next
        by_rounds += len(left) * (rung - rung // REDUCTION)
        if rung >= space.epochs:
            break
        left = sorted(left, key=lambda at: min(grid[at][:rung]))[: max(1, len(left) // REDUCTION)]
        rung = min(rung * REDUCTION, space.epochs)
    with ray_cluster(lab.scratch / "ray", {}):
        held, shares, regrets = ray.put(tiles), [], []
        for number in range(lab.rounds):
            costs = search(
                lambda trial: curve(
                    ray.get(held), trial, seed=space.seed, epochs=space.epochs, device=device
                ),
                space.trials,
                epochs=space.epochs,
                storage=f"file://{lab.scratch}/tune-{number}",
            )
            shares.append(saved(costs, space.epochs))
            regrets.append(best(costs).best - lowest)
    whole = len(grid) * space.epochs
    return [
        figure(
            "early_termination_epochs_saved",
            shares,
            unit="of epochs",
            floor=0.8,
            baseline="the whole grid",
            steady=None,
            busy=False,
            ways={
                "whole grid": [whole],
                "ours": [whole * (1 - share) for share in shares],
                "halving in rounds, by hand": [by_rounds],
            },
            ways_unit="epochs",
            note=f"48 configurations × 32 epochs; loss of the best over the grid's: {statistics.median(regrets):.4f}",
        )
    ]


TILES, GET_S = 1024, 0.05


def batch_inference(lab: Lab) -> list[Figure]:
    """1,024 tiles, 50 ms away each: one after the other, 32 threads that read ahead of one model, and Ray Data."""
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from gpu_tests.pipelines.infer import InferConfig, infer, load, one_by_one, rows
    from gpu_tests.pipelines.job import load_model, save_model
    from gpu_tests.pipelines.network import CrownNet, predict
    from gpu_tests.pipelines.store import in_order, names, open_store, read, write
    from gpu_tests.pipelines.tiles import drawn, listed, pixels, upload
    from gpu_tests.s3_server import S3Server

    def keep(config: InferConfig, number: int, table: pa.Table) -> None:
        held = io.BytesIO()
        pq.write_table(table, held, compression="zstd")
        write(open_store(config.output), f"part-{number:05d}.parquet", held.getvalue())

    def naive(config: InferConfig) -> None:
        for number, table in enumerate(one_by_one(config)):
            keep(config, number, table)

    def prefetch(config: InferConfig) -> None:
        store, device = open_store(config.tiles), torch.device("cpu")
        net = load_model(config.model, device)
        tiles = listed(store, "images", config.zoom)
        images = in_order(
            lambda tile: pixels([read(store, f"images/{tile}.png")]), tiles, at_once=32
        )
        for first in range(0, len(tiles), config.shard):
            some = tiles[first : first + config.shard]
            keep(
                config,
                first,
                rows(some, predict(net, np.concatenate([next(images) for _ in some]), device)),
            )

    with S3Server() as server:
        os.environ.update(server.env)
        server.make_bucket("bucket")
        upload(open_store("s3://bucket/tiles"), drawn(17, 32, TILES // 32))
        torch.manual_seed(0)
        save_model("s3://bucket/model.pt", CrownNet(8).state_dict(), width=8, epoch=0)
        server.throttle(get_s=GET_S)

        def config(output: str) -> InferConfig:
            return InferConfig(
                tiles="s3://bucket/tiles",
                zoom=17,
                model="s3://bucket/model.pt",
                output=f"s3://bucket/{output}",
            )

        times: dict[str, list[float]] = {
            "naive": [],
            "32 threads": [],
            "ours": [],
            "ours, once it reads": [],
        }
        with ray_cluster(lab.scratch / "ray", server.env):
            infer(config("warm"), cuda=False)
            for number in range(lab.rounds):
                times["naive"].append(timed(naive, config(f"naive-{number}"))[0])
                times["32 threads"].append(timed(prefetch, config(f"threads-{number}"))[0])
                server.first_request("tiles/images")
                began = time.time()
                infer(config(f"ours-{number}"), cuda=False)
                ended = time.time()
                times["ours"].append(ended - began)
                times["ours, once it reads"].append(ended - server.first_request("tiles/images"))
        ours = load("s3://bucket/ours-0").sort_by("tile")
        store = open_store("s3://bucket/naive-0")
        plain = pa.concat_tables(
            pq.read_table(io.BytesIO(read(store, key))) for key in names(store, "")
        ).sort_by("tile")
        if not ours.equals(plain):
            raise RuntimeError(
                "ours and the plain loop disagree: their times are not those of the same work"
            )
    count = len(times["ours"])
    note = f"{TILES} tiles on loopback, a simulated {GET_S * 1000:.0f} ms each; 2 model copies on simulated GPUs (CPU)"
    both: dict[str, Any] = {"ways": times, "ways_unit": "s", "busy": lab.busy}
    return [
        figure(
            "batch_inference_vs_naive",
            [times["naive"][at] / times["ours"][at] for at in range(count)],
            floor=4 if lab.ci else 5,
            baseline="a tile after the other, the model 48 at a time",
            note=f"{note}; with the start of Ray's processes",
            **both,
        ),
        figure(
            "batch_inference_vs_prefetch",
            [times["32 threads"][at] / times["ours, once it reads"][at] for at in range(count)],
            floor=1,
            baseline="one process, 32 threads that read ahead",
            note=f"{note}; from its first request on, when all processes are up (the start takes the rest)",
            **both,
        ),
    ]


FRAMES, IN_FLIGHT = 120, 8
EQUAL = dict.fromkeys(("detect", "track", "speed", "classify", "collect"), 0.032)
UNEQUAL = {"detect": 0.060, "track": 0.035, "speed": 0.025, "classify": 0.020, "collect": 0.010}


def stacked_models(lab: Lab) -> list[Figure]:
    """Five models over a film: frame by frame, five threads with queues between them, and five actors."""
    from gpu_tests.pipelines.stacked import Stack, Waits, draw, one_by_one, traffic

    vehicles = traffic(3, FRAMES)
    pictures = [draw(vehicles, frame, seed=3) for frame in range(FRAMES)]
    found = []
    with ray_cluster(lab.scratch / "ray", {}):
        for name, seconds, copies in (
            ("stacked_models_vs_sequential", EQUAL, {}),
            ("stacked_models_unequal_vs_sequential", UNEQUAL, {"detect": 2}),
        ):
            waits = Waits(seconds=seconds)
            times: dict[str, list[float]] = {"naive": [], "threads": [], "ours": []}
            seen: dict[str, list[Any]] = {}
            stack = Stack(waits, gpus=0.2, copies=copies)
            stack.ready()
            list(stack.run(pictures[:10], in_flight=IN_FLIGHT))  # warm
            for _ in range(lab.rounds):
                for way, work in (
                    ("naive", partial(one_by_one, pictures, waits)),
                    ("threads", partial(in_threads, pictures, waits, copies)),
                    ("ours", partial(stack.run, pictures, in_flight=IN_FLIGHT)),
                ):
                    took, seen[way] = timed(lambda work: [one.vehicles for one in work()], work)
                    times[way].append(took / FRAMES)
                if not seen["naive"] == seen["threads"] == seen["ours"]:
                    raise RuntimeError("the stack and the plain loop see different things")
            stack.end()
            held = ", ".join(f"{stage} {1000 * wait:.0f}" for stage, wait in seconds.items())
            twice = "; two copies of detect" if copies else ""
            found.append(
                figure(
                    name,
                    [
                        plain / ours
                        for plain, ours in zip(times["naive"], times["ours"], strict=True)
                    ],
                    floor=3,
                    busy=lab.busy,
                    baseline="frame by frame",
                    ways={way: [1 / one for one in each] for way, each in times.items()},
                    ways_unit="frames/s",
                    note=f"{FRAMES} frames, simulated devices (ms): {held}{twice}",
                )
            )
    return found


def in_threads(
    pictures: Sequence[object], waits: object, copies: Mapping[str, int]
) -> list[object]:
    """The strong way by hand: a thread for each stage, or more where it is slow, with what they made as futures."""
    from concurrent.futures import Future, ThreadPoolExecutor

    from gpu_tests.pipelines.stacked import (
        EMPTY,
        STAGES,
        Waits,
        classify,
        collect,
        detect,
        speed,
        track,
    )

    assert isinstance(waits, Waits)
    threads = {stage: ThreadPoolExecutor(copies.get(stage, 1)) for stage in STAGES}
    state: Future[object] = Future()
    state.set_result((EMPTY, ()))
    ends: list[Future[object]] = []

    def step(stage: str, work: Callable[..., object], *inputs: object) -> Future[object]:
        def run() -> object:
            given = [one.result() if isinstance(one, Future) else one for one in inputs]
            waits.wait(stage)
            return work(*given)

        return threads[stage].submit(run)

    for frame, picture in enumerate(pictures):
        if frame >= IN_FLIGHT:
            ends[frame - IN_FLIGHT].result()
        points = step("detect", detect, picture)
        state = step("track", lambda before, points: track(before[0], points), state, points)
        speeds = step("speed", lambda both: speed(both[1]), state)
        kinds = step("classify", lambda picture, both: classify(picture, both[1]), picture, state)
        last = step(
            "collect",
            lambda frame, both, speeds, kinds: collect(frame, both[1], speeds, kinds, 0.0),
            frame,
            state,
            speeds,
            kinds,
        )
        ends.append(last)
    done = [one.result() for one in ends]
    for pool in threads.values():
        pool.shutdown()
    return done


CASES, SIMULATED_S = 12, 0.1


def decision_latency(lab: Lab) -> list[Figure]:
    """From the last upload of a case to its decision: model after model, eight threads, and the served composition."""
    from concurrent.futures import ThreadPoolExecutor

    from gpu_tests.pipelines.served import (
        MODELS,
        decide,
        decision_latency_s,
        one_after_another,
        serving,
        specimen,
    )

    waits = dict.fromkeys(MODELS, SIMULATED_S)
    times: dict[str, list[float]] = {"naive": [], "eight threads": [], "ours": []}

    def together(uploads: Mapping[str, Any], threads: ThreadPoolExecutor) -> object:
        def one(name: str) -> Any:
            time.sleep(waits[name])
            return MODELS[name].function(*(uploads[kind] for kind in MODELS[name].triggers))

        return decide(dict(zip(MODELS, threads.map(one, MODELS), strict=True)))

    with (
        ray_cluster(lab.scratch / "ray", {}),
        serving(waits) as served,
        ThreadPoolExecutor(len(MODELS)) as threads,
    ):
        one_after_another(specimen(1), {})  # torch is imported
        together(specimen(1), threads)
        decision_latency_s(served, "warm", specimen(1))
        for number in range(max(CASES, lab.rounds)):
            uploads = specimen(number + 2)
            took, plain = timed(one_after_another, uploads, waits)
            times["naive"].append(took)
            times["eight threads"].append(timed(together, uploads, threads)[0])
            seconds, decided = decision_latency_s(served, f"case {number}", uploads)
            times["ours"].append(seconds)
            if decided.decision != plain:
                raise RuntimeError("the served decision is another than the plain one")
    ratios = [plain / ours for plain, ours in zip(times["naive"], times["ours"], strict=True)]
    note = f"{len(ratios)} cases, 3 uploads at once, 8 models of a simulated {1000 * SIMULATED_S:.0f} ms"
    return [
        figure(
            "decision_latency_vs_sequential",
            ratios,
            floor=4,
            baseline="model after model",
            ways=times,
            ways_unit="s",
            note=note,
            busy=lab.busy,
        )
    ]


ROWS, FILES, WIDTH, BATCH, STEP_S, EPOCHS = 1_000_000, 40, 10, 2000, 0.004, 2


def pipelined_ingest(lab: Lab) -> list[Figure]:
    """Two epochs of a million shuffled rows: Ray Data's shuffle at the start of each, and windows read in advance."""
    import ray

    from gpu_tests.pipelines.ingest import (
        Consumer,
        Windows,
        by_ray_data,
        in_advance,
        mixed,
        one_after_another,
        write,
    )

    (lab.scratch / "rows").mkdir()
    files = write(str(lab.scratch / "rows"), rows=ROWS, files=FILES, features=20)
    windows = Windows(files=files, width=WIDTH, batch=BATCH)
    taken: dict[str, list[Consumer]] = {"naive": [], "windows": [], "ours": [], "by hand": []}
    with ray_cluster(lab.scratch / "ray", {}):
        ray.get([mixed.remote(files[:1], [at]) for at in range(2)])  # Ray's processes for it
        whole = by_ray_data(files, "global", batch=BATCH)
        next(iter(whole(0)))
        ways: dict[str, Callable[[], Any]] = {
            "naive": lambda: one_after_another(whole, EPOCHS),
            "windows": lambda: one_after_another(windows.epoch, EPOCHS),
            "ours": lambda: in_advance(windows.epoch, EPOCHS, ahead=64),
            "by hand": lambda: in_advance(in_this_process(files), EPOCHS, ahead=64),
        }
        for _ in range(lab.rounds):
            for way, batches in ways.items():
                consumer = Consumer(step_s=STEP_S)
                consumer.take(batches())
                taken[way].append(consumer)
    if any(
        sorted(one.rows[epoch]) != list(range(ROWS))
        for one in taken["ours"]
        for epoch in range(EPOCHS)
    ):
        raise RuntimeError("an epoch is not a permutation of the rows")
    seconds = {way: [one.waited_s + one.busy_s for one in found] for way, found in taken.items()}
    idle = {way: [one.idle for one in found] for way, found in taken.items()}
    note = f"{ROWS:,} rows × 22 columns in {FILES} files, {EPOCHS} epochs, a simulated step of {1000 * STEP_S:.0f} ms for {BATCH} rows"
    pairs = range(lab.rounds)
    return [
        figure(
            "pipelined_ingest_vs_serial",
            [seconds["naive"][at] / seconds["ours"][at] for at in pairs],
            floor=1.3,
            busy=lab.busy,
            baseline="Ray Data's global shuffle at the start of each epoch",
            ways=seconds,
            ways_unit="s",
            note=note,
        ),
        figure(
            "pipelined_ingest_idle_vs_serial",
            [idle["naive"][at] / max(idle["ours"][at], 1e-6) for at in pairs],
            floor=2,
            busy=lab.busy,
            baseline="the same; the share of time in which the trainer waits",
            ways=idle,
            ways_unit="idle share",
            note=note,
            steady=None,
        ),
    ]


def in_this_process(files: Sequence[str]) -> Callable[[int], Iterator[Any]]:
    """Windows by hand: one process reads and mixes, and nothing is moved between processes."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    def epoch(number: int) -> Iterator[Any]:
        source = np.random.default_rng(number)
        order = source.permutation(len(files))
        for first in range(0, len(files), WIDTH):
            table = pa.concat_tables(
                pq.read_table(files[at]) for at in order[first : first + WIDTH]
            )
            mixed = table.take(source.permutation(len(table)))
            for at in range(0, len(mixed), BATCH):
                yield mixed.slice(at, BATCH)

    return epoch


# Petastorm imports `pyarrow.filesystem`, which newer ones do not have any more.
PETASTORM = ("petastorm==0.13.1", "pyarrow==14.0.2", "numpy<2", "pandas<3", "setuptools<81")
OURS = (
    "torch",
    "torchgen",
    "sympy",
    "mpmath",
    "networkx",
    "jinja2",
    "markupsafe",
    "filelock",
    "fsspec",
    "typing_extensions.py",
)


def petastorm_python(scratch: Path) -> tuple[str, dict[str, str]]:
    """An interpreter of its own that has Petastorm, and the torch of this one; with the environment that it needs."""
    import torch

    python, packages = str(scratch / "petastorm" / "bin" / "python"), scratch / "torch"
    subprocess.run([sys.executable, "-m", "venv", str(scratch / "petastorm")], check=True)
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *PETASTORM],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    packages.mkdir()
    for name in OURS:
        (packages / name).symlink_to(Path(torch.__file__).parents[1] / name)
    return python, {**os.environ, "PYTHONPATH": str(packages)}


def ray_data_and_petastorm(lab: Lab) -> list[Figure]:
    """One shuffled epoch of a million rows: Ray Data, our windows, and Petastorm's two loaders."""
    import ray

    from gpu_tests.pipelines.ingest import (
        Consumer,
        Windows,
        by_ray_data,
        mixed,
        one_after_another,
        write,
    )

    (lab.scratch / "rows").mkdir()
    files = write(str(lab.scratch / "rows"), rows=ROWS, files=FILES, features=20)
    python, environ = petastorm_python(lab.scratch)
    script = str(Path(__file__).with_name("petastorm_loaders.py"))
    speeds: dict[str, list[float]] = {
        "Petastorm, row loader": [],
        "Petastorm, batched loader": [],
        "ours, Ray Data": [],
        "ours, windows": [],
    }
    with ray_cluster(lab.scratch / "ray", {}):
        ray.get([mixed.remote(files[:1], [at]) for at in range(2)])
        whole = by_ray_data(files, "global", batch=BATCH)
        next(iter(whole(0)))
        for _ in range(lab.rounds):
            said = subprocess.run(
                [python, script, str(lab.scratch / "rows"), str(BATCH)],
                env=environ,
                text=True,
                capture_output=True,
                check=True,
            )
            loaders = json.loads(said.stdout.splitlines()[-1])
            if loaders["rows"] != ROWS:
                raise RuntimeError(f"Petastorm read {loaders['rows']} of {ROWS} rows")
            for name in ("row loader", "batched loader"):
                speeds[f"Petastorm, {name}"].append(loaders[name])
            for way, epochs in (
                ("Ray Data", whole),
                ("windows", Windows(files=files, width=WIDTH, batch=BATCH).epoch),
            ):
                consumer = Consumer(step_s=0)
                took, _ = timed(consumer.take, one_after_another(epochs, 1))
                if sorted(consumer.rows[0]) != list(range(ROWS)):
                    raise RuntimeError(f"{way} lost or doubled rows")
                speeds[f"ours, {way}"].append(ROWS / took)
    note = f"one epoch of {ROWS:,} rows × 22 columns in {FILES} files on a local disk; Petastorm 0.13.1 in an environment of its own"
    both: dict[str, Any] = {
        "ways": speeds,
        "ways_unit": "rows/s",
        "busy": lab.busy,
        "steady": "Petastorm, row loader",
        "note": note,
    }
    ours = speeds["ours, Ray Data"]
    return [
        figure(
            f"ray_data_vs_petastorm_{short}",
            [
                mine / theirs
                for mine, theirs in zip(ours, speeds[f"Petastorm, {name}"], strict=True)
            ],
            baseline=f"Petastorm's {name}",
            **both,
        )
        for short, name in (("rows", "row loader"), ("batched", "batched loader"))
    ]


FIGURES: dict[Callable[[Lab], list[Figure]], tuple[str, ...]] = {
    early_termination: ("early_termination_epochs_saved",),
    batch_inference: ("batch_inference_vs_naive", "batch_inference_vs_prefetch"),
    stacked_models: ("stacked_models_vs_sequential", "stacked_models_unequal_vs_sequential"),
    decision_latency: ("decision_latency_vs_sequential",),
    pipelined_ingest: ("pipelined_ingest_vs_serial", "pipelined_ingest_idle_vs_serial"),
    ray_data_and_petastorm: ("ray_data_vs_petastorm_rows", "ray_data_vs_petastorm_batched"),
}
NAMES = [name for gives in FIGURES.values() for name in gives]


def load(path: Path) -> dict[str, Figure]:
    """What was measured before, by name; nothing when there is no file."""
    if not path.exists():
        return {}
    return {
        name: Figure(name=name, **{**one, "samples": tuple(one["samples"])})
        for name, one in json.loads(path.read_text()).items()
    }


def save(path: Path, found: Mapping[str, Figure]) -> None:
    held = {
        name: {key: value for key, value in asdict(one).items() if key != "name"}
        for name, one in found.items()
    }
    path.write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", "utf-8")


def shown(value: float) -> str:
    """Three figures that matter: 0.0329, 56.3, 1,536."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(found: Mapping[str, Figure]) -> str:
    """A row for each figure, and below it what was compared; a verdict that is not `ok` is bold."""
    lines = ["| figure | measured | floor | against | verdict | |", "|---|--:|--:|---|---|---|"]
    for one in found.values():
        said = one.verdict if one.verdict == "ok" else f"**{one.verdict}**"
        ways = ", ".join(f"{way} {shown(value)}" for way, value in one.ways.items())
        floor = "–" if one.floor is None else f"{one.floor:g}"
        lines.append(
            f"| `{one.name}` | {one.value:.3g} {one.unit} | {floor} | {one.baseline} | {said} | {ways} ({one.ways_unit}). {one.note} |"
        )
    charts = [f"![{one.name}](charts/{one.name}.svg)" for one in found.values()]
    return "\n".join([*lines, "", *charts])


def draw_chart(one: Figure, folder: Path) -> None:
    """A bar for each way that was compared, ours in colour, with its value at its end."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = one.name  # the same picture from the same figures
    ways = dict(reversed(list(one.ways.items())))
    chart, axes = pyplot.subplots(figsize=(7, 0.9 + 0.38 * len(ways)), layout="constrained")
    bars = axes.barh(
        list(ways),
        list(ways.values()),
        color=["#2a7f62" if way.startswith("ours") else "#b8bcc2" for way in ways],
    )
    axes.bar_label(bars, labels=[shown(value) for value in ways.values()], padding=4)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.set_xlabel(one.ways_unit)
    axes.set_xlim(0, 1.2 * max(ways.values()))
    axes.spines[["top", "right"]].set_visible(False)
    floor = "" if one.floor is None else f", floor {one.floor:g}"
    axes.set_title(
        f"{one.name}: {one.value:.3g} {one.unit}{floor}, {one.verdict}", loc="left", fontsize=10
    )
    folder.mkdir(parents=True, exist_ok=True)
    chart.savefig(folder / f"{one.name}.svg", metadata={"Date": None})
    pyplot.close(chart)


def show(found: Mapping[str, Figure]) -> None:
    """Put the table and the charts into docs/."""
    for one in found.values():
        draw_chart(one, CHARTS)
    DOCUMENT.write_text(with_table(DOCUMENT.read_text("utf-8"), table(found), BEGIN, END), "utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="measure the workloads of gpu_tests")
    parser.add_argument(
        "--only", action="append", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of every comparison (default 3)"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 when a figure is low")
    chosen = parser.parse_args(argv)
    os.environ.update(
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    )  # Ray reads them when it is imported
    busy = os.getloadavg()[0] > LOAD * (os.cpu_count() or 1)
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}{': too busy to judge' if busy else ''}",
        flush=True,
    )
    found, failed = load(RESULTS), []
    for measure, gives in FIGURES.items():
        if not set(gives) & set(chosen.only or NAMES):
            continue
        scratch, began = Path(tempfile.mkdtemp(prefix="gpu-cluster-bench-")), time.monotonic()
        try:
            new = measure(
                Lab(scratch=scratch, rounds=chosen.rounds, ci="CI" in os.environ, busy=busy)
            )
        except Exception as problem:  # one that cannot be measured does not cost the others
            failed.append(f"{measure.__name__}: {type(problem).__name__}: {problem}")
            print(failed[-1], flush=True)
            continue
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        for one in new:
            print(
                f"{one.name:<36} {one.value:>7.3g} {one.unit:<10} floor {one.floor}  {one.verdict}  [{time.monotonic() - began:.0f} s]",
                flush=True,
            )
        found |= {one.name: one for one in new}
        found = {name: found[name] for name in NAMES if name in found}
        save(RESULTS, found)
    show(found)
    low = [one.name for one in found.values() if one.verdict == "low"]
    print(f"low: {', '.join(low) or 'none'}; not measured: {len(failed)}")
    return 1 if failed or (low and chosen.check) else 0


if __name__ == "__main__":
    sys.exit(main())
