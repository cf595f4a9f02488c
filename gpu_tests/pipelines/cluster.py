"""Join the Ray cluster of RAY_ADDRESS as a driver; its workers get this code and the same store."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray
import ray.data

from .store import credentials

PACKAGE = Path(__file__).resolve().parents[1]


@contextmanager
def join(environ: Mapping[str, str]) -> Iterator[bool]:
    """Connect to Ray; yield True when its GPUs are real and may be used.

    Ray names the type of a GPU that it has detected, and none for one that it was only told of.
    GPU_TESTS_MODE=sim in `environ` leaves real GPUs unused. Nodes may have no copy of this tree:
    Ray ships this package to them, without the tiles that were fetched.
    """
    code = {"py_modules": [str(PACKAGE)], "excludes": ["data"], "env_vars": credentials(environ)}
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns that its progress bars are off
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.init(runtime_env=code, log_to_driver=False, logging_level=logging.WARNING)
    try:
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]  # ray
        real = any(key.startswith("accelerator_type:") for key in resources)
        yield real and environ.get("GPU_TESTS_MODE") != "sim"
    finally:
        ray.shutdown()
