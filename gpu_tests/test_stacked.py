"""Stacked models: the same frames in the same order as a plain loop, sooner, and whatever dies on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import ray

from .conftest import Accelerators
from .pipelines.stacked import (
    LANES,
    STAGES,
    WIDTH,
    Image,
    Seen,
    Stack,
    Vehicle,
    Waits,
    draw,
    one_by_one,
    traffic,
)

# Ray Data warns of its own settings.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")
SEED = 3
IN_FLIGHT = 8
EDGE = 26  # pixels from where a vehicle is judged
SIMULATED_S = 0.032  # of a device, each stage, where there is none


@pytest.fixture
def waits(accelerators: Accelerators) -> Waits:
    return Waits(seconds={} if accelerators.cuda else dict.fromkeys(STAGES, SIMULATED_S))


@pytest.fixture
def stack(accelerators: Accelerators, waits: Waits) -> Iterator[Stack]:
    made = Stack(waits, gpus=0.2)
    made.ready()
    yield made
    made.end()


def film(frames: int) -> tuple[list[Vehicle], list[Image]]:
    vehicles = traffic(SEED, frames)
    return vehicles, [draw(vehicles, frame, seed=SEED) for frame in range(frames)]


@pytest.mark.ray(gpus=2)
@pytest.mark.smoke
def test_s2_stacked_models_see_what_a_plain_loop_sees(
    stack: Stack, waits: Waits, accelerators: Accelerators, figures: Callable[..., None]
) -> None:
    """Overlap is to change when a frame is done, and nothing of what is seen in it."""
    frames = 60
    vehicles, pictures = film(frames)
    began = time.monotonic()
    seen = list(stack.run(pictures, in_flight=IN_FLIGHT))
    stacked_fps, began = frames / (time.monotonic() - began), time.monotonic()
    some = pictures[: frames // 4]
    plain = list(one_by_one(some, waits))
    plain_fps = len(some) / (time.monotonic() - began)

    figures(
        frames=frames,
        simulated_device_s=max(waits.seconds.values(), default=0),
        fps=round(stacked_fps, 1),
        one_by_one_fps=round(plain_fps, 1),
        ratio=round(stacked_fps / plain_fps, 2),
    )
    check_order(seen, frames)
    check_same(seen, list(one_by_one(pictures, Waits(seconds={}))))
    check_same(seen[: len(some)], plain)
    check_true(seen, vehicles)
    check_bound(seen)
    if not accelerators.cuda:
        assert stacked_fps >= 2 * plain_fps, (
            f"{stacked_fps:.1f} frames/s stacked, {plain_fps:.1f} one by one: nothing overlaps"
        )


@pytest.mark.ray(gpus=2)
def test_s2_a_stage_that_dies_loses_and_doubles_nothing(stack: Stack) -> None:
    """A stage's memory is not in its process: its successor goes on with the frame that it died in."""
    _, pictures = film(60)
    seen = []
    for one in stack.run(pictures, in_flight=IN_FLIGHT):
        seen.append(one)
        if one.frame == 20:
            ray.kill(stack.actors["track"][0], no_restart=False)

    check_order(seen, 60)
    check_same(seen, list(one_by_one(pictures, Waits(seconds={}))))


def test_s2_a_tracker_cannot_have_copies() -> None:
    """Two of them would each see every other frame."""
    with pytest.raises(ValueError, match="tracker"):
        Stack(Waits(seconds={}), gpus=0, copies={"track": 2})


def check_order(seen: list[Seen], frames: int) -> None:
    assert [one.frame for one in seen] == list(range(frames)), (
        "frames are missing, doubled or out of order"
    )


def check_same(seen: list[Seen], plain: list[Seen]) -> None:
    for one, other in zip(seen, plain, strict=True):
        assert one.vehicles == other.vehicles, (
            f"frame {one.frame} shows {one.vehicles}; the plain loop has {other.vehicles}"
        )


def check_true(seen: list[Seen], vehicles: list[Vehicle]) -> None:
    """Against what was drawn: away from the edges each vehicle is there once, with its kind, its speed and one number for good."""
    numbers: dict[Vehicle, set[int]] = {}
    for one in seen:
        drawn = [v for v in vehicles if EDGE <= v.middle(one.frame) <= WIDTH - EDGE]
        for vehicle in drawn:
            row, column = LANES[vehicle.lane], vehicle.middle(one.frame)
            found = [each for each in one.vehicles if each[3] == row and abs(each[4] - column) < 2]
            assert [kind for _, kind, *_ in found] == [vehicle.kind], (
                f"frame {one.frame}: {vehicle} is seen as {found}"
            )
            assert abs(found[0][2] - vehicle.speed) <= 1 or found[0][2] == 0, (
                f"frame {one.frame}: {vehicle} is seen as {found}"
            )
            numbers.setdefault(vehicle, set()).add(found[0][0])
        clear = [each for each in one.vehicles if EDGE + 2 <= each[4] <= WIDTH - EDGE - 2]
        assert len(clear) <= len(drawn), f"frame {one.frame} shows what was not drawn: {clear}"
    assert len(numbers) >= len(vehicles) / 2, "the film is too short to judge"
    assert all(len(given) == 1 for given in numbers.values()), (
        f"a vehicle was taken for another: {numbers}"
    )


def check_bound(seen: list[Seen]) -> None:
    """From when each was given to the pipeline and came out of it: how many frames were in it at once, those that wait too."""
    moments = sorted([(one.began, 1) for one in seen] + [(one.ended, -1) for one in seen])
    inside = most = 0
    for _, change in moments:
        inside += change
        most = max(most, inside)
    assert most <= IN_FLIGHT, (
        f"{most} frames were in the pipeline at once; the bound is {IN_FLIGHT}"
    )
