"""Collected tests for the agent's pure functions."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_gpu_cluster.agent.plan import Case, Demand

ONE = Demand(gpus=1.0)


def a_case(
    index: int,
    demand: Demand = ONE,
    expected_s: float | None = None,
    *,
    scope: str = "",
    avoid: Iterable[str] = (),
) -> Case:
    return Case(
        index=index,
        nodeid=f"t.py::t{index}",
        occurrence=0,
        location=("t.py", index, f"t{index}"),
        demand=demand,
        expected_s=expected_s,
        scope=scope,
        avoid=set(avoid),
    )
