"""The place of a measurement: a scratch folder, a number of rounds, and a Ray of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import ray

from gpu_tests.pipelines.store import credentials

ROOT = Path(__file__).resolve().parents[3]
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Lab:
    """The settings of a measurement. `busy`: the machine was, before the start."""

    scratch: Path
    rounds: int
    ci: bool
    busy: bool


@contextmanager
def ray_cluster(scratch: Path, environ: Mapping[str, str]) -> Iterator[None]:
    """Start a Ray on this machine, for this process.

    It has two simulated GPUs and the resource groups of the served models.
    """
    ray.init(
        num_gpus=2,
        resources={"cpu_models": 8, "api_models": 8},
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(scratch),
        runtime_env={"env_vars": {**credentials(environ), "PYTHONPATH": str(ROOT)}},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.tune", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Return the seconds of a call, and its result."""
    began = time.monotonic()
    result = work()
    return time.monotonic() - began, result
