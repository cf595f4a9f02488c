"""Replay equals plain pytest, without a cluster between the two.

Workers are subprocesses on another copy of the tree. A few of the scenarios, to find a fault in
seconds; `tests/behaviours` runs all of them on a cluster.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.replay_rig import Outcome, Scenario, compare, run
from tests.replay_scenarios import MIXED_FILES, PASS, SCENARIOS

PARTS = ("exitcode", "out", "err", "junit", "cache")
FAST = (
    "b01_failure",
    "b02_exitfirst",
    "b04_collection_error",
    "b07_bad_nodeid",
    "b09_exit_in_test",
    "b10_keyboard_interrupt",
)
XML = ("--junitxml=junit.xml",)


def same(scenario: Scenario, home: Path) -> tuple[Outcome, Outcome]:
    """Both sides, after every part of them that has to be equal was."""
    plain, replayed = compare(scenario, home)
    for part in PARTS:
        if part not in scenario.differs:
            assert getattr(replayed, part) == getattr(plain, part), part
    return plain, replayed


def statuses(outcome: Outcome) -> list[str]:
    """The `-v` lines that give a test its status, without progress, in any order."""
    found = re.findall(
        r"^\S+\.py::.*(?:PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", outcome.out, re.MULTILINE
    )
    return sorted(found)


@pytest.mark.parametrize("name", FAST)
def test_the_replayed_run_is_the_plain_run(name: str, tmp_path: Path) -> None:
    """The promise: the same exit code, the same text, the same JUnit, the same cache."""
    same(SCENARIOS[name], tmp_path)


def test_with_two_workers_every_test_has_one_status_and_the_counts_add_up(tmp_path: Path) -> None:
    """Reports that interleave would print stray lines; each test is replayed at once."""
    args = ("-v", "-p", "no:cacheprovider", *XML)
    plain = run(Scenario(files=MIXED_FILES, args=args), tmp_path / "plain", replayed=False)
    replayed = run(
        Scenario(files=MIXED_FILES, args=args, workers=2), tmp_path / "replayed", replayed=True
    )

    assert replayed.exitcode == plain.exitcode == 1
    assert statuses(replayed) == statuses(plain)
    assert replayed.out.splitlines()[-1] == plain.out.splitlines()[-1]
    assert replayed.junit == plain.junit


def test_a_stand_in_keeps_module_fixtures_and_a_late_error_is_not_lost(tmp_path: Path) -> None:
    """No test is held back to know its successor.

    Yet a module's fixture is set up once, and its teardown error is counted.
    """
    ups = (
        tmp_path / "ups"
    )  # not on stdout: an error at teardown shows the output of its test's setup once more
    files = {
        "test_a.py": "import pytest\n@pytest.fixture(scope='module')\n"
        f"def m():\n    open({str(ups)!r}, 'a').write('up ')\n    yield\n"
        "    raise ValueError('late')\n"
        "@pytest.mark.parametrize('i', range(6))\ndef test_a(m, i): pass\n",
    }
    outcome = run(Scenario(files=files, args=("-rA",), workers=2), tmp_path, replayed=True)

    assert outcome.exitcode == 1
    assert "ValueError: late" in outcome.out
    assert 1 <= ups.read_text().count("up") <= 2, "once for each worker at most"
    assert re.search(r"6 passed, [12] error", outcome.out)


def test_an_id_that_a_worker_does_not_find_is_that_tests_error(tmp_path: Path) -> None:
    """xdist refuses the whole run when two processes order a set differently."""
    files = {
        "test_s.py": "import os, pytest\n@pytest.mark.parametrize('x', [str(os.getpid())])\n"
        "def test_s(x): pass\ndef test_t(): pass\n"
    }
    outcome = run(Scenario(files=files), tmp_path, replayed=True)

    assert outcome.exitcode == 1
    assert "1 passed, 1 error" in outcome.out
    assert "differs between processes" in outcome.out


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("call", "def test_die(): os.abort()"),
        ("setup", "@pytest.fixture\ndef f(): os._exit(3)\ndef test_die(f): pass"),
    ],
)
def test_a_process_that_dies_is_one_failure_and_the_others_run(
    tmp_path: Path, where: str, line: str
) -> None:
    """The right word in the terminal, the right element in JUnit, and nobody else's result lost."""
    files = {
        "test_d.py": f"import os, pytest\ndef test_before(): pass\n{line}\ndef test_after(): pass\n"
    }
    outcome = run(Scenario(files=files, args=XML), tmp_path, replayed=True)

    assert outcome.exitcode == 1
    assert f"2 passed, 1 {'error' if where == 'setup' else 'failed'}".split(", ")[0] in outcome.out
    assert f"1 {'error' if where == 'setup' else 'failed'}" in outcome.out.splitlines()[-1]
    assert ("<error" if where == "setup" else "<failure") in outcome.junit
    assert "- crash: " in outcome.out


def test_the_end_that_never_comes_is_never_0(tmp_path: Path) -> None:
    """A stream that is cut after the last test looks like success, unless its end is asked for."""
    outcome = run(
        Scenario(files=PASS, env={"RIG_CUT": "session_finished"}), tmp_path, replayed=True
    )

    assert outcome.exitcode == 3
    assert "before the end" in outcome.out


def test_a_gap_in_the_events_is_never_0(tmp_path: Path) -> None:
    """A lost event may have been a failure."""
    outcome = run(Scenario(files=PASS, env={"RIG_CUT": "test_finished"}), tmp_path, replayed=True)

    assert outcome.exitcode == 3
    assert "have no result" in outcome.out
    assert "are missing" in outcome.out


def test_nothing_of_the_user_is_imported_here(tmp_path: Path) -> None:
    """The CI runner has no torch; rootdir's conftest imports it."""
    spy = "import os, pathlib\npathlib.Path(os.environ['SEEN'], str(os.getppid())).touch()\n"
    files = {"conftest.py": spy, "test_a.py": f"{spy}def test_a(): pass\n"}
    seen = tmp_path / "seen"
    seen.mkdir()
    outcome = run(
        Scenario(files=files, env={"SEEN": str(seen), "RIG_ALONE": "1"}), tmp_path, replayed=True
    )

    assert outcome.exitcode == 0
    assert [path.name for path in seen.iterdir()] == re.findall(r"RIG_PID=(\d+)", outcome.raw), (
        "only children of the client"
    )


def test_an_attribute_that_cannot_be_serialised_is_one_warning_and_no_lost_test(
    tmp_path: Path,
) -> None:
    """pytest-bdd and others put objects on reports; under xdist the session dies of it."""
    conftest = """
import pytest
@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    report = yield
    report.odd = object()
    return report
"""
    outcome = run(Scenario(files={**PASS, "conftest.py": conftest}), tmp_path, replayed=True)

    assert outcome.exitcode == 0
    assert "2 passed, 1 warning" in outcome.out
    assert "an object of type object" in outcome.out
