"""Stacked models: the frames and results of a plain loop, sooner, also when a stage dies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import ray

from .accelerators import Accelerators
from .pipelines.stacked import (
    LANES,
    STAGES,
    WIDTH,
    FrameResult,
    Image,
    Stack,
    Vehicle,
    Waits,
    draw_frame,
    make_traffic,
    process_sequentially,
)

# Ray Data warns of its own settings.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")
SEED = 3
IN_FLIGHT = 8
EDGE = 26  # pixels from where a vehicle is judged
SIMULATED_S = 0.032  # of a device, each stage, where there is none


@pytest.fixture
def waits(accelerators: Accelerators) -> Waits:
    """Return the simulated devices of the stages; none on GPUs."""
    return Waits(seconds={} if accelerators.cuda else dict.fromkeys(STAGES, SIMULATED_S))


@pytest.fixture
def stack(accelerators: Accelerators, waits: Waits) -> Iterator[Stack]:
    """Yield the five stages as running processes."""
    stack = Stack(waits, gpus=0.2)
    stack.ready()
    yield stack
    stack.close()


def film(frames: int) -> tuple[list[Vehicle], list[Image]]:
    """Return the vehicles of a film, and its pictures."""
    vehicles = make_traffic(SEED, frames)
    return vehicles, [draw_frame(vehicles, frame, seed=SEED) for frame in range(frames)]


@pytest.mark.ray(gpus=2)
@pytest.mark.smoke
def test_s2_stacked_models_see_what_a_plain_loop_sees(
    stack: Stack, waits: Waits, accelerators: Accelerators, figures: Callable[..., None]
) -> None:
    """Overlap may change when a frame is finished, and nothing in its result."""
    frames = 60
    vehicles, pictures = film(frames)
    began = time.monotonic()
    results = list(stack.stream(pictures, in_flight=IN_FLIGHT))
    stacked_fps, began = frames / (time.monotonic() - began), time.monotonic()
    some = pictures[: frames // 4]
    plain = list(process_sequentially(some, waits))
    plain_fps = len(some) / (time.monotonic() - began)

    figures(
        frames=frames,
        simulated_device_s=max(waits.seconds.values(), default=0),
        fps=round(stacked_fps, 1),
        one_by_one_fps=round(plain_fps, 1),
        ratio=round(stacked_fps / plain_fps, 2),
    )
    check_order(results, frames)
    check_same(results, list(process_sequentially(pictures, Waits(seconds={}))))
    check_same(results[: len(some)], plain)
    check_true(results, vehicles)
    check_bound(results)
    if not accelerators.cuda:
        assert stacked_fps >= 2 * plain_fps, (
            f"{stacked_fps:.1f} frames/s stacked, {plain_fps:.1f} one by one: nothing overlaps"
        )


@pytest.mark.ray(gpus=2)
def test_s2_a_stage_that_dies_loses_and_doubles_nothing(stack: Stack) -> None:
    """A stage's memory is not in its process: its successor continues with the same frame."""
    _, pictures = film(60)
    results = []
    for result in stack.stream(pictures, in_flight=IN_FLIGHT):
        results.append(result)
        if result.frame == 20:
            ray.kill(stack.actors["track"][0], no_restart=False)

    check_order(results, 60)
    check_same(results, list(process_sequentially(pictures, Waits(seconds={}))))


def test_s2_a_tracker_cannot_have_copies() -> None:
    """Two of them would each see every other frame."""
    with pytest.raises(ValueError, match="tracker"):
        Stack(Waits(seconds={}), gpus=0, copies={"track": 2})


def check_order(results: list[FrameResult], frames: int) -> None:
    """Every frame is there once, in order."""
    assert [result.frame for result in results] == list(range(frames)), (
        "frames are missing, doubled or out of order"
    )


def check_same(results: list[FrameResult], plain: list[FrameResult]) -> None:
    """Every frame shows the same as in the plain loop."""
    for result, other in zip(results, plain, strict=True):
        assert result.vehicles == other.vehicles, (
            f"frame {result.frame} shows {result.vehicles}; the plain loop has {other.vehicles}"
        )


def check_true(results: list[FrameResult], vehicles: list[Vehicle]) -> None:
    """The results are those of the drawing.

    Away from the edges each vehicle is there once, with its kind and speed, and keeps its number.
    """
    numbers: dict[Vehicle, set[int]] = {}
    for result in results:
        drawn = [v for v in vehicles if EDGE <= v.middle(result.frame) <= WIDTH - EDGE]
        for vehicle in drawn:
            row, column = LANES[vehicle.lane], vehicle.middle(result.frame)
            matches = [v for v in result.vehicles if v[3] == row and abs(v[4] - column) < 2]
            message = f"frame {result.frame}: {vehicle} is seen as {matches}"
            assert [kind for _, kind, *_ in matches] == [vehicle.kind], message
            number, _, speed, *_ = matches[0]
            assert abs(speed - vehicle.speed) <= 1 or speed == 0, message
            numbers.setdefault(vehicle, set()).add(number)
        clear = [v for v in result.vehicles if EDGE + 2 <= v[4] <= WIDTH - EDGE - 2]
        assert len(clear) <= len(drawn), f"frame {result.frame} shows what was not drawn: {clear}"
    assert len(numbers) >= len(vehicles) / 2, "the film is too short to judge"
    assert all(len(ids) == 1 for ids in numbers.values()), (
        f"a vehicle was taken for another: {numbers}"
    )


def check_bound(results: list[FrameResult]) -> None:
    """At most IN_FLIGHT frames are in the pipeline at once, waiting ones included."""
    entries = [(result.began, 1) for result in results]
    moments = sorted(entries + [(result.ended, -1) for result in results])
    inside = most = 0
    for _, change in moments:
        inside += change
        most = max(most, inside)
    assert most <= IN_FLIGHT, (
        f"{most} frames were in the pipeline at once; the bound is {IN_FLIGHT}"
    )
