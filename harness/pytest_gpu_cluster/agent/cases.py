"""Collected tests with their demands: pure functions over the rows of a collection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from pytest_gpu_cluster.agent import distribution, plan
from pytest_gpu_cluster.agent.plan import Case, Demand, Durations
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.gpus import Gpu
from pytest_gpu_cluster.contract.records import ItemRow
from pytest_gpu_cluster.contract.selection import Distribution, Ordering, SelectionOptions

NO_RAY = (
    "the test is marked ray, and tests run as another user than Ray here: a task would have the "
    "rights of that one"
)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The cluster that tests are planned for."""

    nodes: Mapping[str, float]  # devices by node
    gpus: Sequence[Gpu]  # of all nodes
    default_gpus: float  # of an unmarked test
    cpus: int = 1  # per node
    has_ray: bool = True  # tests may drive it
    shared: bool = False  # Ray has other users: a test that drives it gets its devices from Ray


@dataclass(frozen=True, kw_only=True)
class Cases:
    """The tests of a selection."""

    tests: list[Case]  # as collected
    runnable: list[Case]  # in the order of handing out
    refused: list[tuple[Case, str]]  # tests that this cluster can never run, and the reason
    ordering: Ordering  # serial also where one slot runs them all
    apart: Mapping[str, float]  # scopes that were taken apart, and the seconds that each takes
    mixed: tuple[str, ...]  # scopes whose tests need different devices, and so processes


def cases_of(
    items: Sequence[ItemRow], resources: Resources, history: Durations, options: SelectionOptions
) -> Cases:
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
            scope=item.get("scope", ""),
            bound=item.get("bound", False),
        )
        occurrences[nodeid, *outside] += 1
        tests.append(test)
        if problem is None:
            runnable.append(test)
        else:
            refused.append((test, problem))
    return _arranged(tests, runnable, refused, resources, options)


def _arranged(
    tests: list[Case],
    runnable: list[Case],
    refused: list[tuple[Case, str]],
    resources: Resources,
    options: SelectionOptions,
) -> Cases:
    slots = partial(plan.slots, nodes=resources.nodes, cpus=resources.cpus)
    several = len({test.demand for test in runnable}) > 1 or any(
        slots(test.demand) > 1 for test in runnable[:1]
    )
    ordering = options.ordering if several else Ordering.SERIAL
    mixed = distribution.mixed(runnable)
    apart: Mapping[str, float] = {}
    if ordering is not Ordering.SERIAL and options.distribution is Distribution.AUTO:
        apart = distribution.spread(runnable, slots)
    return Cases(
        tests=tests,
        runnable=distribution.order(runnable, ordering=ordering),
        refused=refused,
        ordering=ordering,
        apart=apart,
        mixed=mixed,
    )


def _demand(item: ItemRow, resources: Resources) -> tuple[Demand, str | None]:
    """Return the demand of a test, and the reason why it can never be met, or None."""
    try:
        demand = plan.demand_of(item, resources.default_gpus)
        too_small = _too_little_memory(item, resources.gpus)
    except ValueError as problem:
        return Demand(), str(problem)
    if demand.drives and not resources.has_ray:
        return demand, NO_RAY
    refusal = plan.impossible(demand, resources.nodes) or too_small
    if demand.drives and resources.shared and refusal is None:
        # Our devices go back to Ray for it, all at once: no other test may hold one.
        rest = sum(resources.nodes.values()) - demand.gpus
        demand = replace(demand, ray_gpus=rest, ray_nodes=len(resources.nodes))
    return demand, refusal


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
