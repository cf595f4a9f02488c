"""Shuffled ingest: the rows of many Parquet files, in another order each epoch, to some trainers.

`Windows` is the shuffle that trainers of large data use: the files in a random order, a few at a
time in memory, their rows mixed. Ray Data's own shuffles (all rows, files, a buffer) are beside it,
to compare.
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
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from pyarrow import compute

Epochs = Callable[[int], Iterator[pa.Table]]  # the batches of an epoch, by its number
RAY_DATA_MODES = ("global", "file", "local")


@dataclass(frozen=True, kw_only=True)
class Windows:
    """A shuffle by windows: `files` are read `width` at a time.

    `rank` of `ranks` trainers gets its share. All get equally many rows.
    """

    files: Sequence[str]
    width: int
    batch: int
    seed: int = 0
    rank: int = 0
    ranks: int = 1

    def epoch(self, number: int) -> Iterator[pa.Table]:
        """Yield batches of `batch` rows; the next window is read while one is used.

        Two windows are in memory, never more.
        """
        order = np.random.default_rng([self.seed, number]).permutation(len(self.files))
        windows = [
            [self.files[place] for place in order[first : first + self.width]]
            for first in range(0, len(order), self.width)
        ]
        loading = [self.read(windows[0], number, 0)]
        for index in range(len(windows)):
            if index + 1 < len(windows):
                loading.append(self.read(windows[index + 1], number, index + 1))
            table = ray.get(loading.pop(0))
            share = table.slice(self.rank * (len(table) // self.ranks), len(table) // self.ranks)
            for first in range(0, len(share), self.batch):
                yield share.slice(first, self.batch)
            del table, share  # before the window after the next is requested

    def read(self, files: Sequence[str], epoch: int, window: int) -> ray.ObjectRef[pa.Table]:
        """Start to read a window, and return a reference to its shuffled rows."""
        return read_shuffled.remote(list(files), [self.seed, epoch, window])


@ray.remote(num_cpus=0.5)
def read_shuffled(files: list[str], seed: list[int]) -> pa.Table:
    """Read the rows of these files, in an order by `seed`."""
    table = pa.concat_tables([pq.read_table(file) for file in files])
    return table.take(np.random.default_rng(seed).permutation(len(table))).combine_chunks()


def ray_data_epochs(
    files: Sequence[str], mode: str, *, batch: int, seed: int = 0, buffer: int = 0
) -> Epochs:
    """Shuffle with Ray Data: all rows ("global"), files ("file"), or a buffer of rows ("local").

    Raises ValueError for another mode.
    """
    if mode not in RAY_DATA_MODES:
        raise ValueError(f"mode {mode!r}: expected one of {', '.join(RAY_DATA_MODES)}")
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


Item = tuple[int, pa.Table] | BaseException | None  # a numbered batch, a failure, or the end


def prefetch_epochs(epochs: Epochs, count: int, *, ahead: int) -> Iterator[tuple[int, pa.Table]]:
    """Yield the batches of `count` epochs with the number of each, up to `ahead` read in advance.

    The next epoch is read while this one is used: without it a trainer waits at the start of each.
    """
    items: queue.Queue[Item] = queue.Queue(maxsize=ahead)
    cancelled = threading.Event()
    thread = threading.Thread(
        target=produce_epochs, args=(epochs, count, items, cancelled), name="ingest", daemon=True
    )
    thread.start()
    try:
        while (item := items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        cancelled.set()
        thread.join()


def produce_epochs(
    epochs: Epochs, count: int, items: queue.Queue[Item], cancelled: threading.Event
) -> None:
    """Put the batches of `count` epochs into the queue, then None.

    An exception is put in place of what would have followed.
    """

    def put(item: Item) -> None:
        while not cancelled.is_set():
            with contextlib.suppress(queue.Full):
                items.put(item, timeout=0.1)
                return

    try:
        for number in range(count):
            for batch in epochs(number):
                put((number, batch))
                if cancelled.is_set():
                    return
        put(None)
    except BaseException as problem:  # noqa: BLE001 - raised again where the batches are used
        put(problem)


def serial_epochs(epochs: Epochs, count: int) -> Iterator[tuple[int, pa.Table]]:
    """Yield the batches of `count` epochs with the number of each, without reading in advance."""
    for number in range(count):
        for batch in epochs(number):
            yield number, batch


@dataclass
class Consumer:
    """A trainer that takes `step_s` a batch, simulated unless 0, and measures its wait for data."""

    step_s: float
    waited_s: float = 0.0
    busy_s: float = 0.0
    first_s: float = 0.0
    rows: dict[int, list[int]] = field(default_factory=dict)  # ids by epoch, as they came

    def take(self, batches: Iterable[tuple[int, pa.Table]]) -> None:
        """Consume the batches, each with the number of its epoch."""
        began = requested = time.monotonic()
        for number, batch in batches:
            got = time.monotonic()
            self.first_s = self.first_s or got - began
            self.waited_s += got - requested
            self.rows.setdefault(number, []).extend(batch["id"].to_pylist())
            time.sleep(self.step_s)
            requested = time.monotonic()
            self.busy_s += requested - got

    @property
    def idle(self) -> float:
        """Return the share of the time in which there was nothing to compute on."""
        return self.waited_s / (self.waited_s + self.busy_s)


def write_files(
    folder: str, *, rows: int, files: int, features: int = 8, seed: int = 0
) -> list[str]:
    """Write a table in `files` Parquet files, in row order, and return their paths.

    Columns: `id` 0, 1, …; `label` in ten runs of rows; features, float32.
    """
    source = np.random.default_rng(seed)
    ids = np.arange(rows)
    columns: dict[str, npt.NDArray[Any]] = {"id": ids, "label": ids * 10 // rows}
    columns |= {f"f{number}": source.random(rows, dtype=np.float32) for number in range(features)}
    table, size = pa.table(columns), -(-rows // files)
    names = []
    for number in range(files):
        names.append(f"{folder}/part-{number:04d}.parquet")
        pq.write_table(table.slice(number * size, size), names[-1])
    return names


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The quality of a shuffle.

    `rank_correlation` of place and id; `neighbours`: the share of neighbours that were so before.
    """

    rank_correlation: float
    neighbours: float


def shuffle_quality(ids: Sequence[int]) -> Quality:
    """Compare an order of ids with the original one.

    0 and 0 is random, 1 and 1 is not shuffled at all.
    """
    order = np.asarray(ids)
    places = compute.rank(pa.array(order)).to_numpy()
    return Quality(
        rank_correlation=abs(float(np.corrcoef(np.arange(len(order)), places)[0, 1])),
        neighbours=float((np.abs(np.diff(order)) == 1).mean()),
    )
