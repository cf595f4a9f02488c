"""Fixtures and scheduling: what a scope means on several workers, and who gets which device."""

from __future__ import annotations

import json
import re

import pytest

from tests.behaviours.bench import Bench
from tests.behaviours.listed import scenarios
from tests.behaviours.outcome import Outcome
from tests.behaviours.test_behaviours_crash import cases
from tests.replay_rig import Scenario
from tests.replay_scenarios import SCENARIOS


@scenarios(71)
def test_b71_scopes_open_and_close_where_plain_does(bench: Bench, scenario: Scenario) -> None:
    """A session fixture once, a module's fixture once, its failing teardown at the module's last
    test.
    """
    ours = bench.same(scenario)

    assert "ERROR at teardown of test_2" in ours.out


SCOPES = {
    "conftest.py": """
import os, pathlib, pytest
def note(text):
    with open(os.environ["PYTEST_NOTES"], "a") as file: file.write(text + "\\n")
@pytest.fixture(scope="session", autouse=True)
def session(worker_id):
    note(f"session up {worker_id}")
    yield
    note(f"session down {worker_id}")
@pytest.fixture(scope="module", autouse=True)
def module(request, worker_id):
    note(f"module up {worker_id} {request.module.__name__}")
    yield
    note(f"module down {worker_id} {request.module.__name__}")
""",
    **dict.fromkeys(
        ("test_a.py", "test_b.py", "test_c.py", "test_d.py"),
        (
            "import time, pytest\n"
            "@pytest.mark.parametrize('n', range(4))\n"
            "def test(n): time.sleep(0.1)\n"
        ),
    ),
}


def test_b71_with_two_workers_each_has_one_session(bench: Bench) -> None:
    """Every fixture that came up goes down, once; a module's fixture is up once for each run of its
    tests in a worker.
    """
    notes = bench.beside("notes71")
    ours = bench.ours(Scenario(files=SCOPES), workers=2, PYTEST_NOTES=str(notes))
    lines = notes.read_text().splitlines()

    assert ours.code == 0, ours.out
    for worker in ("gw0", "gw1"):
        assert lines.count(f"session up {worker}") == lines.count(f"session down {worker}") == 1
    ups, downs = (
        [line.split(f" {way} ")[1] for line in lines if line.startswith(f"module {way}")]
        for way in ("up", "down")
    )
    assert sorted(ups) == sorted(downs)
    assert {name for up in ups for name in up.split()[1:]} == {
        "test_a",
        "test_b",
        "test_c",
        "test_d",
    }


@scenarios(72)
def test_b72_parameters_of_session_fixtures(bench: Bench, scenario: Scenario) -> None:
    """Each value is set up once, in the order of plain."""
    ours = bench.same(scenario)

    assert ours.out.count("up x") == ours.out.count("up y") == 1


def test_b72_the_same_with_two_workers(bench: Bench) -> None:
    """Each test gets its value, wherever it runs."""
    scenario = Scenario(files=SCENARIOS["b72_session_params"].files, args=("-v",))
    plain, ours = bench.plain(scenario), bench.ours(scenario, workers=2)

    assert (ours.code, sorted(ours.statuses)) == (plain.code, sorted(plain.statuses))


@scenarios(73)
def test_b73_fixtures_of_packages_are_found_file_by_file(bench: Bench, scenario: Scenario) -> None:
    """A worker collects only the files that it is given, one after the other; each version of
    pytest keeps directories otherwise.
    """
    assert bench.same(scenario).code == 0


def test_b73_the_same_with_two_workers(bench: Bench) -> None:
    """Neither worker has seen the whole package."""
    scenario = Scenario(files=SCENARIOS["b73_package_fixtures"].files, args=("-v",))
    plain, ours = bench.plain(scenario), bench.ours(scenario, workers=2)

    assert (ours.code, sorted(ours.statuses), ours.junit) == (
        plain.code,
        sorted(plain.statuses),
        plain.junit,
    )


UNSTABLE = {
    "test_u.py": """
import os, pytest
@pytest.mark.parametrize("name", {"a", "b", "c"})
def test_set(name): pass
@pytest.mark.parametrize("who", [os.environ["PYTEST_XDIST_WORKER"], "all"])
def test_who(who): pass
"""
}


def test_b74_an_id_that_a_worker_does_not_find_is_that_tests_error(bench: Bench) -> None:
    """Sets have another order in every process, which is no trouble; an id made of the process is,
    and is named.
    """
    ours = bench.ours(Scenario(files=UNSTABLE), workers=2)
    outcomes = cases(ours)

    assert ours.code == 1
    assert sum(outcome == "passed" for outcome, _ in outcomes.values()) == 4
    ((name, message),) = [
        (name, message) for name, (outcome, message) in outcomes.items() if outcome != "passed"
    ]
    assert name == "test_who[main]"
    assert "test_who[main]" in message or "not" in message


DEVICES = {
    "seen.py": "import os\nat_import = os.environ.get('CUDA_VISIBLE_DEVICES')\n",
    "conftest.py": "import seen\n",
    "pytest.ini": "[pytest]\npythonpath = .\n",
    "test_d.py": """
import json, os, time, pytest, seen
def note(name, began):
    mine = os.environ["CUDA_VISIBLE_DEVICES"]
    assert seen.at_import == mine
    with open(os.environ["PYTEST_NOTES"], "a") as file:
        file.write(json.dumps([name, mine, began, time.time()]) + "\\n")
@pytest.mark.gpu(count=2)
def test_both(gpus):
    began = time.time(); time.sleep(0.3)
    assert len({gpu.id for gpu in gpus}) == 2
    note("both", began)
@pytest.mark.parametrize("n", range(6))
@pytest.mark.gpu
def test_one(n):
    began = time.time(); time.sleep(0.2)
    note("one", began)
@pytest.mark.parametrize("n", range(4))
@pytest.mark.gpu(count=0)
def test_none(n):
    began = time.time(); time.sleep(0.2)
    note("none", began)
""",
}


