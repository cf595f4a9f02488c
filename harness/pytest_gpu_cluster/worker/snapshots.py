"""syrupy's report, made in the selecting process of what the workers have used.

Snapshots that no test uses fail the run: who looks for them has to know every test. The plugin has
a way for it under xdist, from a worker to its controller, which is taken here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pytest_gpu_cluster.contract.codec import from_wire, to_wire
from pytest_gpu_cluster.contract.fields import JsonValue

MODULE = "syrupy"
KEY = "syrupy_report"


def are_used(config: pytest.Config, items: Sequence[pytest.Item]) -> bool:
    """Return True where a test compares with a snapshot of syrupy's."""
    return hasattr(config, "_syrupy") and any(
        "snapshot" in getattr(item, "fixturenames", ()) for item in items
    )


def expect_report(config: pytest.Config) -> None:
    """Give the plugin of a worker the place where it leaves its report at the end."""
    if hasattr(config, "_syrupy"):
        config.workeroutput = {}  # type: ignore[attr-defined]  # as xdist does


def report(config: pytest.Config) -> JsonValue:
    """Return what the plugin of a worker has left; None for nothing."""
    found = getattr(config, "workeroutput", {}).get(KEY)
    if found is None:
        return None
    from syrupy.utils import decompress_json

    plain = {
        key: decompress_json(value) if isinstance(value, bytes) else value
        for key, value in found.items()
    }
    return to_wire(plain)


def add_reports(config: pytest.Config, reports: Sequence[JsonValue]) -> None:
    """Give the reports of all workers to the plugin of the selecting process."""
    session: Any = getattr(config, "_syrupy", None)  # Any: the plugin's own
    for each in reports:
        # This process has selected the tests, and has seen how they ended.
        statuses = {nodeid: status.value for nodeid, status in session._selected_items.items()}
        session.add_worker_report({**from_wire(each), "selected": statuses})
