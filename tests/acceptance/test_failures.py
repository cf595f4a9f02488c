"""Each class of failure, by a process that really dies, hangs or is killed: one outcome per test,
and the others run.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.acceptance.processes import agent_of, eventually, keeper_of, left_of, waits
from tests.acceptance.project import Project, Ran

CRASHING = """
import ctypes, os, signal, sys, time
import pytest

def test_first():
    pass

def test_segfault():
    print("the last words on stdout")
    print("the last words on stderr", file=sys.stderr)
    time.sleep(0.4)
    ctypes.string_at(0)

def test_exit():
    os._exit(3)

def test_killed():
    os.kill(os.getpid(), signal.SIGKILL)

def test_abort():
    os.abort()

@pytest.fixture
def bad_setup():
    os._exit(4)

@pytest.fixture
def bad_teardown():
    yield
    ctypes.string_at(0)

def test_dies_in_setup(bad_setup):
    pass

def test_dies_in_teardown(bad_teardown):
    pass

def test_fails():
    assert 1 == 2

def test_last():
    pass
"""


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory, shared_store: str) -> Ran:
    """One run of a suite in which nearly every test takes its process with it."""
    project = Project(tmp_path_factory.mktemp("crashes") / "project", shared_store)
    project.write(
        test_a=CRASHING,
        test_import="import ctypes\nctypes.string_at(0)\n",
        test_other="def test_elsewhere():\n    pass\n",
    )
    return project.run("--continue-on-collection-errors", "-v")


def test_a_dead_process_costs_exactly_the_test_that_ran_in_it(crashed: Ran) -> None:
    """A segfault in one test of a thousand must not hide, repeat or fail any other."""
    outcomes = crashed.cases()

    assert crashed.code == 1, crashed.out
    assert outcomes == {
        "test_import": "error",
        "test_first": "passed",
        "test_segfault": "failure",
        "test_exit": "failure",
        "test_killed": "failure",
        "test_abort": "failure",
        "test_dies_in_setup": "error",
        "test_dies_in_teardown": "error",
        "test_fails": "failure",
        "test_last": "passed",
        "test_elsewhere": "passed",
    }


@pytest.mark.parametrize(
    ("name", "begins", "phase"),
    [
        ("test_segfault", "crash: SIGSEGV", "call"),
        ("test_exit", "crash: exit 3", "call"),
        ("test_killed", "crash: SIGKILL", "call"),
        ("test_abort", "crash: SIGABRT", "call"),
        ("test_dies_in_setup", "crash: exit 4", "setup"),
        ("test_dies_in_teardown", "crash: SIGSEGV", "teardown"),
        ("test_import", "crash: SIGSEGV", "import"),
    ],
)
def test_a_crash_is_named_by_its_signal_and_phase(
    crashed: Ran, name: str, begins: str, phase: str
) -> None:
    """`crash: SIGSEGV in call` is what somebody searches for; "worker 'gw3' crashed" is not."""
    text = crashed.text(name)

    assert any(line.startswith(begins) for line in text.splitlines()), text
    assert phase in text


def test_a_crash_keeps_the_last_output_the_trace_and_the_true_duration(crashed: Ran) -> None:
    """The last output of a dead process is most of what anybody will ever know."""
    text = crashed.text("test_segfault")

    for words in (
        "the last words on stdout",
        "the last words on stderr",
        "Segmentation fault",
        "in test_segfault",
    ):
        assert words in text
    assert "pytest_gpu_cluster/" not in text, "frames of this package tell the reader nothing"
    assert 0.4 <= float(crashed.case("test_segfault").get("time") or 0) < 5


def test_out_of_memory_is_offered_as_the_reason_of_a_sigkill(crashed: Ran) -> None:
    """Nobody sent that signal as far as they know; the kernel did."""
    assert "out of memory?" in crashed.message("test_killed")


HANGING = """
import ctypes, os, signal, time

def test_first():
    pass

def test_hangs_in_c():
    library = ctypes.PyDLL(None)  # keeps the GIL: no Python code of this process runs any more
    print("before it hung")
    while library.sleep(600) >= 0:
        pass

def test_stops_itself():
    os.kill(os.getpid(), signal.SIGSTOP)

def test_ignores_every_signal():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(600)

def test_last():
    pass
