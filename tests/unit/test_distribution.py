"""Units and their order: promises over arbitrary suites."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpu_cluster.agent import distribution
from pytest_gpu_cluster.agent.plan import Backlog, Case, Demand
from pytest_gpu_cluster.contract.selection import Ordering
from tests.unit.suites import ONE, a_case

TWO = Demand(gpus=2.0)
rows = st.lists(
    st.tuples(
        st.sampled_from([ONE, TWO]),
        st.sampled_from(["", "a", "b", "c"]),
        st.none() | st.sampled_from([0.0, 0.01, 1.0, 3.0, 50.0]),
    ),
    max_size=40,
)
Rows = list[tuple[Demand, str, float | None]]


def cases(suite: Rows) -> list[Case]:
    return [
        a_case(index, demand, expected_s, scope=scope)
        for index, (demand, scope, expected_s) in enumerate(suite)
    ]


def timed(*seconds: float | None, scope: str = "a") -> list[Case]:
    return cases([(ONE, scope, each) for each in seconds])


def together(tests: Sequence[Case]) -> list[list[int]]:
    """Return the places in the collection of the tests of each unit."""
    return [[test.index for test in unit] for unit in distribution.units(tests)]


@given(rows, st.sampled_from(Ordering))
def test_no_order_loses_a_test_or_tears_a_scope(suite: Rows, ordering: Ordering) -> None:
    """A test that is lost here is a green run that never happened."""
    tests = cases(suite)

    ordered = distribution.order(tests, ordering=ordering)

    assert sorted(test.index for test in ordered) == list(range(len(tests)))
    assert sorted(together(ordered)) == sorted(together(tests))
    if ordering is not Ordering.SERIAL:
        flat = [index for unit in together(ordered) for index in unit]
        assert flat == [test.index for test in ordered]


@given(rows)
def test_a_serial_order_is_the_order_of_the_collection(suite: Rows) -> None:
    """`-x` stops at the first failure as collected, or it means something else."""
    tests = cases(suite)

    assert distribution.order(tests, ordering=Ordering.SERIAL) == tests


@given(rows, st.integers(1, 4))
def test_taking_apart_keeps_neighbours_and_their_order(suite: Rows, slots: int) -> None:
    """What is left of a scope is still run by one process, in the order of the collection."""
    tests = cases(suite)
    before = together(tests)

    apart = distribution.spread(tests, lambda demand: slots)

    for unit in before:
        pieces = [piece for piece in together(tests) if piece[0] in unit]
        assert [index for piece in pieces for index in piece] == unit
    if slots == 1:
        assert apart == {}


@pytest.mark.parametrize(
    ("seconds", "slots", "apart"),
    [
        ((3.0,) * 4, 2, {"a": 12.0}),
        ((3.0,) * 4, 1, {}),
        ((1.0,) * 3, 2, {}),
        ((3.0, 3.0, 3.0, None), 2, {}),
        ((30.0, 1.0), 2, {}),
    ],
    ids=["it pays", "one slot", "little to gain", "one never ran", "one long test decides"],
)
def test_a_scope_is_taken_apart_only_where_that_pays(
    seconds: tuple[float | None, ...], slots: int, apart: dict[str, float]
) -> None:
    """Apart, its fixtures are set up more often, and its tests no longer see each other."""
    assert distribution.spread(timed(*seconds), lambda demand: slots) == apart


def test_a_bound_scope_stays_whole_whatever_it_costs() -> None:
    """A test of pytest-dependency skips, quietly, where the test before it ran elsewhere."""
    tests = timed(3.0, 3.0, 3.0, 3.0)
    for test in tests:
        test.bound = True

    assert distribution.spread(tests, lambda demand: 2) == {}
    assert together(tests) == [[0, 1, 2, 3]]


def test_the_longest_goes_first() -> None:
    """A long test that starts last is the whole tail of the run."""
    ordered = distribution.order(
        timed(1.0, 9.0, 0.001, 4.0, 0.002, scope=""), ordering=Ordering.FREE
    )

    assert [test.index for test in ordered] == [1, 3, 0, 2, 4]


def test_a_unit_is_as_long_as_its_tests_together() -> None:
    """A class of short tests that is long as a whole would otherwise end the run alone."""
    tests = cases([(ONE, "", 0.5), *[(ONE, "a", 0.2)] * 3])

    ordered = distribution.order(tests, ordering=Ordering.FREE)

    assert [test.index for test in ordered] == [1, 2, 3, 0]


@given(rows, st.integers(1, 5))
def test_a_scope_is_handed_out_as_a_whole(suite: Rows, count: int) -> None:
    """The rest of it would go to the next process that asks."""
    tests = distribution.order(cases(suite), ordering=Ordering.KEPT)
    backlog = Backlog(tests)

    for demand in backlog.demands():
        picked = {test.index for test in backlog.pick(demand, count, home="a")}
        of_demand = [test for test in tests if test.demand == demand]
        assert len(picked) >= min(count, len(of_demand))
        for unit in together(of_demand):
            assert picked.isdisjoint(unit) or picked.issuperset(unit)
        assert backlog.units(demand) == len(together(of_demand))
