"""The terminal: with one worker, letter for letter what plain pytest prints; with several, each
line once.
"""

from __future__ import annotations

import re
from dataclasses import replace

from tests.behaviours.bench import Bench
from tests.behaviours.listed import scenarios
from tests.replay_rig import Scenario
from tests.replay_scenarios import CONFTEST, MIXED_FILES, SCENARIOS


@scenarios(19)
def test_b19_every_verbosity_prints_what_plain_prints(bench: Bench, scenario: Scenario) -> None:
    """-v, -q, -qq, -vv -rA: the whole output, letter for letter."""
    assert bench.same(scenario).code == 1


@scenarios(20)
def test_b20_collected_deselected_and_selected_are_counted(
    bench: Bench, scenario: Scenario
) -> None:
    """The selection was made elsewhere; its numbers are the user's check that it was the one that
    was meant.
    """
    ours = bench.same(scenario)

    assert re.search(
        r"^collecting ... collected \d+ items / \d+ deselected / \d+ selected$",
        ours.out,
        re.MULTILINE,
    )


@scenarios(21)
def test_b21_each_progress_style_is_kept(bench: Bench, scenario: Scenario) -> None:
    """progress is everywhere else in these tests; count, times and classic here."""
    assert bench.same(scenario).out


@scenarios(22)
def test_b22_each_traceback_style_is_kept(bench: Bench, scenario: Scenario) -> None:
    """--tb and --showlocals decide what a report holds, so they act where it is made."""
    assert bench.same(scenario).code == 1


@scenarios(23)
def test_b23_unusual_failures_have_the_same_text_and_colours(
    bench: Bench, scenario: Scenario
) -> None:
    """A missing fixture, a group of exceptions, a doctest, a syntax error: reprs that pytest itself
    cannot serialise.
    """
    assert "\x1b[31m" in bench.same(scenario).out


@scenarios(24)
def test_b24_colours_are_those_of_plain(bench: Bench, scenario: Scenario) -> None:
    """Diffs are coloured where the assertion failed, by a process that has no terminal."""
    assert "\x1b[" in bench.same(scenario).out


def test_b24_no_terminal_no_escape_codes(bench: Bench) -> None:
    """A log file must stay readable."""
    assert "\x1b" not in bench.same(replace(SCENARIOS["b24_colour"], args=("-vv",))).raw


@scenarios(25)
def test_b25_under_ci_diffs_are_not_cut(bench: Bench, scenario: Scenario) -> None:
    """CI decides that where the assertion fails, so it has to get there."""
    assert "Use -v to get more diff" not in bench.same(scenario).out


def test_b26_errors_in_setup_and_teardown_and_both(bench: Bench) -> None:
    """A test can fail and have an error besides: two entries, two counts."""
    ours = bench.same(
        Scenario(
            files={"test_mixed.py": MIXED_FILES["test_mixed.py"]},
            args=("-k", "error or both", "-rA"),
        )
    )

    assert "ERROR at setup of test_setup_error" in ours.out
    assert "ERROR at teardown of test_both" in ours.out
    assert ours.counts.startswith("== 1 failed, 1 passed") or "1 failed, 1 passed" in ours.counts


@scenarios(27)
def test_b27_skip_reasons_fold_by_line(bench: Bench, scenario: Scenario) -> None:
    """A skip's place and reason travel as a tuple, which JSON does not have."""
    assert (
        "SKIPPED [1] test_mixed.py:" in bench.same(scenario).out
        or "--no-fold-skipped" in scenario.args
    )


FOLDED = {
    **MIXED_FILES,
    "sub/test_skips.py": (
        "import pytest\n@pytest.mark.parametrize('x', [1, 2])\ndef test_s(x): pytest.skip('both')\n"
    ),
    "pytest.ini": "[pytest]\n",
}


def test_b27_folded_and_relative_to_where_pytest_was_started(bench: Bench) -> None:
    """Two skips on one line are one entry, whose path can be clicked."""
    ours = bench.same(Scenario(files=FOLDED, cwd="sub", args=("-rs", "test_skips.py")))

    assert "SKIPPED [2] test_skips.py:3: both" in ours.out


