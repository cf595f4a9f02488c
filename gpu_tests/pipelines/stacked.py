"""Five models stacked over a stream of frames: detect, track, measure speed, classify, collect.

Every stage is a pure function. The state of the tracker travels with the frames, from one call to
the next, so that a stage that dies is started again and goes on where it was: nothing is lost with
its process, nothing is done twice.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch
from torch.nn import functional

from .network import one_thread

HEIGHT, WIDTH = 64, 192
LANES = (12, 28, 44)
LENGTHS = {"car": 9, "truck": 19}  # pixels; every vehicle is 7 high
REACH = 14.0  # pixels: no vehicle moves so far between two frames
STAGES = ("detect", "track", "speed", "classify", "collect")

Image = npt.NDArray[np.uint8]  # (HEIGHT, WIDTH), grey
Points = npt.NDArray[np.float32]  # (vehicles, 2): row and column of the middle of each
State = tuple[
    tuple[int, float, float, float], ...
]  # id, row, column, columns per frame; and ids count up


@dataclass(frozen=True, kw_only=True)
class Vehicle:
    """A vehicle of the film, which enters at the left edge."""

    lane: int
    kind: str
    enters: int  # frame in which its front is at the left edge
    speed: int  # pixels per frame

    def middle(self, frame: int) -> float:
        """Return the column of the vehicle's middle in a frame."""
        return (frame - self.enters) * self.speed - LENGTHS[self.kind] / 2


@dataclass(frozen=True, kw_only=True)
class FrameResult:
    """The vehicles of a frame, and when (unix seconds) it entered and left the pipeline."""

    frame: int
    vehicles: tuple[
        tuple[int, str, float, float, float], ...
    ]  # id, kind, pixels per frame, row, column
    began: float
    ended: float


def make_traffic(seed: int, frames: int) -> list[Vehicle]:
    """Make vehicles that keep apart.

    Each lane has a speed of its own and one vehicle at a time for 60 pixels.
    """
    source = np.random.default_rng(seed)
    vehicles = []
    for lane in range(len(LANES)):
        speed, enters = int(source.integers(3, 9)), int(source.integers(0, 6))
        while enters < frames:
            vehicles.append(
                Vehicle(
                    lane=lane, kind=str(source.choice(list(LENGTHS))), enters=enters, speed=speed
                )
            )
            enters += 60 // speed + int(source.integers(1, 12))
    return vehicles


def draw_frame(vehicles: Iterable[Vehicle], frame: int, *, seed: int) -> Image:
    """Draw one picture: a noisy road, bright vehicles."""
    picture = np.random.default_rng([seed, frame]).integers(0, 50, (HEIGHT, WIDTH)).astype(np.uint8)
    for vehicle in vehicles:
        half = LENGTHS[vehicle.kind] / 2
        x0, x1 = (int(np.clip(vehicle.middle(frame) + end, 0, WIDTH)) for end in (-half, half))
        picture[LANES[vehicle.lane] - 3 : LANES[vehicle.lane] + 4, x0:x1] = 230
    return picture


def detect(picture: Image) -> Points:
    """Detect bright blobs that are whole in the picture.

    A mean filter, then local maxima of its response along each row.
    """
    with torch.inference_mode(), one_thread():
        grey = torch.from_numpy(picture.astype(np.float32))[None, None] / 255
        bright = (functional.avg_pool2d(grey, 7, 1, 3) > 0.45)[0, 0].numpy()
    middles = []
    for lane in LANES:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], bright[lane].astype(np.int8), [0]])))
        middles += [
            (lane, (x0 + x1 - 1) / 2) for x0, x1 in edges.reshape(-1, 2) if x0 > 0 and x1 < WIDTH
        ]
    return np.array(middles, np.float32).reshape(-1, 2)


def track(state: tuple[int, State], points: Points) -> tuple[tuple[int, State], State]:
    """Match each point with the nearest known vehicle, where that would be by now.

    A point without a match gets the next id.
    """
    next_id, vehicles = state
    unmatched = list(vehicles)
    matches = []
    for row, column in points.tolist():
        near = [
            vehicle
            for vehicle in unmatched
            if vehicle[1] == row and abs(vehicle[2] + vehicle[3] - column) < REACH
        ]
        if near:
            number, _, before, speed = vehicle = min(
                near, key=lambda each: abs(each[2] + each[3] - column)
            )
            unmatched.remove(vehicle)
            moved = column - before
            matches.append((number, row, column, moved if speed == 0 else (speed + moved) / 2))
        else:
            matches.append((next_id, row, column, 0.0))
            next_id += 1
    tracks = tuple(sorted(matches))
    return (next_id, tracks), tracks


