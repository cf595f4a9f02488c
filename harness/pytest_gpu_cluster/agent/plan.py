"""Plans which test runs where and when: pure functions over demands, free devices and durations."""

from __future__ import annotations

import math
import statistics
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import field
from itertools import groupby, islice, takewhile
from typing import TypeAlias

from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.records import ItemRow, Location

# Seconds of the last runs by node id, newest first.
Durations: TypeAlias = Mapping[str, Sequence[float]]

LONG_S = 0.3  # a test expected to take longer is handed out alone
CHUNK_S = 0.15  # expected seconds of short tests handed out together, at most …
SHARE_S = 0.02  # … and at least, however few are left
CHUNK_TESTS = 200
AHEAD_S = 0.06  # of expected work that a worker has left when it is given more
START_S = 0.5  # of expected work that pays for one more worker, whose start costs half of that


@dataclass(frozen=True, kw_only=True, order=True)
class Demand:
    """The devices that a test needs.

    Those of its own process, and those that Ray's books must have free when it drives the cluster.
    """

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
    location: Location
    # Of a test outside the tree: the argument that led to its file, and the file.
    outside: Sequence[str] = ()
    demand: Demand
    attempt: int = 0
    expected_s: float | None = None
    scope: str = ""  # tests of one scope run in one process, in their order; "": it is alone
    bound: bool = False  # the scope is never taken apart
    avoid: set[str] = field(default_factory=set)  # nodes that were lost under it


@dataclass
class _Group:
    tests: deque[Case] = field(default_factory=deque)
    expected_s: float = 0.0  # of the tests that ran before
    unknown: int = 0  # tests that did not
    scopes: Counter[str] = field(default_factory=Counter)  # tests of each; "": those without one

    def count(self, test: Case, sign: int) -> None:
        self.expected_s += sign * (test.expected_s or 0.0)
        self.unknown += sign * (test.expected_s is None)
        self.scopes[test.scope] += sign
        if not self.scopes[test.scope]:
            del self.scopes[test.scope]


class Backlog:
    """Tests that wait for a slot: by demand, each group in the order of handing out.

    Tests of one scope stand together, and are handed out together.
    """

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
        """Return the demands of tests that wait, the biggest first."""
        return sorted(
            (demand for demand, group in self._groups.items() if group.tests),
            key=lambda d: d.size,
            reverse=True,
        )

    def waiting(self, demand: Demand) -> int:
        return len(self._groups[demand].tests) if demand in self._groups else 0

    def units(self, demand: Demand) -> int:
        """Return how many processes could have something to do: a scope needs one."""
        scopes = self._groups[demand].scopes if demand in self._groups else Counter[str]()
        return len(scopes) + max(0, scopes[""] - 1)

    def leading(self) -> list[Case]:
        """Return the tests of one demand that come, as collected, before those of any other."""
        fronts = {d: group.tests[0].index for d, group in self._groups.items() if group.tests}
        if not fronts:
            return []
        demand = min(fronts, key=lambda each: fronts[each])
        end = min((index for d, index in fronts.items() if d != demand), default=math.inf)
        return list(takewhile(lambda test: test.index < end, self._groups[demand].tests))

    def worth(self, demand: Demand) -> int:
        """Return how many more workers pay by the expected seconds; an unknown test may be long."""
        group = self._groups.get(demand, _Group())
        return len(group.tests) if group.unknown else int(group.expected_s / START_S)

    def front(self, demand: Demand, count: int, *, planned: Set[int] = frozenset()) -> list[Case]:
        """Return the next `count` tests of this demand, without those of the indices `planned`."""
        return list(islice(self._next(demand, planned), count))

    def pick(
        self, demand: Demand, count: int, *, home: str, planned: Set[int] = frozenset()
    ) -> list[Case]:
        """Return the next tests to run on node `home`; nothing is removed.

        They are `count` if there are as many, and the rest of the last one's scope. Tests that were
        lost on that node are among them only when there are no others.
        """
        fresh: list[Case] = []
        burnt: list[Case] = []
        for _, unit in groupby(self._next(demand, planned), key=lambda t: t.scope or t.index):
            tests = list(unit)
            lost = any(home in test.avoid for test in tests)
            if not lost:
                fresh += tests
            elif len(burnt) < count:
                burnt += tests
            if len(fresh) >= count:
                break
        return fresh or burnt

    def _next(self, demand: Demand, planned: Set[int]) -> Iterator[Case]:
        tests: Iterable[Case] = self._groups[demand].tests if demand in self._groups else ()
        return (test for test in tests if test.index not in planned) if planned else iter(tests)

    def remove(self, tests: Sequence[Case]) -> None:
        """Remove tests of one demand that wait near the front; the others keep their order."""
        indices = {test.index for test in tests}
        group = self._groups[tests[0].demand]
        others: list[Case] = []
        while indices:
            test = group.tests.popleft()
            if test.index in indices:
                indices.remove(test.index)
                group.count(test, -1)
            else:
                others.append(test)
        group.tests.extendleft(reversed(others))

    def put_back(self, tests: Iterable[Case]) -> None:
        """Let tests wait again: before all others, in this order."""
        for test in reversed(list(tests)):
            group = self._groups.setdefault(test.demand, _Group())
            group.tests.appendleft(test)
            group.count(test, 1)


