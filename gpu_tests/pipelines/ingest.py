"""Shuffled ingest: the rows of many Parquet files, in another order each epoch, to one or several trainers.

`Windows` is the shuffle that trainers of large data use: the files in a random order, a few at a time in memory, their rows
mixed. Ray Data's own shuffles (all rows, files, a buffer) are beside it, to compare.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from pyarrow import compute

Epochs = Callable[[int], Iterator[pa.Table]]  # the batches of an epoch, by its number
READ = ("global", "file", "local")


@dataclass(frozen=True, kw_only=True)
class Windows:
    """`files` are read `width` at a time. `rank` of `ranks` trainers gets its share: all get equally many rows."""

    files: Sequence[str]
    width: int
    batch: int
    seed: int = 0
    rank: int = 0
    ranks: int = 1

    def epoch(self, number: int) -> Iterator[pa.Table]:
        """Batches of `batch` rows. While one window is used the next is read: two are in memory, never more."""
        order = np.random.default_rng([self.seed, number]).permutation(len(self.files))
        windows = [
            [self.files[at] for at in order[first : first + self.width]]
            for first in range(0, len(order), self.width)
        ]
        held = [self.read(windows[0], number, 0)]
        for at in range(len(windows)):
            if at + 1 < len(windows):
                held.append(self.read(windows[at + 1], number, at + 1))
            table = ray.get(held.pop(0))
            mine = table.slice(self.rank * (len(table) // self.ranks), len(table) // self.ranks)
            for first in range(0, len(mine), self.batch):
                yield mine.slice(first, self.batch)
            del table, mine  # before the window after the next is asked for

    def read(self, files: Sequence[str], epoch: int, window: int) -> Any:
        return mixed.remote(list(files), [self.seed, epoch, window])


@ray.remote(num_cpus=0.5)
def mixed(files: list[str], seed: list[int]) -> pa.Table:
    """The rows of these files, in an order by `seed`."""
    table = pa.concat_tables([pq.read_table(file) for file in files])
    return table.take(np.random.default_rng(seed).permutation(len(table))).combine_chunks()


def by_ray_data(
    files: Sequence[str], mode: str, *, batch: int, seed: int = 0, buffer: int = 0
) -> Epochs:
    """Ray Data's shuffle of all rows ("global"), of files ("file"), or within a buffer of rows ("local").

    Raises ValueError for another mode.
    """
    if mode not in READ:
        raise ValueError(f"mode {mode!r}: expected one of {', '.join(READ)}")
    ray.data.DataContext.get_current().use_datasource_v2 = False  # else small files become one unit
    shuffle = ray.data.FileShuffleConfig(seed=seed) if mode == "file" else None
    dataset = ray.data.read_parquet(list(files), shuffle=shuffle, override_num_blocks=len(files))

    def epoch(number: int) -> Iterator[pa.Table]:
        rows = dataset.random_shuffle(seed=seed + number) if mode == "global" else dataset
        yield from rows.iter_batches(
            batch_size=batch,
            batch_format="pyarrow",
            local_shuffle_buffer_size=buffer if mode == "local" else None,
            local_shuffle_seed=seed + number if mode == "local" else None,
        )

    return epoch


def in_advance(epochs: Epochs, count: int, *, ahead: int) -> Iterator[tuple[int, pa.Table]]:
    """The batches of `count` epochs with the number of each; up to `ahead` of them are made before they are asked for.

    So the next epoch is being read while this one is used: without it a trainer waits at the start of each.
    """
    made: queue.Queue[tuple[int, pa.Table] | BaseException | None] = queue.Queue(maxsize=ahead)
    left = threading.Event()

    def give(item: tuple[int, pa.Table] | BaseException | None) -> None:
        while not left.is_set():
            with contextlib.suppress(queue.Full):
                made.put(item, timeout=0.1)
                return

    def make() -> None:
        try:
            for number in range(count):
                for batch in epochs(number):
                    give((number, batch))
                    if left.is_set():
                        return
            give(None)
        except BaseException as problem:  # raised where the batches are used
            give(problem)

    thread = threading.Thread(target=make, name="ingest", daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        left.set()
        thread.join()


def one_after_another(epochs: Epochs, count: int) -> Iterator[tuple[int, pa.Table]]:
    """The same without anything in advance."""
    for number in range(count):
        for batch in epochs(number):
            yield number, batch


@dataclass
class Consumer:
    """Stands for a trainer: takes `step_s` a batch (simulated, unless 0) and notes how long it waited for data."""

    step_s: float
    waited_s: float = 0.0
    busy_s: float = 0.0
    first_s: float = 0.0
    rows: dict[int, list[int]] = field(default_factory=dict)  # ids by epoch, as they came

    def take(self, batches: Iterable[tuple[int, pa.Table]]) -> None:
        began = asked = time.monotonic()
        for number, batch in batches:
            got = time.monotonic()
            self.first_s = self.first_s or got - began
            self.waited_s += got - asked
            self.rows.setdefault(number, []).extend(batch["id"].to_pylist())
            time.sleep(self.step_s)
            asked = time.monotonic()
            self.busy_s += asked - got

    @property
    def idle(self) -> float:
        """The share of the time in which there was nothing to compute on."""
        return self.waited_s / (self.waited_s + self.busy_s)


def write(folder: str, *, rows: int, files: int, features: int = 8, seed: int = 0) -> list[str]:
    """A table with `id` 0, 1, …, `label` in ten runs of rows, and features, cut into files in that order."""
    source = np.random.default_rng(seed)
    ids = np.arange(rows)
    columns: dict[str, Any] = {"id": ids, "label": ids * 10 // rows}
    columns |= {f"f{number}": source.random(rows, dtype=np.float32) for number in range(features)}
    table, size = pa.table(columns), -(-rows // files)
    names = []
    for number in range(files):
        names.append(f"{folder}/part-{number:04d}.parquet")
        pq.write_table(table.slice(number * size, size), names[-1])
    return names


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How well rows were mixed. `rank_correlation` of place and id; `neighbours`: the share of neighbours that were so before."""

    rank_correlation: float
    neighbours: float


def quality(ids: Sequence[int]) -> Quality:
    """0 and 0 is random; 1 and 1 is not shuffled at all."""
    order = np.asarray(ids)
    places = compute.rank(pa.array(order)).to_numpy()
    return Quality(
        rank_correlation=abs(float(np.corrcoef(np.arange(len(order)), places)[0, 1])),
        neighbours=float((np.abs(np.diff(order)) == 1).mean()),
    )