def test_b28_expected_failures_lenient_and_strict(bench: Bench) -> None:
    """xfailed, xpassed, and a strict one that passed and so failed."""
    files = {"test_mixed.py": MIXED_FILES["test_mixed.py"]}
    ours = bench.same(
        Scenario(files=files, args=("-k", "xfails or xpasses or strict", "-rxX", "-v"))
    )

    assert "1 failed, 13 deselected, 1 xfailed, 1 xpassed" in ours.counts


SECTIONS = {
    "test_s.py": """
import logging, sys, pytest
@pytest.fixture
def noisy():
    print("out of setup"); logging.warning("log of setup")
    yield
    print("out of teardown"); print("err of teardown", file=sys.stderr)
def test_s(noisy):
    print("out of call"); print("err of call", file=sys.stderr); logging.warning("log of call")
    assert 0
"""
}


@scenarios(29)
def test_b29_captured_sections_are_shown_as_asked(bench: Bench, scenario: Scenario) -> None:
    """Of stdout, stderr and log, what --show-capture names."""
    ours = bench.same(scenario)

    assert "Captured stderr call" in ours.out
    assert "Captured stdout" not in ours.out


def test_b29_sections_keep_their_order(bench: Bench) -> None:
    """Setup, call, teardown; log, stdout, stderr as pytest sorts them."""
    ours = bench.same(Scenario(files=SECTIONS))

    assert re.findall(r"Captured (\w+ \w+)", ours.out)


@scenarios(30)
def test_b30_warnings_are_told_once_with_their_source_line(
    bench: Bench, scenario: Scenario
) -> None:
    """Each process of the run could warn; the user has one summary."""
    assert bench.same(scenario).out


def test_b30_the_same_with_two_workers(bench: Bench) -> None:
    """A warning at import happens in every worker, and is told once."""
    files = {
        "test_w.py": (
            "import warnings\n"
            "warnings.warn('at import')\n"
            "def test_a(): warnings.warn('in a')\n"
            "def test_b(): pass\n"
        )
    }
    ours = bench.alike(Scenario(files=files))

    assert "2 passed, 2 warnings" in ours.counts


SLOW = {
    "test_slow.py": """
import time, pytest
@pytest.fixture
def f():
    time.sleep(0.7)
    yield
def test_slowest(): time.sleep(1.4)
def test_setup(f): pass
def test_quick(): pass
"""
}


@scenarios(31)
def test_b31_durations_lists_every_phase(bench: Bench, scenario: Scenario) -> None:
    """The times are those of the cluster, so only their lines can be equal, and not the order among
    almost equal ones.
    """
    plain, ours = bench.plain(scenario), bench.ours(scenario)

    assert (ours.code, ours.lines, ours.junit) == (plain.code, plain.lines, plain.junit)
    assert "slowest durations" in ours.out


def test_b31_the_slowest_come_first_and_short_ones_are_left_out(bench: Bench) -> None:
    """A search for the slow test is a search for the one that is slow there."""
    ours = bench.same(Scenario(files=SLOW, args=("--durations=2", "--durations-min=0.3")))

    assert re.findall(r"^N s (\w+) +(\S+)$", ours.out, re.MULTILINE) == [
        ("call", "test_slow.py::test_slowest"),
        ("setup", "test_slow.py::test_setup"),
    ]


@scenarios(32)
def test_b32_a_conftest_may_name_outcomes_itself(bench: Bench, scenario: Scenario) -> None:
    """Its letters and words are used although it is not imported here, in the summary too."""
    assert "FINE" in bench.same(scenario, header=False).out


@scenarios(33)
def test_b33_texts_of_conftests_appear(bench: Bench, scenario: Scenario) -> None:
    """Header, end of collection, terminal summary: hooks of a file that is not imported here."""
    ours = bench.same(scenario, header=False)

    for words in ("device: cpu", "found 18 things", "= mine =", "printed in the summary", "and 1"):
        assert words in ours.out


def test_b33_the_same_with_two_workers(bench: Bench) -> None:
    """A conftest that sums up sees the outcomes of every worker, once."""
    conftest = CONFTEST.replace("saw {seen}", "saw {sorted(seen)}")
    ours = bench.alike(Scenario(files={**MIXED_FILES, "conftest.py": conftest}, args=("-rA",)))

    assert len(re.findall("^saw ", ours.out, re.MULTILINE)) == 1
