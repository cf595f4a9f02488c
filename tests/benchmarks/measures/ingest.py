"""Shuffled ingest of a million rows: Ray Data, windows, a reader by hand, and Petastorm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from gpu_tests.pipelines.ingest import (
    Consumer,
    Epochs,
    Windows,
    prefetch_epochs,
    ray_data_epochs,
    read_shuffled,
    serial_epochs,
    write_files,
)
from tests.benchmarks.measures.lab import Lab, ray_cluster, timed
from tests.benchmarks.ratios import Figure, Ways, make_figure

ROWS, FILES, WIDTH, BATCH, STEP_S, EPOCHS = 1_000_000, 40, 10, 2000, 0.004, 2
# Petastorm imports `pyarrow.filesystem`, which newer versions do not have any more.
PETASTORM = ("petastorm==0.13.1", "pyarrow==14.0.2", "numpy<2", "pandas<3", "setuptools<81")
TORCH = (
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
NOTE = (
    f"{ROWS:,} rows × 22 columns in {FILES} files, {EPOCHS} epochs, "
    f"a simulated step of {1000 * STEP_S:.0f} ms for {BATCH} rows"
)
LOADERS = {"rows": "row loader", "batched": "batched loader"}
SCRIPT = Path(__file__).parents[1] / "petastorm_loaders.py"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The files of the table, and the two ways of ours to shuffle it."""

    folder: Path
    files: list[str]

    @classmethod
    def write(cls, folder: Path) -> Rows:
        """Write the table into a new folder."""
        folder.mkdir()
        files = write_files(str(folder), rows=ROWS, files=FILES, features=20)
        return cls(folder=folder, files=files)

    def windows(self) -> Epochs:
        """Return the epochs of our windows."""
        return Windows(files=self.files, width=WIDTH, batch=BATCH).epoch

    def shuffled(self) -> Epochs:
        """Return the epochs of Ray Data's global shuffle; Ray's processes have started."""
        ray.get([read_shuffled.remote(self.files[:1], [seed]) for seed in range(2)])
        epochs = ray_data_epochs(self.files, "global", batch=BATCH)
        next(iter(epochs(0)))
        return epochs


def pipelined_ingest(lab: Lab) -> list[Figure]:
    """Measure two epochs: shuffled at the start of each, and windows that are read in advance."""
    consumers = consume_epochs(lab, Rows.write(lab.scratch / "rows"))
    for consumer in consumers["ours"]:
        check_permutations(consumer, EPOCHS)
    seconds = {
        way: [consumer.waited_s + consumer.busy_s for consumer in each]
        for way, each in consumers.items()
    }
    idle = {way: [consumer.idle for consumer in each] for way, each in consumers.items()}
    pairs = zip(idle["naive"], idle["ours"], strict=True)
    ways = Ways(seconds, unit="s", busy=lab.busy)
    return [
        make_figure(
            "pipelined_ingest_vs_serial",
            ways.ratios("naive", "ours"),
            ways,
            floor=1.3,
            baseline="Ray Data's global shuffle at the start of each epoch",
            note=NOTE,
        ),
        make_figure(
            "pipelined_ingest_idle_vs_serial",
            [naive / max(ours, 1e-6) for naive, ours in pairs],
            Ways(idle, unit="idle share", busy=lab.busy, steady=None),
            floor=2,
            baseline="the same; the share of time in which the trainer waits",
            note=NOTE,
        ),
    ]


def consume_epochs(lab: Lab, rows: Rows) -> dict[str, list[Consumer]]:
    """Consume the epochs each way, once a round."""
    with ray_cluster(lab.scratch / "ray", {}):
        shuffled, windows = rows.shuffled(), rows.windows()
        ways: dict[str, Callable[[], Iterable[tuple[int, pa.Table]]]] = {
            "naive": partial(serial_epochs, shuffled, EPOCHS),
            "windows": partial(serial_epochs, windows, EPOCHS),
            "ours": partial(prefetch_epochs, windows, EPOCHS, ahead=64),
            "by hand": partial(prefetch_epochs, read_by_hand(rows.files), EPOCHS, ahead=64),
        }
        consumers: dict[str, list[Consumer]] = {way: [] for way in ways}
        for _ in range(lab.rounds):
            for way, batches in ways.items():
                consumer = Consumer(step_s=STEP_S)
                consumer.take(batches())
                consumers[way].append(consumer)
    return consumers