"""


def test_a_time_limit_is_kept_from_outside_with_the_stacks(project: Project) -> None:
    """A test that hangs in C, with the GIL, stopped, or deaf to signals, cannot be trusted to end
    itself.
    """
    project.write(test_a=HANGING)

    ran = project.run(GPU_CLUSTER_TEST_TIMEOUT_S="1.5")

    assert ran.code == 1, ran.out
    assert ran.cases() == {
        "test_first": "passed",
        "test_hangs_in_c": "failure",
        "test_stops_itself": "failure",
        "test_ignores_every_signal": "failure",
        "test_last": "passed",
    }
    for name in ("test_hangs_in_c", "test_stops_itself", "test_ignores_every_signal"):
        assert ran.message(name).startswith("timeout: "), ran.text(name)
        assert "1.5 s in call" in ran.message(name)
        assert 1.5 <= float(ran.case(name).get("time") or 0) < 6
    assert "in test_hangs_in_c" in ran.text("test_hangs_in_c"), "no stack of the hanging test"
    assert "before it hung" in ran.text("test_hangs_in_c")


LONG = """
import time
import pytest

def test_quick():
    pass

@pytest.mark.parametrize("n", range(4))
def test_long(n):
    time.sleep(300)
"""


def test_the_sessions_limit_keeps_what_finished_and_names_the_rest(project: Project) -> None:
    """A budget is kept without losing what it has paid for."""
    project.write(test_a=LONG)

    ran = project.run(GPU_CLUSTER_MAX_MINUTES="0.1")

    assert ran.code == 13, ran.out
    assert ran.cases() == {"test_quick": "passed"} | {f"test_long[{n}]": "error" for n in range(4)}
    for n in range(4):
        assert ran.message(f"test_long[{n}]").endswith(
            '"limit: the session\'s limit of 0.1 minutes was reached"'
        )
    assert "gpu-cluster: limit: the session's limit of 0.1 minutes was reached" in ran.out


def test_a_true_failure_wins_over_the_limit(project: Project) -> None:
    """Exit 13 says "not your tests"; it must never be said of a run in which a test failed."""
    project.write(test_a=LONG.replace("    pass", "    assert False"))

    ran = project.run(GPU_CLUSTER_MAX_MINUTES="0.1")

    assert ran.code == 1, ran.out
    assert ran.cases()["test_quick"] == "failure"


SLOW = """
import os, time
import pytest

def test_quick():
    {quick}

@pytest.mark.parametrize("n", range(6))
def test_slow(n):
    time.sleep({seconds})
"""


def test_a_lost_agent_keeps_what_finished_and_names_the_rest(lone: Project) -> None:
    """The agent is one process; its death may cost time, but no result that was already there."""
    lone.write(test_a=SLOW.format(quick="pass", seconds=60))
    running = lone.start("-v")
    cluster = running.until("test_quick PASSED").cluster

    os.kill(agent_of(cluster), signal.SIGKILL)
    ran = running.wait()

    assert ran.code == 10, ran.out
    assert ran.cases() == {"test_quick": "passed"} | {f"test_slow[{n}]": "error" for n in range(6)}
    for n in range(6):
        assert "infrastructure: its agent ended with -9" in ran.message(f"test_slow[{n}]")
    assert left_of(cluster) == []
    assert "stays warm" not in ran.out
    assert "infrastructure" in lone.command("ls").stdout


def test_a_true_failure_wins_over_a_lost_keeper(lone: Project) -> None:
    """Exit 10 says "not your tests"; it must never be said of a run in which a test failed."""
    lone.write(test_a=SLOW.format(quick="assert False", seconds=60))
    running = lone.start("-v", **waits(stop_grace_s=3))
    cluster = running.until("test_quick FAILED").cluster

    os.kill(keeper_of(cluster), signal.SIGKILL)
    ran = running.wait()

    assert ran.code == 1, ran.out
    assert ran.cases() == {"test_quick": "failure"} | {f"test_slow[{n}]": "error" for n in range(6)}
    assert "keeper" in ran.message("test_slow[0]")
    assert eventually(lambda: left_of(cluster) == []), left_of(cluster)


def test_a_store_that_is_lost_later_is_infrastructure(lone: Project) -> None:
    """A full disk or a revoked key in the middle of a run is not the tests' fault."""
    lone.write(test_a=SLOW.format(quick="pass", seconds=60))
    running = lone.start("-v", **waits(store_patience_s=5))
    cluster = running.until("test_quick PASSED").cluster

    shutil.move(lone.store, f"{lone.store}-moved")
    Path(lone.store).write_text("no directory any more")
    ran = running.wait()

    assert ran.code == 10, ran.out
    assert ran.cases()["test_quick"] == "passed"
    assert ran.cases()["test_slow[5]"] == "error"
    assert lone.store in ran.message("test_slow[5]")
    assert eventually(lambda: left_of(cluster) == []), left_of(cluster)
