"""Ctrl-C, SIGTERM, live output and debuggers: a run is ended or watched while it goes on."""

from __future__ import annotations

import re
import signal
import time

import pytest

from tests.acceptance.processes import eventually, left_of
from tests.acceptance.project import Project
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


def test_b67_ctrl_c_ends_the_tests_and_the_cluster_stays(bench: Bench) -> None:
    """A cold start is the price of the next run. The place is the test's, as in plain pytest."""
    ours, cluster = interrupted(bench, signal.SIGINT, 1)
    report = bench.command("report")
    again = bench.ours(Scenario(files=PASS))

    assert ours.code == 2
    assert "1 passed" in ours.out
    assert "cancelled, 1 passed" in report
    assert f"the tests end, cluster {cluster} stays warm; Ctrl-C again ends it too" in ours.raw
    assert f"{bench.project / 'test_e.py'}:3: KeyboardInterrupt" in ours.raw
    assert "pytest_gpu_cluster/" not in ours.raw
    assert again.code == 0
    assert f"{cluster}, warm" in again.raw


def test_b67_a_second_ctrl_c_ends_the_cluster_too(bench: Bench) -> None:
    """Whoever asks twice wants nothing left."""
    ours, cluster = interrupted(bench, signal.SIGINT, 2)

    assert ours.code == 2
    assert f"the tests and cluster {cluster} end" in ours.raw
    assert "KeyboardInterrupt" in ours.out
    assert "stays warm until" not in ours.raw
    assert eventually(lambda: left_of(cluster) == [], within_s=30), left_of(cluster)


def test_b67_ctrl_c_while_a_cluster_starts_ends_it(lone: Project) -> None:
    """Nothing is there to keep. Here and with `idle-minutes` 0 the first Ctrl-C ends all."""
    lone.write(test_a="def test_a():\n    pass\n")
    running = lone.start(GPU_CLUSTER_IDLE_MINUTES="5")
    cluster = running.until("gpu-cluster: cluster ").cluster

    running.process.send_signal(signal.SIGINT)
    ran = running.wait()

    assert ran.code == 2, ran.out
    assert f"the tests and cluster {cluster} end" in ran.out
    assert "pytest_gpu_cluster/" not in ran.out
    assert eventually(lambda: left_of(cluster) == [], within_s=30), left_of(cluster)


def test_b68_sigterm_ends_the_run_and_the_cluster(bench: Bench) -> None:
    """A CI system sends it to a job that it cancels."""
    ours, cluster = interrupted(bench, signal.SIGTERM, 1)

    assert ours.code == 2
    assert "1 passed" in ours.out
    assert "stays warm" not in ours.raw
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


def test_b70_a_pytest_within_a_test_keeps_its_debugger(bench: Bench) -> None:
    """A plugin's own tests run pytest in their process, with a debugger that they bring."""
    source = """
pytest_plugins = "pytester"
class Debugger:
    def __init__(self, *args, **options): pass
    def reset(self): print("CUSTOM reset")
    def interaction(self, *args): print("CUSTOM interaction")
def test_outer(pytester):
    pytester.makepyfile("def test_inner(): assert 0")
    result = pytester.runpytest_inprocess("--pdb", "--pdbcls=test_c:Debugger")
    result.stdout.fnmatch_lines(["*CUSTOM interaction*", "*1 failed*"])
def test_after(): breakpoint()
"""
    ours = bench.ours(Scenario(files={"test_c.py": source}, args=("-p", "pytester")))

    assert "1 failed, 1 passed" in ours.counts
    assert "a debugger needs a terminal" in ours.out
