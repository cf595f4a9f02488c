"""Which test runs where and when: pure functions over demands, free devices and expected durations."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

LONG_S = 0.3  # a test expected to take longer is handed out alone
CHUNK_S = 0.15  # expected seconds of short tests handed out together, at most …
SHARE_S = 0.02  # … and at least, however few are left
CHUNK_TESTS = 200
AHEAD_S = 0.06  # of expected work that a worker has left when it is given more
START_S = 0.5  # of expected work that pays for one more worker, whose start costs half of that


@dataclass(frozen=True, kw_only=True, order=True)
class Demand:
    """What a test needs: devices for its own process, and devices left free in Ray's books when it drives the cluster."""

    drives: bool = False
    ray_nodes: int = 0
    ray_gpus: float = 0.0
    gpus: float = 0.0

    @property
    def size(self) -> tuple[float, float, bool]:
        return (self.ray_gpus + self.gpus, self.ray_nodes, self.drives)


@dataclass(kw_only=True)
class Case:
    """One collected test on its way to one committed outcome."""

    index: int
    nodeid: str
    occurrence: int
    location: Sequence[Any]
    outside: Sequence[
        str
    ] = ()  # of a test outside the tree: the argument that led to its file, and the file
    demand: Demand
    attempt: int = 0
    expected_s: float | None = None
    avoid: set[str] = field(default_factory=set)  # nodes that were lost under it


@dataclass
class _Group:
    tests: deque[Case] = field(default_factory=deque)
    known_s: float = 0.0
    unknown: int = 0

    def count(self, test: Case, sign: int) -> None:
        self.known_s += sign * (test.expected_s or 0.0)
        self.unknown += sign * (test.expected_s is None)


class Backlog:
    """Tests that wait for a slot: by demand, each group in the order of handing out."""

    def __init__(self, tests: Iterable[Case] = ()) -> None:
        self._groups: dict[Demand, _Group] = {}
        for test in tests:
            group = self._groups.setdefault(test.demand, _Group())
            group.tests.append(test)
            group.count(test, 1)

    def __len__(self) -> int:
        return sum(len(group.tests) for group in self._groups.values())

    def __iter__(self) -> Iterator[Case]:
        return (test for group in self._groups.values() for test in group.tests)

    def demands(self) -> list[Demand]:
        """What is asked for by tests that wait, the biggest first."""
        return sorted(
            (demand for demand, group in self._groups.items() if group.tests),
            key=lambda d: d.size,
            reverse=True,
        )

    def front(self, demand: Demand, count: int) -> list[Case]:
        """The next `count` tests of this demand."""
        return list(islice(self._groups[demand].tests, count)) if demand in self._groups else []

    def waiting(self, demand: Demand) -> int:
        return len(self._groups[demand].tests) if demand in self._groups else 0

    def worth(self, demand: Demand) -> int:
        """How many more workers pay, by what the tests are expected to take; of unknown ones each may be long."""
        group = self._groups.get(demand, _Group())
        return len(group.tests) if group.unknown else int(group.known_s / START_S)

    def take(self, demand: Demand, count: int, *, home: str) -> list[Case]:
        """Remove the next `count` tests of this demand; those that were lost on node `home` only when there are no others."""
        group = self._groups[demand]
        taken: list[Case] = []
        passed: list[Case] = []
        while group.tests and len(taken) < count:
            test = group.tests.popleft()
            (passed if home in test.avoid else taken).append(test)
        taken, passed = (taken, passed) if taken else (passed[:count], passed[count:])
        group.tests.extendleft(reversed(passed))
        for test in taken:
            group.count(test, -1)
        return taken

    def put_back(self, tests: Iterable[Case]) -> None:
        """Before all others, in this order."""
        for test in reversed(list(tests)):
            group = self._groups.setdefault(test.demand, _Group())
            group.tests.appendleft(test)
            group.count(test, 1)