def test_b75_no_device_is_given_out_twice(bench: Bench) -> None:
    """Seen by the tests themselves: who had which devices from when to when, set before the first
    import.
    """
    notes = bench.beside("notes75")
    ours = bench.ours(Scenario(files=DEVICES), workers=2, PYTEST_NOTES=str(notes))
    uses = [json.loads(line) for line in notes.read_text().splitlines()]

    assert ours.code == 0, ours.out
    assert len(uses) == 11
    for name, devices, began, ended in uses:
        mine = [device for device in devices.split(",") if device]
        assert len(set(mine)) == len(mine) == {"both": 2, "one": 1, "none": 0}[name]
        for other, theirs, start, end in uses:
            together = (
                start < ended and began < end and (other, theirs, start) != (name, devices, began)
            )
            assert not (together and set(mine) & {device for device in theirs.split(",") if device})


IMPOSSIBLE = {
    "test_i.py": (
        "import pytest\n@pytest.mark.gpu(count=8)\ndef test_eight(): pass\ndef test_fine(): pass\n"
    )
}


def test_b76_a_demand_that_can_never_be_met_is_an_error_at_once(bench: Bench) -> None:
    """Of that test, with what there is; the others run."""
    ours = bench.ours(Scenario(files=IMPOSSIBLE))
    outcomes = cases(ours)

    assert ours.code == 1
    assert outcomes["test_fine"] == ("passed", "")
    assert outcomes["test_eight"][0] == "error"
    assert "8" in outcomes["test_eight"][1]


XDIST = {
    "test_x.py": """
import os, time, pytest
@pytest.mark.parametrize("n", range(4))
def test_x(n, worker_id, testrun_uid, record_property):
    time.sleep(0.3)
    assert worker_id == os.environ["PYTEST_XDIST_WORKER"]
    assert testrun_uid == os.environ["PYTEST_XDIST_TESTRUNUID"]
    assert os.environ["PYTEST_XDIST_WORKER_COUNT"] == os.environ["PYTEST_EXPECTED"]
    record_property("worker", worker_id); record_property("run", testrun_uid)
"""
}


@pytest.mark.parametrize("workers", [1, 2])
def test_b77_what_suites_written_for_xdist_ask_for_is_there(bench: Bench, workers: int) -> None:
    """Database names and ports are made of worker_id; a lock's name of testrun_uid."""
    ours = bench.ours(Scenario(files=XDIST), workers=workers, PYTEST_EXPECTED=str(workers))

    assert ours.code == 0, ours.out
    assert set(re.findall(r'name="worker" value="([^"]*)"', ours.junit)) == {
        f"gw{n}" for n in range(workers)
    }
    assert len(set(re.findall(r'name="run" value="([^"]*)"', ours.junit))) == 1


TAIL = """
import time, pytest
SHORT = [40, 50, 60, 70, 80, 90, 100, 120, 150, 200, 250, 300]
@pytest.mark.parametrize("ms", [*SHORT, 400, 600, 1000, 1600])
def test_t(ms): time.sleep(ms / 1000)
"""


def test_b78_known_durations_shorten_the_tail(bench: Bench) -> None:
    """The longest test stands last.

    With what the first run has measured, it starts first, and both workers end together.

    From the record's own clock: the time from the first start to the last end, against half the sum
    of the tests.
    """
    scenario = Scenario(files={"test_tail.py": TAIL})
    first, second = (
        bench.ours(scenario, workers=2),
        bench.ours(scenario, workers=2, keep_history=True),
    )
    events = bench.events(second)
    starts = [event for event in events if event["kind"] == "test_started"]
    ends = [event for event in events if event["kind"] == "test_finished"]
    bound_s = sum(event["duration_s"] for event in ends) / 2

    assert (first.code, second.code) == (0, 0)
    assert "test_tail.py::test_t[1600]" in [
        event["nodeid"] for event in starts[:2]
    ]  # either worker may be heard first
    assert ends[-1]["t"] - starts[0]["t"] <= 1.15 * bound_s


def test_b79_durations_outlive_the_cluster_in_the_store(bench: Bench) -> None:
    """The next cluster may be another machine; what is known of a test is kept beside the records.

    The longest test is collected last. It is among the first two to start only if its length is
    known: there are two workers.
    """
    quick = "".join(f"def test_quick_{n}(): time.sleep(0.2)\n" for n in range(4))
    files = {"test_h.py": f"import time\n{quick}def test_slow(): time.sleep(1)\n"}
    first = bench.ours(Scenario(files=files), GPU_CLUSTER_IDLE_MINUTES="0")
    second = bench.ours(Scenario(files=files), workers=2, keep_history=True)
    started = [event["nodeid"] for event in bench.events(second) if event["kind"] == "test_started"]

    assert cluster_of(first) != cluster_of(second)
    assert len(started) == 5
    assert "test_h.py::test_slow" in started[:2]


def cluster_of(outcome: Outcome) -> str:
    """The cluster that the terminal names."""
    match = re.search(r"gpu-cluster: cluster +(c[0-9a-f]{6})", outcome.raw)
    return match[1] if match else ""
