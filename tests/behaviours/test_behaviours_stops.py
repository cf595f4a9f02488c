"""Ctrl-C, SIGTERM, live output and debuggers: a run is ended or watched while it goes on."""

from __future__ import annotations

import re
import signal
import time

import pytest

from tests.acceptance.processes import eventually, left_of
from tests.behaviours.bench import Bench
from tests.behaviours.listed import scenarios
from tests.behaviours.outcome import Outcome
from tests.replay_rig import Scenario
from tests.replay_scenarios import PASS

ENDLESS = (
    "import time\n"
    "def test_quick(): pass\n"
    "def test_endless(): time.sleep(300)\n"
    "def test_never(): pass\n"
)


@pytest.mark.parametrize(
    ("number", "times"), [(signal.SIGINT, 1), (signal.SIGINT, 2)], ids=["once", "twice"]
)
def test_b67_ctrl_c_ends_the_run_and_the_cluster(
    bench: Bench, number: signal.Signals, times: int
) -> None:
    """Once: a summary, exit 2, no process left. Twice: at once, and nothing left either."""
    ours, cluster = interrupted(bench, number, times)

    assert ours.code == 2
    assert times == 2 or "1 passed" in ours.out
    assert "KeyboardInterrupt" in ours.out
    assert eventually(lambda: left_of(cluster) == [], within_s=30), left_of(cluster)


def test_b68_sigterm_ends_the_run_and_the_cluster(bench: Bench) -> None:
    """A CI system sends it to a job that it cancels."""
    ours, cluster = interrupted(bench, signal.SIGTERM, 1)

    assert ours.code == 2
    assert "1 passed" in ours.out
    assert eventually(lambda: left_of(cluster) == [], within_s=30), left_of(cluster)


def interrupted(bench: Bench, number: signal.Signals, times: int) -> tuple[Outcome, str]:
    """A run that gets a signal while a test runs; its outcome and its cluster."""
    running = bench.start(Scenario(files={"test_e.py": ENDLESS}), "-v")
    running.until(lambda: "test_quick PASSED" in running.out and "test_endless" in running.out)
    match = re.search(r"gpu-cluster: cluster +(c[0-9a-f]{6})", running.out)
    assert match is not None
    for _ in range(times):
        running.process.send_signal(number)
        time.sleep(0.3)
    return running.wait(), match[1]


@scenarios(69)
def test_b69_live_output_and_setup_lines_are_those_of_plain(
    bench: Bench, scenario: Scenario
) -> None:
    """-s, --setup-show, --setup-plan, --setup-only, log_cli, one --log-file."""
    ours = bench.same(scenario)

    if "--log-file=mine.log" in scenario.args:
        assert (bench.project / "mine.log").exists()
    assert ours.out


LIVE = """
import logging, os, sys, time, pytest
@pytest.fixture
def shown(): yield
def test_live(shown):
    print("first line"); logging.warning("first record"); sys.stdout.flush()
    end = time.monotonic() + 60
    while not os.path.exists(os.environ["PYTEST_SEEN"]) and time.monotonic() < end: time.sleep(0.02)
    assert os.path.exists(os.environ["PYTEST_SEEN"])
"""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-s",), "first line"),
        (("--setup-show",), "SETUP    F shown"),
        (("--log-cli-level=INFO",), "first record"),
    ],
    ids=["s", "setup-show", "log-cli"],
)
def test_b69_output_arrives_while_the_test_runs(
    bench: Bench, args: tuple[str, ...], words: str
) -> None:
    """The test waits for a file that is only written once its output has been read here."""
    mark = bench.beside(f"seen{args[0]}")
    running = bench.start(Scenario(files={"test_l.py": LIVE}, args=args), PYTEST_SEEN=str(mark))
    running.until(lambda: words in running.out)
    mark.write_text("")

    assert running.wait().code == 0


def test_b69_with_two_workers_each_live_line_names_its_worker(bench: Bench) -> None:
    """Lines of two tests that run at once would be a riddle."""
    files = {
        "test_s.py": (
            "import time\n"
            "def test_a():\n"
            "  print('in a'); time.sleep(1)\n"
            "def test_b():\n"
            "  print('in b'); time.sleep(1)\n"
        )
    }
    ours = bench.ours(Scenario(files=files, args=("-s",)), workers=2)

    assert ours.code == 0
    assert re.search(r"^\[gw\d\] in a$", ours.out, re.MULTILINE), ours.out
    assert re.search(r"^\[gw\d\] in b$", ours.out, re.MULTILINE), ours.out


@pytest.mark.parametrize("option", ["--pdb", "--trace"])
def test_b70_debuggers_are_refused_with_a_remedy(bench: Bench, option: str) -> None:
    """There is no terminal beside the test; said before anything is started."""
    ours = bench.ours(Scenario(files=PASS, args=(option,)), shipped=False)

    assert ours.code == 4
    assert option in ours.err
    assert "without --gpu-cluster" in ours.err


def test_b70_a_breakpoint_fails_its_test_and_does_not_hang(bench: Bench) -> None:
    """There is no terminal to read from; the test says so in one sentence."""
    source = """
import pdb, pytest
def test_a(): breakpoint()
def test_b(): pdb.set_trace()
def test_c(): pytest.set_trace()
def test_d(): pass
"""
    scenario = Scenario(files={"test_b.py": source}, args=("--tb=short",))

    ours = bench.ours(scenario)
    ignoring = bench.ours(scenario, PYTHONBREAKPOINT="0", GPU_CLUSTER_PASS_ENV="PYTHON*")

    assert "3 failed, 1 passed" in ours.counts
    assert ours.out.count("Failed: a debugger needs a terminal beside the test") >= 3
    assert "(Pdb)" not in ours.out
    assert "2 failed, 2 passed" in ignoring.counts
