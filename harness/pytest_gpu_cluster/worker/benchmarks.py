"""pytest-benchmark measures here and reports on the client, which has the files of earlier runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from pytest_gpu_cluster.contract.codec import to_wire
from pytest_gpu_cluster.contract.records import PluginRecord
from pytest_gpu_cluster.worker.hooks import module_of, surround

# Options by which a run is about its times, which tests side by side would spoil.
MEASURING = (
    *("benchmark_only", "benchmark_json", "benchmark_save", "benchmark_autosave"),
    *("benchmark_compare", "benchmark_compare_fail", "benchmark_histogram"),
)
MEASURED = pytest.StashKey[bool]()
VARIABLE = "PYTEST_XDIST_WORKER"
# What the client keeps of a test for its table and files, beside the times.
KEYS = ("name", "fullname", "group", "param", "params", "extra_info", "iterations")


# Modules of plugins that switch themselves off under xdist, where they are configured.
ALONE = ("inline_snapshot.pytest_plugin", "pytest_benchmark.plugin")


def enable(config: pytest.Config) -> None:
    """Let plugins be configured that switch themselves off under xdist.

    The tests of this process have its variables.
    """
    typed = (getattr(config.option, name, None) for name in MEASURING)
    config.stash[MEASURED] = any(typed)
    for implementation in config.hook.pytest_configure.get_hookimpls():
        if module_of(implementation) in ALONE:
            surround(implementation, lambda: without_xdist(config))


@contextlib.contextmanager
def without_xdist(config: pytest.Config) -> Iterator[None]:
    """Hide from a plugin that its process looks like a worker of xdist's."""
    option, worker = config.option, os.environ.pop(VARIABLE)
    typed = {name: getattr(option, name, None) for name in ("dist", "numprocesses")}
    option.dist, option.numprocesses = "no", None
    try:
        yield
    finally:
        os.environ[VARIABLE] = worker
        vars(option).update(typed)


def is_measured(config: pytest.Config, items: Sequence[pytest.Item]) -> bool:
    """Return True where the run is about times: an option says so, and a test is a benchmark."""
    return config.stash.get(MEASURED, False) and any(
        "benchmark" in getattr(item, "fixturenames", ()) for item in items
    )


class Benchmarks:
    """The plugin's results in this process; without the plugin there are none."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._sent = 0

    def new_records(self) -> Iterator[PluginRecord]:
        """Yield what was measured since the last call."""
        # Any: the plugin's own classes have no types.
        session: Any = getattr(self._config, "_benchmarksession", None)
        measured = session.benchmarks if session is not None else []
        while self._sent < len(measured):
            benchmark, self._sent = measured[self._sent], self._sent + 1
            data = {key: getattr(benchmark, key) for key in KEYS}
            data |= {
                "options": benchmark.as_dict(stats=False)["options"],
                "times_s": benchmark.stats.data,
                "has_error": bool(benchmark.has_error),
            }
            yield {"kind": "plugin", "plugin": "benchmark", "data": to_wire(data)}
