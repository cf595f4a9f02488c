"""Crashes, stops and live output: what plain pytest cannot show, because it has died by then, is
promised here instead.
"""

from __future__ import annotations

import os
import re
import signal
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.acceptance.processes import CLUSTERS, eventually, left_of, waits
from tests.behaviours.bench import Bench
from tests.behaviours.outcome import Outcome
from tests.replay_rig import Scenario
from tests.replay_scenarios import PASS

CRASHES = """
import ctypes, os, signal, sys, time, pytest
def test_before(): pass
def test_segfault():
    print("last words", flush=True); print("last errors", file=sys.stderr); time.sleep(0.3)
    ctypes.string_at(0)
def test_exits(): os._exit(0)
def test_killed(): os.kill(os.getpid(), signal.SIGKILL)
@pytest.fixture
def aborts(): os.abort()
def test_setup(aborts): pass
@pytest.fixture
def dies():
    yield
    os._exit(3)
def test_teardown(dies): pass
def test_after(): pass
"""


def cases(outcome: Outcome) -> dict[str, tuple[str, str]]:
    """By test: its outcome, and the first line of its message."""
    outcomes = {}
    for case in ET.fromstring(outcome.junit).iter("testcase"):
        name = str(case.get("name"))
        assert name not in outcomes, f"{name} is there twice"
        child = next(
            (child for child in case if child.tag in ("failure", "error", "skipped")), None
        )
        outcomes[name] = (
            ("passed", "")
            if child is None
            else (child.tag, str(child.get("message")).partition("\n")[0])
        )
    return outcomes


@pytest.mark.parametrize("workers", [1, 2])
def test_b61_a_crash_is_one_report_with_phase_signal_and_last_words(
    bench: Bench, workers: int
) -> None:
    """In call a failure, in setup or teardown an error (the design's class, crash): never a hang,
    never a green run.
    """
    ours = bench.ours(Scenario(files={"test_c.py": CRASHES}), workers=workers)
    outcomes = cases(ours)

    assert ours.code == 1
    assert {name: outcome for name, (outcome, _) in outcomes.items()} == {
        "test_before": "passed",
        "test_segfault": "failure",
        "test_exits": "failure",
        "test_killed": "failure",
        "test_setup": "error",
        "test_teardown": "error",
        "test_after": "passed",
    }
    for name, begins, phase in (
        ("test_segfault", "crash: SIGSEGV", "call"),
        ("test_exits", "crash: exit 0", "call"),
        ("test_killed", "crash: SIGKILL", "call"),
        ("test_setup", "crash: SIGABRT", "setup"),
        ("test_teardown", "crash: exit 3", "teardown"),
    ):
        assert begins in outcomes[name][1], outcomes[name]
        assert phase in outcomes[name][1], outcomes[name]
    for words in ("last words", "last errors", "Segmentation fault", "in test_segfault"):
        assert words in ours.out, ours.out


def test_b61_the_duration_of_a_crash_is_true(bench: Bench) -> None:
    """`time=0` tells nobody that the test had run for minutes."""
    ours = bench.ours(Scenario(files={"test_c.py": CRASHES}), "-k", "segfault", "--durations=1")

    (seconds,) = re.findall(r"^(\d+\.\d+)s call +test_c.py::test_segfault", ours.raw, re.MULTILINE)
    assert 0.3 <= float(seconds) < 10


ONCE = """
import os, pathlib
where = pathlib.Path(os.environ["PYTEST_MARKS"])
def test_a(): pass
def test_crash():
    with open(where, "a") as file: file.write("x")
    os._exit(1)
def test_b(): pass
def test_c(): pass
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_b62_a_crashed_test_is_not_run_again_and_the_others_are_run(
    bench: Bench, workers: int
) -> None:
    """A crash is the test's; only lost machines are tried again."""
    marks = bench.beside(f"marks{workers}")
    ours = bench.ours(Scenario(files={"test_c.py": ONCE}), workers=workers, PYTEST_MARKS=str(marks))

    assert marks.read_text() == "x"
    assert "1 failed, 3 passed" in ours.counts


def test_b63_a_crash_at_import_is_a_collection_error_of_that_file(bench: Bench) -> None:
    """Exit code 2 and nothing runs, as for an exception at import; told to go on, the others
    run.
    """
    scenario = Scenario(files={**PASS, "test_zz.py": "import ctypes\nctypes.string_at(0)\n"})
    stopped, went_on = bench.ours(scenario), bench.ours(scenario, "--continue-on-collection-errors")

    assert stopped.code == 2
    assert "crash: SIGSEGV" in stopped.out
    assert (
        pytest.version_tuple < (9,) or "ERROR test_zz.py - crash: SIGSEGV" in stopped.out
    )  # pytest 8 names the file alone
    assert "1 error in N s" in stopped.counts
    assert went_on.code == 1
    assert "2 passed, 1 error" in went_on.counts


STUCK = """
import ctypes
def test_stuck():
    library = ctypes.PyDLL(None)  # with the GIL: no handler and no thread of this process runs
    while True: library.sleep(60)
def test_after(): pass
"""