def check_permutations(consumer: Consumer, epochs: int) -> None:
    """Raise RuntimeError unless each epoch has every row once."""
    if any(sorted(consumer.rows[epoch]) != list(range(ROWS)) for epoch in range(epochs)):
        raise RuntimeError("an epoch is not a permutation of the rows")


def read_by_hand(files: Sequence[str]) -> Epochs:
    """Shuffle by windows in one process, without moving data between processes."""

    def epoch(number: int) -> Iterator[pa.Table]:
        source = np.random.default_rng(number)
        order = source.permutation(len(files))
        for first in range(0, len(files), WIDTH):
            window = order[first : first + WIDTH]
            table = pa.concat_tables(pq.read_table(files[place]) for place in window)
            shuffled = table.take(source.permutation(len(table)))
            for start in range(0, len(shuffled), BATCH):
                yield shuffled.slice(start, BATCH)

    return epoch


def ray_data_and_petastorm(lab: Lab) -> list[Figure]:
    """Measure rows per second of one shuffled epoch: ours, and Petastorm's two loaders."""
    rows = Rows.write(lab.scratch / "rows")
    python, environ = petastorm_python(lab.scratch)
    speeds: dict[str, list[float]] = {
        **{f"Petastorm, {name}": [] for name in LOADERS.values()},
        "ours, Ray Data": [],
        "ours, windows": [],
    }
    with ray_cluster(lab.scratch / "ray", {}):
        ours = {"ours, Ray Data": rows.shuffled(), "ours, windows": rows.windows()}
        for _ in range(lab.rounds):
            for name, speed in run_loaders(python, environ, rows).items():
                speeds[f"Petastorm, {name}"].append(speed)
            for way, epochs in ours.items():
                consumer = Consumer(step_s=0)
                seconds, _ = timed(partial(consumer.take, serial_epochs(epochs, 1)))
                check_permutations(consumer, 1)
                speeds[way].append(ROWS / seconds)
    ways = Ways(speeds, unit="rows/s", busy=lab.busy, steady="Petastorm, row loader")
    return [
        make_figure(
            f"ray_data_vs_petastorm_{short}",
            ways.ratios("ours, Ray Data", f"Petastorm, {name}"),
            ways,
            baseline=f"Petastorm's {name}",
            note=f"one epoch of {ROWS:,} rows × 22 columns in {FILES} files on a local disk; "
            "Petastorm 0.13.1 in an environment of its own",
        )
        for short, name in LOADERS.items()
    ]


def petastorm_python(scratch: Path) -> tuple[str, dict[str, str]]:
    """Make an environment with Petastorm and this environment's torch.

    Returns its interpreter, and the variables that it needs.
    """
    python, packages = str(scratch / "petastorm" / "bin" / "python"), scratch / "torch"
    subprocess.run([sys.executable, "-m", "venv", str(scratch / "petastorm")], check=True)
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *PETASTORM],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    packages.mkdir()
    for name in TORCH:
        (packages / name).symlink_to(Path(torch.__file__).parents[1] / name)
    return python, {**os.environ, "PYTHONPATH": str(packages)}


def run_loaders(python: str, environ: dict[str, str], rows: Rows) -> dict[str, float]:
    """Read an epoch with each of Petastorm's loaders; return its rows per second."""
    process = subprocess.run(
        [python, str(SCRIPT), str(rows.folder), str(BATCH)],
        env=environ,
        text=True,
        capture_output=True,
        check=True,
    )
    report = json.loads(process.stdout.splitlines()[-1])
    if report["rows"] != ROWS:
        raise RuntimeError(f"Petastorm read {report['rows']} of {ROWS} rows")
    return {name: float(report[name]) for name in LOADERS.values()}