def demand_of(item: ItemRow, default_gpus: float) -> Demand:
    """Return the demand that the marks of a collected item state.

    Raises ValueError with the wrong argument and what was expected.
    """
    gpu, ray = item.get("gpu"), item.get("ray")
    _check_arguments("gpu", gpu, ("count", "memory_gib"))
    _check_arguments("ray", ray, ("gpus", "nodes"))
    count: object = 0.0 if ray is not None else default_gpus
    if gpu is not None:
        count = gpu.get("count", 1)
    nodes = (ray or {}).get("nodes", 1)
    gpus = _devices("gpu(count", count)
    ray_gpus = _devices("ray(gpus", (ray or {}).get("gpus", 0))
    if not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 1:
        raise ValueError(f"mark ray(nodes={nodes!r}): expected a whole number of at least 1")
    drives = ray is not None
    return Demand(drives=drives, ray_nodes=nodes if drives else 0, ray_gpus=ray_gpus, gpus=gpus)


def _check_arguments(
    mark: str, arguments: Mapping[str, object] | None, known: Sequence[str]
) -> None:
    """Raise ValueError for an argument that the mark does not take."""
    for name, value in (arguments or {}).items():
        if name not in known:
            raise ValueError(
                f"mark {mark}({name}={value!r}): unknown argument; it takes {' and '.join(known)}"
            )


def _devices(argument: str, value: object) -> float:
    """Return a number of devices, or a share of one. Raises ValueError."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else -1
    if number < 0 or (number > 1 and number != int(number)):
        raise ValueError(
            f"mark {argument}={value!r}): expected a whole number of devices,"
            " or a share between 0 and 1"
        )
    return float(number)


def impossible(demand: Demand, nodes: Mapping[str, float]) -> str | None:
    """Return the reason when a cluster of these devices per node can never meet the demand."""
    largest, total = max(nodes.values(), default=0.0), sum(nodes.values())
    if demand.gpus > largest:
        return (
            f"the test asks for {demand.gpus:g} GPUs in one process;"
            f" the largest node has {largest:g}"
        )
    if demand.ray_nodes > len(nodes):
        return f"the test asks for {demand.ray_nodes} nodes; the cluster has {len(nodes)}"
    if (gpus := demand.gpus + demand.ray_gpus) > total:
        return f"the test asks for {gpus:g} GPUs in all; the cluster has {total:g}"
    return None


def slots(demand: Demand, nodes: Mapping[str, float], cpus: int) -> int:
    """Return how many tests of this demand the empty cluster runs at once.

    Tests that need no device share `cpus` per node.
    """
    if demand.drives:
        return 1
    if demand.gpus == 0:
        return max(1, cpus) * len(nodes)
    return sum(int((free + 1e-9) / demand.gpus) for free in nodes.values())


def batch(front: Sequence[Case], *, waiting: int, mean_s: float | None, sharers: int) -> int:
    """Return how many tests from the `front` of `waiting` ones to hand to one worker at once.

    Short ones travel together, so that handing out costs little: hardly more than a fair part of
    those that wait, and one alone while nothing is known. `mean_s`: seconds per test so far, None
    before the first; `sharers`: workers of this demand.
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
    """Return True when a worker that has these tests before it needs no more yet."""
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
    """Return devices to take per node, the process's own node first; None if they are not free now.

    The process goes where it fits tightest; the devices that it drives are spread over the
    requested number of nodes, the freest first. Nodes in `avoid` are its last choice.
    """
    allowed = {node: count for node, count in free.items() if node not in set(avoid)} or dict(free)
    homes = sorted((count, node) for node, count in allowed.items() if count + 1e-9 >= demand.gpus)
    if not homes:
        return None
    home = homes[0][1] if demand.gpus else homes[-1][1]
    devices = {home: demand.gpus}
    remaining = dict(free)
    remaining[home] -= demand.gpus
    missing = demand.ray_gpus
    # Evenly over the requested nodes, then wherever there is more.
    shares = (math.ceil(missing / demand.ray_nodes), missing) if missing else ()
    for share in shares:
        for node in sorted(remaining, key=lambda n: -remaining[n]):
            part = min(remaining[node], missing, share)
            devices[node] = devices.get(node, 0.0) + part
            remaining[node] -= part
            missing -= part
    return devices if missing <= 1e-9 else None


def merged(
    history: Durations, measured: Mapping[str, float], *, keep: int = 5
) -> dict[str, list[float]]:
    """Return the durations of the last `keep` runs, with the `measured` seconds in front."""
    result = {
        name: list(values)[:keep] for name, values in history.items() if isinstance(values, list)
    }
    for name, seconds in measured.items():
        result[name] = [round(seconds, 4), *result.get(name, [])][:keep]
    return result


def expected(history: Durations, nodeid: str) -> float | None:
    """Return the seconds that a test will take, by its last runs; None when it never ran."""
    values = history.get(nodeid)
    return statistics.median(values[:3]) if isinstance(values, list) and values else None
