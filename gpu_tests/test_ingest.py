"""Shuffled ingest: every row once an epoch, in a new order, and a trainer that hardly waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from .accelerators import Accelerators
from .pipelines.ingest import (
    Consumer,
    Epochs,
    Windows,
    prefetch_epochs,
    ray_data_epochs,
    serial_epochs,
    shuffle_quality,
    write_files,
)

pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.", "ignore::UserWarning")
ROWS, FILES, WIDTH, BATCH = 24_000, 24, 6, 500
EPOCHS = 3
# Rank correlation and share of old neighbours, at most. A window spreads rows over a quarter of the
# epoch; files keep their rows' order.
BOUNDS = {"global": (0.05, 0.01), "windowed": (0.9, 0.01), "file": (0.9, 1.0), "local": (1.0, 0.05)}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Return the paths of FILES files with ROWS rows together."""
    return write_files(str(tmp_path), rows=ROWS, files=FILES)


def epochs_of(mode: str, files: list[str]) -> Epochs:
    """Return the epochs of a way to shuffle."""
    if mode == "windowed":
        return Windows(files=files, width=WIDTH, batch=BATCH).epoch
    return ray_data_epochs(files, mode, batch=BATCH, buffer=4 * BATCH)


@pytest.mark.ray(gpus=2)
@pytest.mark.parametrize(
    "mode", ["global", pytest.param("windowed", marks=pytest.mark.smoke), "file", "local"]
)
def test_d1_every_epoch_is_a_new_order_of_every_row(
    mode: str, files: list[str], accelerators: Accelerators, figures: Callable[..., None]
) -> None:
    """A row that is missing, doubled or always at the same place is learned wrongly, silently."""
    consumer = Consumer(step_s=0)
    began = time.monotonic()
    consumer.take(serial_epochs(epochs_of(mode, files), EPOCHS))
    seconds = time.monotonic() - began

    mixed = [shuffle_quality(ids) for ids in consumer.rows.values()]
    figures(
        mode=mode,
        rows_per_s=round(EPOCHS * ROWS / seconds),
        first_batch_s=round(consumer.first_s, 2),
        quality=[vars(quality) for quality in mixed],
    )
    for number in range(EPOCHS):
        assert sorted(consumer.rows[number]) == list(range(ROWS)), (
            f"epoch {number} is not a permutation of the rows"
        )
    assert consumer.rows[0] != consumer.rows[1] != consumer.rows[2], (
        "two epochs have the same order"
    )
    correlation, neighbours = BOUNDS[mode]
    for quality in mixed:
        assert quality.rank_correlation <= correlation, f"{mode}: {quality}"
        assert quality.neighbours <= neighbours, f"{mode}: {quality}"


@pytest.mark.ray(gpus=2)
def test_d1_trainers_get_equal_shares_that_are_together_everything(
    files: list[str], accelerators: Accelerators
) -> None:
    """A trainer with a batch more than the others waits for them for ever in its gradients' sum."""
    shares = [
        [
            row
            for batch in Windows(files=files, width=WIDTH, batch=BATCH, rank=rank, ranks=2).epoch(0)
            for row in batch["id"].to_pylist()
        ]
        for rank in range(2)
    ]

    assert len(shares[0]) == len(shares[1]), (
        f"the shares have {len(shares[0])} and {len(shares[1])} rows"
    )
    assert sorted(shares[0] + shares[1]) == list(range(ROWS))


@pytest.mark.ray(gpus=2)
def test_d1_memory_is_bound_by_the_window(
    files: list[str], accelerators: Accelerators, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data of any size passes through memory that is not."""
    windows = Windows(files=files, width=WIDTH, batch=BATCH)
    open_now, most, read = 0, 0, Windows.read

    def counted(self: Windows, names: list[str], epoch: int, window: int) -> object:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now - consumed)
        return read(self, names, epoch, window)

    monkeypatch.setattr(Windows, "read", counted)
    consumed = 0
    for number, batch in enumerate(windows.epoch(0)):
        assert len(batch) == BATCH
        consumed = (number + 1) * BATCH // (ROWS // FILES * WIDTH)

    assert open_now == FILES // WIDTH
    assert most <= 2, f"{most} windows were in memory at once"


@pytest.mark.ray(gpus=2)
def test_d1_the_trainer_waits_less_when_the_next_epoch_is_read_in_advance(
    files: list[str], accelerators: Accelerators, figures: Callable[..., None]
) -> None:
    """At the start of each epoch an expensive device would stand still.

    Its steps, and a store that is far away, are simulated.
    """
    step_s, first_read_s = (0.0, 0.0) if accelerators.cuda else (0.004, 0.3)
    windows = Windows(files=files, width=WIDTH, batch=100)
    ray.get([windows.read(files[:1], 0, window) for window in range(4)])  # Ray's processes for it

    def epochs(number: int) -> Iterator[pa.Table]:
        time.sleep(first_read_s)
        return windows.epoch(number)

    serial, ahead = Consumer(step_s=step_s), Consumer(step_s=step_s)
    serial.take(serial_epochs(epochs, EPOCHS))
    ahead.take(prefetch_epochs(epochs, EPOCHS, ahead=64))

    figures(
        simulated_step_s=step_s,
        simulated_first_read_s=first_read_s,
        idle_serial=round(serial.idle, 4),
        idle_in_advance=round(ahead.idle, 4),
    )
    assert ahead.rows == serial.rows, "reading in advance changed what was read"
    if not accelerators.cuda:
        assert ahead.idle < 0.75 * serial.idle, (
            f"the trainer waited {ahead.idle:.0%} of the time, "
            f"and {serial.idle:.0%} with nothing in advance"
        )


def test_d1_what_fails_in_advance_is_raised_where_it_is_used() -> None:
    """A reader that dies in a thread of its own would leave the trainer waiting for ever."""

    def broken(number: int) -> Iterator[pa.Table]:
        yield pa.table({"id": [number]})
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(prefetch_epochs(broken, 2, ahead=4))
