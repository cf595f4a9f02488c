"""Which tests one process gets together, and in which order: pure functions over cases.

A unit is a list of tests that one process runs in this order: the tests of one scope and demand,
or a test that has no scope.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TypeAlias

from pytest_gpu_cluster.agent.plan import LONG_S, Case, Demand
from pytest_gpu_cluster.contract.selection import Ordering

Unit: TypeAlias = Sequence[Case]
WORTH_S = 2.0  # a run that is longer by so much, and by …
WORTH_SHARE = 0.1  # … this share, pays for taking a scope apart


def units(tests: Iterable[Case]) -> list[list[Case]]:
    """Return the tests in units, which stand in the order of their first tests."""
    found: dict[object, list[Case]] = {}
    for test in tests:
        key = (test.demand, test.scope) if test.scope else test.index
        found.setdefault(key, []).append(test)
    return list(found.values())


def mixed(tests: Iterable[Case]) -> tuple[str, ...]:
    """Return the scopes whose tests have several demands: each needs a process of its own."""
    demands: dict[str, set[Demand]] = {}
    for test in tests:
        if test.scope:
            demands.setdefault(test.scope, set()).add(test.demand)
    return tuple(scope for scope, found in demands.items() if len(found) > 1)


def order(tests: Sequence[Case], *, ordering: Ordering) -> list[Case]:
    """Return tests in the order of handing out: where it is free, the longest unit comes first."""
    match ordering:
        case Ordering.SERIAL:
            return list(tests)
        case Ordering.KEPT:
            return list(chain.from_iterable(units(tests)))
        case Ordering.FREE:
            return list(chain.from_iterable(_longest_first(tests)))


def _longest_first(tests: Sequence[Case]) -> list[list[Case]]:
    durations = [test.expected_s for test in tests if test.expected_s is not None]
    middle = statistics.median(durations) if durations else 0.0
    long: list[tuple[float, list[Case]]] = []
    short: list[list[Case]] = []
    for unit in units(tests):
        seconds = sum(middle if test.expected_s is None else test.expected_s for test in unit)
        if seconds > LONG_S / 10:
            long.append((seconds, unit))
        else:
            short.append(unit)
    long.sort(key=lambda pair: (-pair[0], pair[1][0].index))
    return [*(unit for _, unit in long), *short]


def spread(tests: Sequence[Case], slots: Callable[[Demand], int]) -> dict[str, float]:
    """Take apart the scopes that would make the run longer, as the last runs say.

    Return the expected seconds of each. Its tests get shorter scopes, of neighbours. One with a
    test that never ran stays whole, and one that is bound: its tests would skip, or be wrong.
    """
    apart: dict[str, float] = {}
    for demand in {test.demand for test in tests}:
        group = [test for test in tests if test.demand == demand]
        limit_s = _limit(group, slots(demand))
        for unit in units(group):
            seconds = sum(test.expected_s or 0.0 for test in unit)
            free = all(test.expected_s is not None and not test.bound for test in unit)
            if free and len(unit) > 1 and _is_worth(seconds, limit_s):
                apart[unit[0].scope] = apart.get(unit[0].scope, 0.0) + seconds
                _cut(unit, limit_s / 2)
    return apart


def _limit(tests: Sequence[Case], slots: int) -> float:
    """Return the seconds that the run takes at least, with so many slots and no scopes."""
    expected = [test.expected_s or 0.0 for test in tests]
    return max(sum(expected) / max(1, slots), max(expected, default=0.0))


def _is_worth(seconds: float, limit_s: float) -> bool:
    return seconds - limit_s > max(WORTH_S, limit_s * WORTH_SHARE)


def _cut(unit: Unit, piece_s: float) -> None:
    """Give the tests of a unit new scopes, so that none takes much longer than `piece_s`."""
    number, together_s = 0, 0.0
    for place, test in enumerate(unit):
        expected_s = test.expected_s or 0.0
        if place and together_s + expected_s > piece_s:
            number, together_s = number + 1, 0.0
        together_s += expected_s
        test.scope = f"{test.scope} part {number}"
