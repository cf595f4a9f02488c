"""Join the Ray cluster that RAY_ADDRESS names, as a driver whose workers have this code and reach the same store."""

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
    """Yields whether to compute on its GPUs: Ray names the type of one that it has seen, and none for one that it was told of.
    GPU_TESTS_MODE=sim in `environ` leaves them alone.

    Nodes may have no copy of this tree: Ray gives them this package, and the tiles that were fetched stay here.
    """
    code = {"py_modules": [str(PACKAGE)], "excludes": ["data"], "env_vars": credentials(environ)}
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns that its progress bars are off
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.init(runtime_env=code, log_to_driver=False, logging_level=logging.WARNING)
    try:
        real = any(key.startswith("accelerator_type:") for key in ray.cluster_resources())  # type: ignore[no-untyped-call]  # ray
        yield real and environ.get("GPU_TESTS_MODE") != "sim"
    finally:
        ray.shutdown()