def test_b65_a_stuck_worker_is_ended_from_outside(bench: Bench) -> None:
    """The limit is kept by another process; it names the test and shows its stack."""
    ours = bench.ours(Scenario(files={"test_s.py": STUCK}), GPU_CLUSTER_TEST_TIMEOUT_S="2")

    assert cases(ours)["test_after"] == ("passed", "")
    assert cases(ours)["test_stuck"][1].startswith("timeout: ")
    assert ours.code == 1


STOPPED = """
import os, pathlib, time, pytest
marks = pathlib.Path(os.environ["PYTEST_MARKS"])
@pytest.fixture
def careful():
    yield
    (marks / "torn-down").write_text("")
def wait(name):
    end = time.monotonic() + 60
    while not (marks / name).exists() and time.monotonic() < end: time.sleep(0.02)
def test_fails():
    wait("running")
    assert 0
def test_runs(careful):
    (marks / "running").write_text("")
    time.sleep(60)
    (marks / "went-on").write_text("")
@pytest.mark.parametrize("n", range(5))
def test_never(n): (marks / f"never{n}").write_text("")
"""


def test_b66_x_stops_the_tests_of_other_workers_with_teardown(bench: Bench) -> None:
    """The other test does not go on for a minute; its fixtures are torn down; nothing after the
    stop is shown.
    """
    marks = bench.beside("marks66")
    marks.mkdir()
    ours = bench.ours(
        Scenario(files={"test_x.py": STOPPED}),
        "-x",
        workers=2,
        PYTEST_MARKS=str(marks),
        GPU_CLUSTER_DISTRIBUTE="test",
    )

    assert ours.code == 1
    assert "stopping after 1 failures" in ours.out
    assert "1 failed in N s" in ours.counts
    assert eventually((marks / "torn-down").exists, within_s=10)
    assert sorted(path.name for path in marks.iterdir()) == ["running", "torn-down"]


ON_NODES = """
import os, pathlib, time
import pytest

SEEN = pathlib.Path({seen!r})

@pytest.mark.parametrize("n", range(4))
def test_on_a_node(n):
    # The environment of the node's fork server: the test's own does not name the node.
    born = pathlib.Path("/proc/self/environ").read_text()
    node = "n1" if "/n1\\0" in born else "n0"
    (SEEN / f"{{node}}-{{n}}-{{time.monotonic()}}").touch()
    while not list(SEEN.glob("n1-*")):  # until the other node runs a test too
        time.sleep(0.05)
    time.sleep(1)
"""


def test_b64_the_tests_of_a_lost_node_run_elsewhere_and_are_reported_once(bench: Bench) -> None:
    """Spot machines are taken back; a suite must not be red, nor twice in the report, for it."""
    marks = bench.beside("seen")
    marks.mkdir()
    settings = {"GPU_CLUSTER_NODES": "2", "GPU_CLUSTER_SIMULATED_GPUS": "1"}
    running = bench.start(
        Scenario(files={"test_n.py": ON_NODES.format(seen=str(marks))}, env=settings),
        "-v",
        workers=2,
    )
    running.until(lambda: any(marks.glob("n1-*")))
    match = re.search(r"gpu-cluster: cluster +(c[0-9a-f]{6})", running.out)
    assert match is not None
    os.kill(raylet_of(match[1], "n1"), signal.SIGKILL)
    ours = running.wait()

    assert ours.code == 0, ours.out
    assert {name: outcome for name, (outcome, _) in cases(ours).items()} == {
        f"test_on_a_node[{n}]": "passed" for n in range(4)
    }
    assert len(ours.statuses) == 4
    assert "gpu-cluster: retry        test_n.py::test_on_a_node[" in ours.raw
    assert left_of(match[1]) == [], "a cluster that has lost a node stayed for the next session"


def test_b16_the_head_is_lost_and_the_run_is_not_green(bench: Bench) -> None:
    """The stream ends without its end: what finished is kept, the rest are errors by name, exit
    10.
    """
    files = {"test_h.py": "import time\ndef test_quick(): pass\ndef test_long(): time.sleep(300)\n"}
    scenario = Scenario(files=files, env=waits(stop_grace_s=3))
    running = bench.start(scenario, "-v", GPU_CLUSTER_IDLE_MINUTES="0")
    running.until(lambda: "test_quick PASSED" in running.out)
    match = re.search(r"gpu-cluster: cluster +(c[0-9a-f]{6})", running.out)
    assert match is not None
    for line in left_of(match[1]):
        pid = line.split(" ", 1)[0]
        if pid.isdigit() and "pytest_gpu_cluster.node.guard" in line:
            os.kill(int(pid), signal.SIGKILL)
    ours = running.wait()

    assert ours.code == 10, ours.out
    assert cases(ours)["test_quick"] == ("passed", "")
    assert "infrastructure: cluster" in cases(ours)["test_long"][1]


def raylet_of(cluster: str, node: str) -> int:
    """The raylet of one node of a cluster."""
    mark = f"{CLUSTERS}/{cluster}/{node}".encode()
    pids = [line.split(" ", 1)[0] for line in left_of(cluster) if "raylet/raylet" in line]
    return next(
        int(pid)
        for pid in pids
        if pid.isdigit() and mark in Path(f"/proc/{pid}/environ").read_bytes()
    )
