"""Five stacked models over a film: frame by frame, five threads with queues, and five actors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from gpu_tests.pipelines.stacked import (
    EMPTY,
    STAGES,
    FrameResult,
    Image,
    Stack,
    State,
    Waits,
    classify,
    collect,
    detect,
    draw_frame,
    estimate_speeds,
    make_traffic,
    process_sequentially,
    track,
)
from tests.benchmarks.measures.lab import Lab, ray_cluster, timed
from tests.benchmarks.ratios import Figure, Ways, make_figure

FRAMES, IN_FLIGHT = 120, 8
EQUAL = dict.fromkeys(STAGES, 0.032)
UNEQUAL = {"detect": 0.060, "track": 0.035, "speed": 0.025, "classify": 0.020, "collect": 0.010}
COPIES: dict[str, int] = {"detect": 2}
Result = TypeVar("Result")


def stacked_models(lab: Lab) -> list[Figure]:
    """Measure frames per second, for stages of equal and of unequal duration."""
    vehicles = make_traffic(3, FRAMES)
    pictures = [draw_frame(vehicles, frame, seed=3) for frame in range(FRAMES)]
    with ray_cluster(lab.scratch / "ray", {}):
        return [
            measure_stack(lab, pictures, "stacked_models_vs_sequential", EQUAL, {}),
            measure_stack(lab, pictures, "stacked_models_unequal_vs_sequential", UNEQUAL, COPIES),
        ]


def measure_stack(
    lab: Lab,
    pictures: Sequence[Image],
    name: str,
    seconds: dict[str, float],
    copies: dict[str, int],
) -> Figure:
    """Measure each way once a round. `seconds`: of each stage's simulated device."""
    waits = Waits(seconds=seconds)
    stack = Stack(waits, gpus=0.2, copies=copies)
    stack.ready()
    list(stack.stream(pictures[:10], in_flight=IN_FLIGHT))  # warm
    runs: dict[str, Callable[[], Iterator[FrameResult]]] = {
        "naive": partial(process_sequentially, pictures, waits),
        "threads": partial(process_in_threads, pictures, waits, copies),
        "ours": partial(stack.stream, pictures, in_flight=IN_FLIGHT),
    }
    ways = Ways(measure_speeds(lab.rounds, runs), unit="frames/s", busy=lab.busy)
    stack.close()
    devices = ", ".join(f"{stage} {1000 * wait:.0f}" for stage, wait in seconds.items())
    twice = "; two copies of detect" if copies else ""
    return make_figure(
        name,
        ways.ratios("ours", "naive"),
        ways,
        floor=3,
        baseline="frame by frame",
        note=f"{FRAMES} frames, simulated devices (ms): {devices}{twice}",
    )


def measure_speeds(
    rounds: int, runs: Mapping[str, Callable[[], Iterator[FrameResult]]]
) -> dict[str, list[float]]:
    """Return the frames per second of each way. Raises RuntimeError when their results differ."""
    speeds: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(rounds):
        results = []
        for way, run in runs.items():
            seconds, vehicles = timed(partial(list_vehicles, run))
            speeds[way].append(FRAMES / seconds)
            results.append(vehicles)
        if any(vehicles != results[0] for vehicles in results):
            raise RuntimeError("the stack and the plain loop see different things")
    return speeds


def list_vehicles(run: Callable[[], Iterator[FrameResult]]) -> list[object]:
    """Process the film, and return the vehicles of each frame."""
    return [result.vehicles for result in run()]


class Threads:
    """The strong way by hand: a thread for each stage, or more where it is slow."""

    def __init__(self, waits: Waits, copies: Mapping[str, int]) -> None:
        self.waits = waits
        self.pools = {stage: ThreadPoolExecutor(copies.get(stage, 1)) for stage in STAGES}

    def submit(self, stage: str, work: Callable[..., Result], *inputs: object) -> Future[Result]:
        """Run a stage in its thread, when its inputs, which may be futures, are ready."""

        def run() -> Result:
            values = [each.result() if isinstance(each, Future) else each for each in inputs]
            self.waits.wait(stage)
            return work(*values)

        return self.pools[stage].submit(run)

    def close(self) -> None:
        """End the threads."""
        for pool in self.pools.values():
            pool.shutdown()


def process_in_threads(
    pictures: Sequence[Image], waits: Waits, copies: Mapping[str, int]
) -> Iterator[FrameResult]:
    """Process a film with a thread for each stage; the results travel as futures."""
    threads = Threads(waits, copies)
    tracked: Future[tuple[tuple[int, State], State]] = Future()
    tracked.set_result((EMPTY, ()))
    results: list[Future[FrameResult]] = []
    for frame, picture in enumerate(pictures):
        if frame >= IN_FLIGHT:
            results[frame - IN_FLIGHT].result()
        points = threads.submit("detect", detect, picture)
        tracked = threads.submit(
            "track", lambda before, points: track(before[0], points), tracked, points
        )
        speeds = threads.submit("speed", lambda pair: estimate_speeds(pair[1]), tracked)
        kinds = threads.submit(
            "classify", lambda picture, pair: classify(picture, pair[1]), picture, tracked
        )
        results.append(
            threads.submit(
                "collect",
                lambda frame, pair, speeds, kinds: collect(frame, pair[1], speeds, kinds, 0.0),
                frame,
                tracked,
                speeds,
                kinds,
            )
        )
    yield from [future.result() for future in results]
    threads.close()
