"""Five models stacked over a stream of frames: detect, track, measure speed, classify, collect.

Every stage is a pure function. What the tracker remembers travels with the frames, from one call to the next, so a stage
that dies is started again and goes on where it was: nothing is lost with its process, nothing is done twice.
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
    lane: int
    kind: str
    enters: int  # frame in which its front is at the left edge
    speed: int  # pixels per frame

    def middle(self, frame: int) -> float:
        return (frame - self.enters) * self.speed - LENGTHS[self.kind] / 2


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is known of a frame at the end, and when (unix seconds) it was given to the pipeline and came out of it."""

    frame: int
    vehicles: tuple[
        tuple[int, str, float, float, float], ...
    ]  # id, kind, pixels per frame, row, column
    began: float
    ended: float


def traffic(seed: int, frames: int) -> list[Vehicle]:
    """Vehicles that keep apart: each lane has a speed of its own and one vehicle at a time for 60 pixels."""
    source = np.random.default_rng(seed)
    found = []
    for lane in range(len(LANES)):
        speed, at = int(source.integers(3, 9)), int(source.integers(0, 6))
        while at < frames:
            found.append(
                Vehicle(lane=lane, kind=str(source.choice(list(LENGTHS))), enters=at, speed=speed)
            )
            at += 60 // speed + int(source.integers(1, 12))
    return found


def draw(vehicles: Iterable[Vehicle], frame: int, *, seed: int) -> Image:
    """One picture: a noisy road, bright vehicles."""
    picture = np.random.default_rng([seed, frame]).integers(0, 50, (HEIGHT, WIDTH)).astype(np.uint8)
    for vehicle in vehicles:
        half = LENGTHS[vehicle.kind] / 2
        left, right = (int(np.clip(vehicle.middle(frame) + end, 0, WIDTH)) for end in (-half, half))
        picture[LANES[vehicle.lane] - 3 : LANES[vehicle.lane] + 4, left:right] = 230
    return picture


def detect(picture: Image) -> Points:
    """Bright blobs that are whole in the picture: a mean filter, then local maxima of its response along each row."""
    with torch.inference_mode(), one_thread():
        grey = torch.from_numpy(picture.astype(np.float32))[None, None] / 255
        bright = (functional.avg_pool2d(grey, 7, 1, 3) > 0.45)[0, 0].numpy()
    found = []
    for lane in LANES:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], bright[lane].astype(np.int8), [0]])))
        found += [
            (lane, (left + right - 1) / 2)
            for left, right in edges.reshape(-1, 2)
            if left > 0 and right < WIDTH
        ]
    return np.array(found, np.float32).reshape(-1, 2)


def track(state: tuple[int, State], points: Points) -> tuple[tuple[int, State], State]:
    """Match each point with the nearest known vehicle where that would be by now; what is new gets the next id."""
    following, known = state
    left = list(known)
    found = []
    for row, column in points.tolist():
        near = [one for one in left if one[1] == row and abs(one[2] + one[3] - column) < REACH]
        if near:
            one = min(near, key=lambda each: abs(each[2] + each[3] - column))
            left.remove(one)
            moved = column - one[2]
            found.append((one[0], row, column, moved if one[3] == 0 else (one[3] + moved) / 2))
        else:
            found.append((following, row, column, 0.0))
            following += 1
    tracks = tuple(sorted(found))
    return (following, tracks), tracks


def speed(tracks: State) -> dict[int, float]:
    """Pixels per frame of each vehicle, to a tenth."""
    return {one[0]: round(one[3], 1) for one in tracks}


def classify(picture: Image, tracks: State) -> dict[int, str]:
    """Car or truck, by how much of a patch around the middle is bright."""
    kinds = {}
    for number, row, column, _ in tracks:
        patch = picture[int(row) - 1 : int(row) + 2, max(0, int(column) - 12) : int(column) + 13]
        bright = float((patch > 140).sum()) / 3
        kinds[number] = min(LENGTHS, key=lambda kind: abs(LENGTHS[kind] - bright))
    return kinds


def collect(
    frame: int, tracks: State, speeds: dict[int, float], kinds: dict[int, str], began: float
) -> Seen:
    vehicles = tuple(
        (number, kinds[number], speeds[number], row, column) for number, row, column, _ in tracks
    )
    return Seen(frame=frame, vehicles=vehicles, began=began, ended=time.time())


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "detect": detect,
    "track": track,
    "speed": speed,
    "classify": classify,
    "collect": collect,
}
EMPTY: tuple[int, State] = (0, ())


@dataclass(frozen=True, kw_only=True)
class Waits:
    """Seconds that each stage waits for a device that is not there. Simulated, and zero on a GPU."""

    seconds: dict[str, float]

    def wait(self, stage: str) -> None:
        time.sleep(self.seconds.get(stage, 0.0))


def one_by_one(pictures: Iterable[Image], waits: Waits) -> Iterator[Seen]:
    """The plain loop: all five stages for a frame, then the next frame."""
    state = EMPTY
    for frame, picture in enumerate(pictures):
        began = time.time()
        waits.wait("detect")
        points = detect(picture)
        waits.wait("track")
        state, tracks = track(state, points)
        waits.wait("speed")
        speeds = speed(tracks)
        waits.wait("classify")
        kinds = classify(picture, tracks)
        waits.wait("collect")
        yield collect(frame, tracks, speeds, kinds, began)


class Stage:
    """One stage in a process of its own."""

    def __init__(self, name: str, waits: Waits) -> None:
        self.name, self.waits = name, waits

    def run(self, *inputs: Any) -> Any:
        self.waits.wait(self.name)
        return FUNCTIONS[self.name](*inputs)


class Stack:
    """The five stages as actors on the Ray cluster that this process has joined, each with `gpus` of a GPU.

    `copies` of a stage take turns, where that stage is slower than the others; the tracker cannot have any.
    """

    def __init__(self, waits: Waits, *, gpus: float, copies: dict[str, int] | None = None) -> None:
        made = ray.remote(num_cpus=0, num_gpus=gpus, max_restarts=-1, max_task_retries=-1)(Stage)
        wanted = copies or {}
        if wanted.get("track", 1) != 1:
            raise ValueError("the tracker needs every frame in order: it cannot have copies")
        self.actors: dict[str, list[Any]] = {
            name: [made.remote(name, waits) for _ in range(wanted.get(name, 1))] for name in STAGES
        }

    def ready(self) -> None:
        """Wait until every process has started, so that their start is not measured."""
        ray.get(
            [actor.__ray_ready__.remote() for actors in self.actors.values() for actor in actors]
        )

    def run(self, pictures: Iterable[Image], *, in_flight: int) -> Iterator[Seen]:
        """What was seen, frame by frame in their order; never more than `in_flight` frames are in the pipeline."""
        waiting: deque[Any] = deque()
        state: Any = EMPTY
        for frame, picture in enumerate(pictures):
            if len(waiting) >= in_flight:
                yield ray.get(waiting.popleft())
            actor = {name: actors[frame % len(actors)] for name, actors in self.actors.items()}
            held = ray.put(picture)
            began, points = time.time(), actor["detect"].run.remote(held)
            state, tracks = actor["track"].run.options(num_returns=2).remote(state, points)
            speeds, kinds = (
                actor["speed"].run.remote(tracks),
                actor["classify"].run.remote(held, tracks),
            )
            waiting.append(actor["collect"].run.remote(frame, tracks, speeds, kinds, began))
        while waiting:
            yield ray.get(waiting.popleft())

    def end(self) -> None:
        for actor in (actor for actors in self.actors.values() for actor in actors):
            ray.kill(actor)
