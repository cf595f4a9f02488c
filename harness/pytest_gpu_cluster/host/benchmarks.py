"""Give pytest-benchmark what was measured on the cluster, before it reports here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_gpu_cluster.contract.codec import from_wire
from pytest_gpu_cluster.contract.records import PluginRecord
from pytest_gpu_cluster.host.deserialize import unreadable


def add_benchmark(config: pytest.Config, record: PluginRecord) -> None:
    """Add one test's times, in seconds, to the plugin's session; without the plugin do nothing."""
    session = getattr(config, "_benchmarksession", None)
    if session is None:
        return
    from pytest_benchmark.stats import Metadata

    try:
        data = from_wire(record["data"])
        times_s, has_error = data.pop("times_s"), data.pop("has_error")
        fixture = SimpleNamespace(**data, cprofile_stats=None, has_error=has_error)
        make: Any = Metadata  # it has no types
        benchmark = make(fixture, data["iterations"], data["options"])
        benchmark.stats.data.extend(map(float, times_s))
    except Exception as problem:
        raise unreadable("a benchmark", f"{type(problem).__name__}: {problem}") from problem
    session.benchmarks.append(benchmark)
