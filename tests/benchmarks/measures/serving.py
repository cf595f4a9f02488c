"""The latency of a decision: model after model, eight threads, and the served composition."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from gpu_tests.pipelines.parcel import (
    MODELS,
    Decision,
    Upload,
    decide,
    decide_sequentially,
    specimen,
)
from gpu_tests.pipelines.served import Client, decision_latency_s, serving
from tests.benchmarks.measures.lab import Lab, ray_cluster, timed
from tests.benchmarks.ratios import Figure, Ways, make_figure

CASES, SIMULATED_S = 12, 0.1
WAITS = dict.fromkeys(MODELS, SIMULATED_S)


def decision_latency(lab: Lab) -> list[Figure]:
    """Measure the seconds from the last upload of a case to its decision."""
    count = max(CASES, lab.rounds)
    with (
        ray_cluster(lab.scratch / "ray", {}),
        serving(WAITS) as client,
        ThreadPoolExecutor(len(MODELS)) as threads,
    ):
        decide_sequentially(specimen(1), {})  # torch is imported
        decide_in_threads(specimen(1), threads)
        decision_latency_s(client, "warm", specimen(1))
        ways = Ways(measure_cases(count, client, threads), unit="s", busy=lab.busy)
    return [
        make_figure(
            "decision_latency_vs_sequential",
            ways.ratios("naive", "ours"),
            ways,
            floor=4,
            baseline="model after model",
            note=f"{count} cases, 3 uploads at once, "
            f"8 models of a simulated {1000 * SIMULATED_S:.0f} ms",
        )
    ]


def measure_cases(
    count: int, client: Client, threads: ThreadPoolExecutor
) -> dict[str, list[float]]:
    """Return the seconds of each way. Raises RuntimeError when a served decision differs."""
    times: dict[str, list[float]] = {"naive": [], "eight threads": [], "ours": []}
    for number in range(count):
        uploads = specimen(number + 2)
        seconds, plain = timed(partial(decide_sequentially, uploads, WAITS))
        times["naive"].append(seconds)
        times["eight threads"].append(timed(partial(decide_in_threads, uploads, threads))[0])
        seconds, decided = decision_latency_s(client, f"case {number}", uploads)
        times["ours"].append(seconds)
        if decided.decision != plain:
            raise RuntimeError("the served decision is another than the plain one")
    return times


def decide_in_threads(uploads: Mapping[str, Upload], threads: ThreadPoolExecutor) -> Decision:
    """Decide by hand in the strong way: all models at once, each in a thread."""

    def call(name: str) -> float:
        time.sleep(WAITS[name])
        return MODELS[name].function(*(uploads[kind] for kind in MODELS[name].triggers))

    return decide(dict(zip(MODELS, threads.map(call, MODELS), strict=True)))
