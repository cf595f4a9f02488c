"""Reporters and plugins: they work here, on results that were made there."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

from tests.behaviours.bench import Bench
from tests.behaviours.listed import scenarios
from tests.behaviours.outcome import Outcome, agree
from tests.replay_rig import Scenario
from tests.replay_scenarios import MIXED_FILES, PASS, SCENARIOS


@scenarios(54)
def test_b54_junit_is_that_of_plain_in_every_family(bench: Bench, scenario: Scenario) -> None:
    """Properties of any type, attributes, suite properties, log and output, in xunit1, xunit2 and
    legacy.
    """
    assert bench.same(scenario).junit


def test_b54_the_order_of_junit_does_not_depend_on_the_workers(bench: Bench) -> None:
    """Collection order, so that two reports can be compared."""
    bench.alike(SCENARIOS["b54_xunit2"])


SUBTESTS = {
    "test_s.py": (
        "def test_s(subtests):\n"
        "  with subtests.test('m', i=1): assert 0\n"
        "def test_t(): assert 0, 'plain'\n"
    )
}


def test_b55_the_report_log_has_what_plain_writes(bench: Bench) -> None:
    """CollectReports and SubtestReports included; times aside, line for line.

    (--tb=short: the long one shows an object's address.)
    """
    scenario = Scenario(
        files={**SUBTESTS, "sub/test_p.py": "def test_p(): pass\n"},
        args=("--report-log=log.jsonl", "--tb=short"),
    )
    logs = []
    for side in (bench.plain, bench.ours):
        side(scenario)
        logs.append(
            [
                timeless(json.loads(line))
                for line in (bench.project / "log.jsonl").read_text().splitlines()
            ]
        )

    assert logs[1] == logs[0]
    assert {"CollectReport", "TestReport"} <= {line.get("$report_type") for line in logs[1]}
    assert any(line.get("_subtest.context", {}).get("msg") == "m" for line in logs[1])


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in ("duration", "start", "stop")}


def test_b55_the_html_report_has_every_test(bench: Bench) -> None:
    """pytest-html builds its rows from reports, as JSON inside the page."""
    scenario = Scenario(files=MIXED_FILES, args=("--html=page.html", "--self-contained-html"))
    rows = []
    for side in (bench.plain, bench.ours):
        side(scenario)
        page = (bench.project / "page.html").read_text()
        blob = re.search(r'data-jsonblob="([^"]*)"', page)
        assert blob is not None
        tests = json.loads(unescape(blob[1]))["tests"]
        rows.append({name: [run["result"] for run in runs] for name, runs in tests.items()})

    assert rows[1] == rows[0]
    assert len(rows[1]) > 15


COVERED = {
    "pkg/__init__.py": "",
    "pkg/one.py": "def used():\n    return 1\ndef unused():\n    return 2\n",
    "pkg/two.py": "def other():\n    return 3\n",
    "test_one.py": "from pkg.one import used\ndef test_used(): assert used() == 1\n",
    "test_two.py": "from pkg.two import other\ndef test_other(): assert other() == 3\n",
}


def test_b56_coverage_comes_home_with_local_paths(bench: Bench) -> None:
    """Measured in worker processes on other files than these, told of these: pytest-cov's table, as
    plain has it.

    Its report reads the sources, so this tree is put back before that, as it is when nobody takes
    it away.
    """
    scenario = Scenario(files=COVERED, args=("--cov=pkg", "--cov-report=term-missing"))
    plain = bench.plain(scenario)
    ours = bench.ours(scenario, keep=True)
    two = bench.ours(scenario, keep=True, workers=2)

    assert re.search(r"pkg/one.py +4 +1 +75% +4", plain.out), plain.out
    assert (ours.code, ours.out) == (plain.code, plain.out)
    assert table(two) == table(plain)


def table(outcome: Outcome) -> list[str]:
    return [line for line in outcome.lines if line.startswith(("pkg/", "TOTAL"))]


@scenarios(57)
def test_b57_reruns_are_counted_and_the_last_one_decides(bench: Bench, scenario: Scenario) -> None:
    """pytest-rerunfailures: each attempt is reported, in the order of plain."""
    ours = bench.same(scenario)

    assert "1 failed, 1 passed, 4 rerun" in ours.counts


def test_b57_the_same_with_two_workers(bench: Bench) -> None:
    """The attempts of one test stay together in one worker."""
    plain, ours = (
        bench.plain(SCENARIOS["b57_reruns"]),
        bench.ours(SCENARIOS["b57_reruns"], workers=2),
    )

    assert (ours.code, ours.lines, ours.junit) == (plain.code, plain.lines, plain.junit)


TIMEOUT = {
    "test_t.py": (
        "import time, pytest\n"
        "@pytest.mark.timeout(0.5)\n"
        "def test_slow(): time.sleep(30)\n"
        "def test_ok(): pass\n"
    )
}


def test_b58_a_timeout_by_signal_fails_the_test(bench: Bench) -> None:
    """pytest-timeout raises in the test: an ordinary failure.

    (rerunfailures has a thread in plain pytest, whose stack would be shown.)
    """
    ours = bench.same(
        Scenario(files=TIMEOUT, args=("-o", "timeout_method=signal", "-p", "no:rerunfailures"))
    )

    assert "1 failed, 1 passed" in ours.counts


def test_b58_a_timeout_by_thread_costs_one_test(bench: Bench) -> None:
    """pytest-timeout ends the process then, and plain pytest with it.

    Here that is a crash of this test, with the stacks.
    """
    ours = bench.ours(Scenario(files=TIMEOUT, args=("-o", "timeout_method=thread")))

    assert ours.code == 1
    assert "1 failed, 1 passed" in ours.counts
    assert "crash: exit 1" in ours.out
    assert "Timeout" in ours.out
    assert "time.sleep(30)" in ours.out


def test_b59_randomly_uses_one_seed_everywhere(bench: Bench) -> None:
    """The order is that of plain pytest with the same seed; random numbers too, on both workers."""
    numbers = "import random\n" + "".join(
        f"def test_{n}(record_property): record_property('n', random.random())\n" for n in range(6)
    )
    scenario = Scenario(
        files={"test_r.py": numbers}, args=("-v", "-p", "pytest_randomly", "--randomly-seed=17")
    )
    plain = bench.plain(scenario)
    ours, two = bench.ours(scenario), bench.ours(scenario, workers=2)

    agree(plain, ours)
    assert "Using --randomly-seed=17" in ours.out
    assert (two.code, two.lines) == (plain.code, plain.lines)
    assert numbers_of(two.junit) == numbers_of(plain.junit)


def numbers_of(junit: str) -> list[str]:
    return sorted(re.findall(r'<property name="n" value="([^"]*)"', junit))


ATTACHED = {
    "conftest.py": """
import pytest
class Odd:
    def __repr__(self): return "an odd object"
@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    report.odd = Odd()
    return report
""",
    **PASS,
}


def test_b60_an_attribute_that_cannot_travel_costs_one_warning(bench: Bench) -> None:
    """Plugins attach objects to reports; under xdist that loses the test, and can end in exit code
    0.
    """
    ours = bench.ours(Scenario(files=ATTACHED))

    assert ours.code == 0
    assert "2 passed, 1 warning" in ours.counts
    assert "Odd" in ours.out