def estimate_speeds(tracks: State) -> dict[int, float]:
    """Return the pixels per frame of each vehicle, to a tenth."""
    return {number: round(speed, 1) for number, _, _, speed in tracks}


def classify(picture: Image, tracks: State) -> dict[int, str]:
    """Classify each vehicle as car or truck, by how much of a patch around its middle is bright."""
    kinds = {}
    for number, row, column, _ in tracks:
        patch = picture[int(row) - 1 : int(row) + 2, max(0, int(column) - 12) : int(column) + 13]
        bright = float((patch > 140).sum()) / 3
        kinds[number] = min(LENGTHS, key=lambda kind: abs(LENGTHS[kind] - bright))
    return kinds


def collect(
    frame: int, tracks: State, speeds: dict[int, float], kinds: dict[int, str], began: float
) -> FrameResult:
    """Combine the results of the other stages for one frame."""
    vehicles = tuple(
        (number, kinds[number], speeds[number], row, column) for number, row, column, _ in tracks
    )
    return FrameResult(frame=frame, vehicles=vehicles, began=began, ended=time.time())


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "detect": detect,
    "track": track,
    "speed": estimate_speeds,
    "classify": classify,
    "collect": collect,
}
EMPTY: tuple[int, State] = (0, ())


@dataclass(frozen=True, kw_only=True)
class Waits:
    """Seconds that each stage waits for a simulated device; zero on a GPU."""

    seconds: dict[str, float]

    def wait(self, stage: str) -> None:
        """Sleep for the simulated device of a stage."""
        time.sleep(self.seconds.get(stage, 0.0))


def process_sequentially(pictures: Iterable[Image], waits: Waits) -> Iterator[FrameResult]:
    """Process in a plain loop: all five stages for a frame, then the next frame."""
    state = EMPTY
    for frame, picture in enumerate(pictures):
        began = time.time()
        waits.wait("detect")
        points = detect(picture)
        waits.wait("track")
        state, tracks = track(state, points)
        waits.wait("speed")
        speeds = estimate_speeds(tracks)
        waits.wait("classify")
        kinds = classify(picture, tracks)
        waits.wait("collect")
        yield collect(frame, tracks, speeds, kinds, began)


class Stage:
    """One stage in a process of its own."""

    def __init__(self, name: str, waits: Waits) -> None:
        self.name, self.waits = name, waits

    def process(self, *inputs: Any) -> Any:
        self.waits.wait(self.name)
        return FUNCTIONS[self.name](*inputs)


class Stack:
    """The five stages as actors on the Ray cluster of this process, each with `gpus` of a GPU.

    `copies` of a stage take turns, where that stage is slower than the others. The tracker cannot
    have copies.
    """

    def __init__(self, waits: Waits, *, gpus: float, copies: dict[str, int] | None = None) -> None:
        actor_class = ray.remote(num_cpus=0, num_gpus=gpus, max_restarts=-1, max_task_retries=-1)(
            Stage
        )
        counts = dict.fromkeys(STAGES, 1) | (copies or {})
        if counts["track"] != 1:
            raise ValueError("the tracker needs every frame in order: it cannot have copies")
        self.actors: dict[str, list[Any]] = {
            name: [actor_class.remote(name, waits) for _ in range(counts[name])] for name in STAGES
        }

    def ready(self) -> None:
        """Wait until every process has started, so that their start is not measured."""
        ray.get(
            [actor.__ray_ready__.remote() for actors in self.actors.values() for actor in actors]
        )

    def stream(self, pictures: Iterable[Image], *, in_flight: int) -> Iterator[FrameResult]:
        """Yield the results frame by frame, in order.

        At most `in_flight` frames are in the pipeline.
        """
        waiting: deque[ray.ObjectRef[FrameResult]] = deque()
        state: object = EMPTY
        for frame, picture in enumerate(pictures):
            if len(waiting) >= in_flight:
                yield ray.get(waiting.popleft())
            actor = {name: actors[frame % len(actors)] for name, actors in self.actors.items()}
            image = ray.put(picture)
            began, points = time.time(), actor["detect"].process.remote(image)
            state, tracks = actor["track"].process.options(num_returns=2).remote(state, points)
            speeds, kinds = (
                actor["speed"].process.remote(tracks),
                actor["classify"].process.remote(image, tracks),
            )
            waiting.append(actor["collect"].process.remote(frame, tracks, speeds, kinds, began))
        while waiting:
            yield ray.get(waiting.popleft())

    def close(self) -> None:
        """End the processes of all stages."""
        for actor in (actor for actors in self.actors.values() for actor in actors):
            ray.kill(actor)
