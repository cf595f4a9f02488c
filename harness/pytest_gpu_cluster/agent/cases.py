"""Collected tests with their demands: pure functions over the rows of a collection."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence

from pytest_gpu_cluster.agent import plan
from pytest_gpu_cluster.agent.plan import Case, Demand, Durations
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.gpus import Gpu
from pytest_gpu_cluster.contract.records import ItemRow


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The cluster that tests are planned for."""

    nodes: Mapping[str, float]  # devices by node
    gpus: Sequence[Gpu]  # of the head node
    default_gpus: float  # of an unmarked test


@dataclass(frozen=True, kw_only=True)
class Cases:
    """The tests of a selection."""

    tests: list[Case]  # as collected
    runnable: list[Case]  # in the order of handing out
    refused: list[tuple[Case, str]]  # tests that this cluster can never run, and the reason
    single: bool  # one slot runs them all


def cases_of(items: Sequence[ItemRow], resources: Resources, history: Durations) -> Cases:
    """Give each collected test its demand and its place in the order."""
    occurrences: Counter[tuple[str, ...]] = Counter()
    tests: list[Case] = []
    runnable: list[Case] = []
    refused: list[tuple[Case, str]] = []
    for index, item in enumerate(items):
        nodeid, outside = item["nodeid"], item["outside"] or ()
        demand, problem = _demand(item, resources)
        test = Case(
            index=index,
            nodeid=nodeid,
            occurrence=occurrences[nodeid, *outside],
            location=item["location"],
            outside=outside,
            demand=demand,
            expected_s=plan.expected(history, nodeid),
        )
        occurrences[nodeid, *outside] += 1
        tests.append(test)
        if problem is None:
            runnable.append(test)
        else:
            refused.append((test, problem))
    several = _several({test.demand for test in runnable}, resources.nodes)
    return Cases(
        tests=tests,
        runnable=plan.order(runnable, several=several),
        refused=refused,
        single=not several,
    )


def _demand(item: ItemRow, resources: Resources) -> tuple[Demand, str | None]:
    """Return the demand of a test, and the reason why it can never be met, or None."""
    try:
        demand = plan.demand_of(item, resources.default_gpus)
        too_small = _too_little_memory(item, resources.gpus)
    except ValueError as problem:
        return Demand(), str(problem)
    return demand, plan.impossible(demand, resources.nodes) or too_small


def _too_little_memory(item: ItemRow, gpus: Sequence[Gpu]) -> str | None:
    """Return the reason when no device has the memory that a mark asks for, else None.

    Of simulated devices nothing is known. Raises ValueError for a mark that is no number.
    """
    gib = (item.get("gpu") or {}).get("memory_gib")
    sizes = [gpu.memory_gib for gpu in gpus if not gpu.simulated]
    if gib is None or not sizes:
        return None
    if not isinstance(gib, int | float):
        raise ValueError(f"mark gpu(memory_gib={gib!r}): expected a number of GiB")
    if max(sizes) >= gib:
        return None
    return f"the test asks for GPUs of {gib:g} GiB; the largest has {max(sizes):g} GiB"


def _several(demands: set[Demand], nodes: Mapping[str, float]) -> bool:
    """Return True when tests of these demands can run at the same time."""
    cpus = os.cpu_count() or 1
    return len(demands) > 1 or any(plan.slots(demand, nodes, cpus) > 1 for demand in demands)