def demand_of(item: Mapping[str, Any], default_gpus: float) -> Demand:
    """The demand that a collected item's marks state: `item["gpu"]` and `item["ray"]` hold their arguments, or None.

    Raises ValueError with what is wrong and what was expected.
    """
    gpu, ray = item.get("gpu"), item.get("ray")
    count = 0.0 if ray is not None else default_gpus
    if gpu is not None:
        count = gpu.get("count", 1)
    wanted = (ray or {}).get("gpus", 0)
    nodes = (ray or {}).get("nodes", 1)
    for name, value in (("gpu(count", count), ("ray(gpus", wanted)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value < 0 or (value > 1 and value != int(value)):
            raise ValueError(
                f"mark {name}={value!r}): expected a whole number of devices, or a share between 0 and 1"
            )
    if not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 1:
        raise ValueError(f"mark ray(nodes={nodes!r}): expected a whole number of at least 1")
    drives = ray is not None
    return Demand(
        drives=drives, ray_nodes=nodes if drives else 0, ray_gpus=float(wanted), gpus=float(count)
    )


def impossible(demand: Demand, nodes: Mapping[str, float]) -> str | None:
    """Why a cluster of these devices per node can never meet the demand; None when it can."""
    largest, total = max(nodes.values(), default=0.0), sum(nodes.values())
    if demand.gpus > largest:
        return f"the test asks for {demand.gpus:g} GPUs in one process; the largest node has {largest:g}"
    if demand.ray_nodes > len(nodes):
        return f"the test asks for {demand.ray_nodes} nodes; the cluster has {len(nodes)}"
    if demand.gpus + demand.ray_gpus > total:
        return f"the test asks for {demand.gpus + demand.ray_gpus:g} GPUs in all; the cluster has {total:g}"
    return None


def slots(demand: Demand, nodes: Mapping[str, float], cpus: int) -> int:
    """How many tests of this demand the empty cluster runs at once; tests that need no device share `cpus` per node."""
    if demand.drives:
        return 1
    if demand.gpus == 0:
        return max(1, cpus) * len(nodes)
    return sum(int((free + 1e-9) / demand.gpus) for free in nodes.values())


def order(tests: Iterable[Case], *, several: bool) -> list[Case]:
    """The order of handing out: as collected for one slot; for `several`, long tests first, the longest before all."""
    tests = list(tests)
    if not several:
        return tests
    known = [t.expected_s for t in tests if t.expected_s is not None]
    middle = statistics.median(known) if known else 0.0
    expected = {t.index: t.expected_s if t.expected_s is not None else middle for t in tests}
    long = sorted(
        (t for t in tests if expected[t.index] > LONG_S / 10),
        key=lambda t: (-expected[t.index], t.index),
    )
    return long + [t for t in tests if expected[t.index] <= LONG_S / 10]


def batch(front: Sequence[Case], *, waiting: int, mean_s: float | None, sharers: int) -> int:
    """How many tests from the `front` of `waiting` ones to hand to one worker at once.

    Short ones travel together, so that handing out costs little; hardly more than a fair part of what is left, and one alone
    while nothing is known (`mean_s`: seconds per test so far, None before the first).
    """
    fair = waiting // (2 * max(1, sharers))
    together_s, count = 0.0, 0
    for test in front[:CHUNK_TESTS]:
        expected_s = test.expected_s if test.expected_s is not None else mean_s
        if expected_s is None:
            return max(1, count)
        together_s += expected_s + 0.001
        if count and together_s > (CHUNK_S if count < fair else SHARE_S):
            break
        count += 1
    return max(1, count)


def enough(queued: Iterable[Case], *, mean_s: float | None) -> bool:
    """Whether a worker that has these tests before it needs no more yet."""
    ahead_s = 0.0
    for test in queued:
        expected_s = test.expected_s if test.expected_s is not None else mean_s
        ahead_s += LONG_S if expected_s is None else expected_s + 0.001
        if ahead_s > AHEAD_S:
            return True
    return False


def nodes_for(
    demand: Demand, free: Mapping[str, float], *, avoid: Iterable[str] = ()
) -> dict[str, float] | None:
    """Devices to take per node for this demand, its own process's node first; None when they are not free now.

    The process goes where it fits tightest; what it drives is spread over the asked number of nodes, the freest first.
    """
    allowed = {node: count for node, count in free.items() if node not in set(avoid)} or dict(free)
    homes = sorted((count, node) for node, count in allowed.items() if count + 1e-9 >= demand.gpus)
    if not homes:
        return None
    home = homes[0][1] if demand.gpus else homes[-1][1]
    taken = {home: demand.gpus}
    left = dict(free)
    left[home] -= demand.gpus
    if demand.ray_gpus:
        wanted = demand.ray_gpus
        for share in (
            math.ceil(wanted / demand.ray_nodes),
            wanted,
        ):  # evenly over the asked nodes, then wherever there is more
            for node in sorted(left, key=lambda n: -left[n]):
                part = min(left[node], wanted, share)
                taken[node] = taken.get(node, 0.0) + part
                left[node] -= part
                wanted -= part
        if wanted > 1e-9:
            return None
    return taken


def merged(
    history: Mapping[str, Any], measured: Mapping[str, float], *, keep: int = 5
) -> dict[str, list[float]]:
    """`history/durations.json` with this session's seconds per test in front, newest first."""
    result = {
        name: list(values)[:keep] for name, values in history.items() if isinstance(values, list)
    }
    for name, seconds in measured.items():
        result[name] = [round(seconds, 4), *result.get(name, [])][:keep]
    return result


def expected(history: Mapping[str, Any], nodeid: str) -> float | None:
    """Seconds a test will take, by its last runs; None when it never ran."""
    values = history.get(nodeid)
    return statistics.median(values[:3]) if isinstance(values, list) and values else None
