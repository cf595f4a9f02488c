"""Planning is pure, so its promises are stated over arbitrary suites and clusters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpu_cluster.agent import plan
from pytest_gpu_cluster.agent.plan import Case, Demand
from pytest_gpu_cluster.contract.fields import JsonObject
from pytest_gpu_cluster.contract.records import ItemRow
from tests.unit.suites import a_case

seconds = st.floats(0, 100, allow_nan=False)
demands = st.builds(Demand, gpus=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 4.0]))
clusters = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.integers(0, 8).map(float), min_size=1
)


def cases_of(durations: list[float | None]) -> list[Case]:
    return [a_case(n, Demand(), seconds) for n, seconds in enumerate(durations)]


def item_of(*, gpu: JsonObject | None, ray: JsonObject | None) -> ItemRow:
    return {
        "nodeid": "t.py::t",
        "name": "t",
        "parent": 0,
        "location": ("t.py", 0, "t"),
        "outside": None,
        "gpu": gpu,
        "ray": ray,
    }


@given(st.lists(st.none() | seconds, min_size=1), st.none() | seconds, st.integers(1, 8))
def test_a_batch_is_never_empty_and_never_too_much(
    durations: list[float | None], mean_s: float | None, sharers: int
) -> None:
    """An empty batch would wait for ever; one of everything would leave the other workers idle."""
    count = plan.batch(cases_of(durations), waiting=len(durations), mean_s=mean_s, sharers=sharers)

    expected = [duration if duration is not None else mean_s for duration in durations[:count]]
    assert count >= 1
    assert (
        count <= max(1, len(durations) // (2 * sharers))
        or sum(s for s in expected if s is not None) <= plan.SHARE_S
    )


@given(st.lists(st.tuples(demands, st.none() | seconds, st.booleans())), st.data())
def test_the_backlog_loses_and_doubles_nothing(
    rows: list[tuple[Demand, float | None, bool]], data: st.DataObject
) -> None:
    """Whatever is handed out and comes back: each test is either waiting or out, once."""
    tests = [
        a_case(n, demand, expected_s, avoid={"lost"} if avoids else ())
        for n, (demand, expected_s, avoids) in enumerate(rows)
    ]
    backlog, out = plan.Backlog(tests), []
    while backlog and data.draw(st.booleans()):
        demand = data.draw(st.sampled_from(backlog.demands()))
        picked = backlog.pick(
            demand, data.draw(st.integers(1, 5)), home=data.draw(st.sampled_from(["lost", "well"]))
        )
        backlog.remove(picked)
        assert picked
        assert all(test.demand == demand for test in picked)
        out += picked
        if data.draw(st.booleans()):
            backlog.put_back(out)
            out = []

    assert sorted(test.index for test in (*backlog, *out)) == list(range(len(tests)))
    assert sum(backlog.waiting(demand) for demand in backlog.demands()) == len(backlog)


def test_a_test_goes_back_to_the_node_that_lost_it_only_when_there_is_nothing_else() -> None:
    """The node may be what killed it."""
    burnt, fresh = cases_of([1.0, 1.0])
    burnt.avoid.add("a")
    backlog = plan.Backlog([burnt, fresh])

    assert backlog.pick(Demand(), 1, home="a") == [fresh]
    assert backlog.pick(Demand(), 1, home="a", planned={fresh.index}) == [burnt]
    assert backlog.pick(Demand(), 2, home="b") == [burnt, fresh]


def test_what_is_removed_from_the_middle_leaves_the_order_of_the_others() -> None:
    """Tests that were passed over stay the next ones for any other node."""
    tests = cases_of([1.0, 1.0, 1.0, None])
    backlog = plan.Backlog(tests)
    backlog.remove([tests[1], tests[3]])

    assert list(backlog) == [tests[0], tests[2]]
    assert backlog.worth(Demand()) == 2.0 / plan.START_S


def test_known_short_tests_are_not_worth_another_worker_and_unknown_ones_are() -> None:
    """Starting one costs as long as hundreds of trivial tests."""
    assert plan.Backlog(cases_of([0.001] * 100)).worth(Demand()) == 0
    assert plan.Backlog(cases_of([0.001, None])).worth(Demand()) == 2
    assert plan.Backlog(cases_of([2.5, 2.5])).worth(Demand()) == 5.0 / plan.START_S


@given(demands, clusters)
def test_what_is_taken_was_free(demand: Demand, free: dict[str, float]) -> None:
    """Our books must not promise a device twice: Ray would leave the second reservation pending."""
    devices = plan.nodes_for(demand, free)

    if devices is None:
        assert all(count < demand.gpus for count in free.values())
    else:
        assert sum(devices.values()) == pytest.approx(demand.gpus)
        assert all(free[node] + 1e-9 >= count for node, count in devices.items())


def test_a_driving_test_leaves_devices_free_on_the_nodes_it_asks_for() -> None:
    """Its own process holds none of them: Ray hands them to what it starts."""
    devices = plan.nodes_for(Demand(drives=True, ray_nodes=2, ray_gpus=4.0), {"a": 2.0, "b": 2.0})

    assert devices == {"a": 2.0, "b": 2.0}


@pytest.mark.parametrize(
    ("demand", "text"),
    [
        (Demand(gpus=4.0), "asks for 4 GPUs in one process; the largest node has 2"),
        (Demand(drives=True, ray_nodes=3, ray_gpus=1.0), "asks for 3 nodes; the cluster has 2"),
        (
            Demand(drives=True, ray_nodes=1, ray_gpus=8.0),
            "asks for 8 GPUs in all; the cluster has 4",
        ),
    ],
)
def test_a_demand_that_can_never_be_met_says_why(demand: Demand, text: str) -> None:
    """It is an error at once, not a wait until the deadline."""
    assert text in (plan.impossible(demand, {"a": 2.0, "b": 2.0}) or "")


@pytest.mark.parametrize("mark", [{"count": -1}, {"count": 1.5}, {"count": "two"}, {"count": True}])
def test_a_senseless_mark_names_its_value(mark: JsonObject) -> None:
    """The author of the mark must find it from the message alone."""
    with pytest.raises(ValueError, match=r"gpu\(count="):
        plan.demand_of(item_of(gpu=mark, ray=None), 1.0)


@pytest.mark.parametrize(
    ("gpu", "ray", "said"),
    [
        (
            {"cuont": 2},
            None,
            r"mark gpu\(cuont=2\): unknown argument; it takes count and memory_gib",
        ),
        ({"count": 1, "memory": 16000}, None, r"mark gpu\(memory=16000\)"),
        (None, {"gpu": 2}, r"mark ray\(gpu=2\): unknown argument; it takes gpus and nodes"),
    ],
    ids=["a typo", "another unit", "of the other mark"],
)
def test_an_argument_that_a_mark_does_not_take_is_refused(
    gpu: JsonObject | None, ray: JsonObject | None, said: str
) -> None:
    """The test would run with the default, and fail or pass for another reason."""
    with pytest.raises(ValueError, match=said):
        plan.demand_of(item_of(gpu=gpu, ray=ray), 1.0)


def test_an_unmarked_test_gets_the_default_and_a_driving_one_none() -> None:
    """A test that drives Ray would otherwise hold the devices that its own workers wait for."""
    assert plan.demand_of(item_of(gpu=None, ray=None), 1.0).gpus == 1.0
    assert plan.demand_of(item_of(gpu=None, ray={"gpus": 2}), 1.0) == Demand(
        drives=True, ray_nodes=1, ray_gpus=2.0, gpus=0.0
    )


@given(
    st.dictionaries(st.text(max_size=5), st.lists(seconds, max_size=9)),
    st.dictionaries(st.text(max_size=5), seconds),
)
def test_history_keeps_the_newest_first_and_stays_short(
    history: dict[str, list[float]], measured: dict[str, float]
) -> None:
    """It is read at the start of every session and must not grow with the number of runs."""
    merged = plan.merged(history, measured)

    assert all(len(values) <= 5 for values in merged.values())
    assert all(
        merged[name][0] == pytest.approx(value, abs=1e-4) for name, value in measured.items()
    )
