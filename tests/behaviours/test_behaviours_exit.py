"""Exit codes: those of plain pytest, whatever happened where."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.behaviours.bench import Bench
from tests.behaviours.listed import scenarios
from tests.replay_rig import Scenario
from tests.replay_scenarios import PASS, SCENARIOS

LIBRARY_MISSING = "libnowhere.so.12: cannot open shared object file"


@scenarios(1)
def test_b01_all_pass_is_0_and_a_failure_is_1(bench: Bench, scenario: Scenario) -> None:
    """Every script around pytest depends on these two."""
    ours = bench.same(scenario)

    assert ours.code == (0 if scenario.files == PASS else 1)


def test_b01_the_same_with_two_workers(bench: Bench) -> None:
    """Passes, failures, errors, skips and warnings in any order add up to the same run."""
    assert bench.alike(SCENARIOS["b01_failure"]).code == 1


@scenarios(2)
def test_b02_x_stops_at_the_first_failure_with_one_banner(bench: Bench, scenario: Scenario) -> None:
    """xdist gives exit code 2, two banners and extra failures."""
    ours = bench.same(scenario)

    assert ours.code == 1
    assert ours.out.count("stopping after 1 failures") == 1
    assert "1 failed" in ours.counts


@scenarios(3)
def test_b03_maxfail_stops_at_its_number(bench: Bench, scenario: Scenario) -> None:
    """As -x, with a number."""
    ours = bench.same(scenario)

    assert (ours.code, ours.out.count("stopping after 2 failures")) == (1, 1)


@scenarios(4)
def test_b04_a_collection_error_is_2_and_no_test_runs(bench: Bench, scenario: Scenario) -> None:
    """Half a suite that passes is not a suite that passes."""
    ours = bench.same(scenario)

    assert (ours.code, "passed" in ours.out) == (2, False)


@scenarios(5)
def test_b05_continue_on_collection_errors_runs_the_rest(bench: Bench, scenario: Scenario) -> None:
    """A no-op under xdist."""
    ours = bench.same(scenario)

    assert ours.code == 1
    assert "1 failed, 1 passed, 1 error" in ours.counts


def test_b05_the_same_with_two_workers(bench: Bench) -> None:
    """The workers must not fall over the broken file either."""
    bench.alike(SCENARIOS["b05_continue_on_collection_errors"])


@scenarios(6)
def test_b06_x_and_a_collection_error_is_1(bench: Bench, scenario: Scenario) -> None:
    """The failure count was reached; but when the broken file is the last one, plain pytest says 2,
    and so it is 2.
    """
    assert bench.same(scenario).code == (2 if "test_zz.py" in scenario.files else 1)


@scenarios(7)
def test_b07_a_path_or_node_id_that_is_not_there_is_4(bench: Bench, scenario: Scenario) -> None:
    """With pytest's own words on stderr: the user mistyped, and wants to see what."""
    ours = bench.same(scenario)

    assert ours.code == 4
    assert "ERROR: " in ours.err


@scenarios(8)
def test_b08_nothing_to_run_is_5(bench: Bench, scenario: Scenario) -> None:
    """An empty selection must not look like success."""
    assert bench.same(scenario).code == 5


IN_SESSIONSTART = {
    **PASS,
    "conftest.py": "import pytest\ndef pytest_sessionstart(): pytest.exit('too early', 5)\n",
}


@scenarios(9)
def test_b09_pytest_exit_ends_the_run_with_its_code(bench: Bench, scenario: Scenario) -> None:
    """In a test, in a fixture, at import; under xdist each is an internal error."""
    ours = bench.same(scenario)

    assert ours.code == (7 if "test_exit.py" in scenario.files else 2)


def test_b09_pytest_exit_in_sessionstart(bench: Bench) -> None:
    """A conftest that refuses the machine says so there.

    Not equal: the header, which has been printed here by then.
    """
    scenario = Scenario(files=IN_SESSIONSTART)
    plain, ours = bench.plain(scenario), bench.ours(scenario)

    assert ours.code == plain.code == 5
    assert ours.out.splitlines()[-1] == plain.out.splitlines()[-1]
    assert "Exit: too early" in ours.out


@scenarios(10)
def test_b10_a_keyboard_interrupt_in_a_test_is_2_and_names_its_line(
    bench: Bench, scenario: Scenario
) -> None:
    """No failure is made up for it."""
    ours = bench.same(scenario)

    assert ours.code == 2
    assert "test_k.py:2: KeyboardInterrupt" in ours.out
    assert "1 passed in N s" in ours.counts


@scenarios(11)
def test_b11_sys_exit_in_a_test_is_a_failure(bench: Bench, scenario: Scenario) -> None:
    """SystemExit is an exception like others there."""
    assert bench.same(scenario).code == 1


def test_b11_sys_exit_at_import_is_3(bench: Bench) -> None:
    """pytest lets it through while it collects; xdist says 5, as if there were no tests."""
    scenario = Scenario(files={**PASS, "test_zz.py": "import sys\nsys.exit(9)\n"})
    plain, ours = bench.plain(scenario), bench.ours(scenario)

    assert ours.code == plain.code == 3
    assert "SystemExit: 9" in ours.out + ours.err


@scenarios(12)
def test_b12_an_internal_error_there_is_3_with_its_text_here(
    bench: Bench, scenario: Scenario
) -> None:
    """The frames of the traceback below the hook that failed are another program's; what failed,
    and where, is the same.

    Not equal to plain, and not promised: the frames between pytest's main and the user's hook.
    """
    plain, ours = bench.plain(scenario), bench.ours(scenario)

    assert ours.code == plain.code == 3
    for words in (
        "INTERNALERROR> ",
        'ROOT/conftest.py", line 2, in pytest_runtest_logreport',
        "RuntimeError: hook broke",
    ):
        assert words in plain.out + plain.err
        assert words in ours.out + ours.err
    assert ours.junit.count("<error ") == plain.junit.count("<error ") == 1
    assert "hook broke" in ours.junit


def test_b13_a_conftest_that_fails_to_import_is_4_with_its_traceback(bench: Bench) -> None:
    """It is not imported here, so its traceback has to come from there."""
    ours = bench.refused(Scenario(files={**PASS, "conftest.py": "import nowhere_at_all\n"}))

    assert "No module named 'nowhere_at_all'" in ours.err


@scenarios(14)
def test_b14_a_usage_error_of_a_remote_plugin_is_4(bench: Bench, scenario: Scenario) -> None:
    """Only the cluster knows the options of conftests, so only it can refuse them."""
    assert bench.refused(scenario).err


@scenarios(15)
def test_b15_too_many_warnings_is_6(
    bench: Bench, scenario: Scenario, pytestconfig: pytest.Config
) -> None:
    """Warnings must neither get lost nor be counted on both sides.

    A pytest without the option refuses it there as here.
    """
    if hasattr(pytestconfig.option, "max_warnings"):
        assert bench.same(scenario).code == 6
    else:
        bench.refused(scenario)


def test_b15_exactly_as_many_warnings_as_allowed_is_0(
    bench: Bench, pytestconfig: pytest.Config
) -> None:
    """One warning counted twice would show here."""
    allowed = ("--max-warnings=2",) if hasattr(pytestconfig.option, "max_warnings") else ()
    assert bench.alike(Scenario(files=SCENARIOS["b15_max_warnings"].files, args=allowed)).code == 0


def test_b17_a_remote_exit_status_that_disagrees_is_never_0(bench: Bench) -> None:
    """Two pytests that do not agree on the outcome of one run's tests: 3, and said so.

    An exit code that a hook of the user's own sets after the tests is taken, as plain pytest does.
    """
    hook = "def pytest_sessionfinish(session):\n    session.exitstatus = 9\n"
    assert bench.ours(Scenario(files={**PASS, "conftest.py": hook})).code == 9

    hidden = (
        "import pytest\n@pytest.hookimpl(wrapper=True)\ndef pytest_runtestloop(session):\n"
        "    yield\n    session.testsfailed += 1\n    return True\n"
    )
    ours = bench.ours(Scenario(files={**PASS, "conftest.py": hidden}))

    assert ours.code == 3
    assert any(
        line.startswith("gpu-cluster: ") and "exit code 1, their results give 0" in line
        for line in ours.raw.splitlines()
    ), ours.raw


SEEN = """
import os, pytest
seen = []
@pytest.fixture(scope="session", autouse=True)
def watch():
    yield
    seen.append(1)
    {teardown}
def pytest_sessionfinish(session):
    if seen:
        {finish}
"""


@pytest.mark.parametrize(
    ("teardown", "finish"),
    [
        ("pass", "session.exitstatus = 7"),
        ("pass", "pytest.exit('leaks', returncode=7)"),
        ("pass", "raise RuntimeError('leaks')"),
        ("os._exit(7)", "pass"),
    ],
    ids=["status", "exit", "raise", "death"],
)
def test_b17_what_only_the_process_of_the_tests_sees_at_its_end_is_never_0(
    bench: Bench, teardown: str, finish: str
) -> None:
    """A hook that looks for leaks sees them where the tests ran, and so does a device's driver."""
    conftest = SEEN.format(teardown=teardown, finish=finish)
    scenario = Scenario(files={**PASS, "conftest.py": conftest})

    assert bench.plain(scenario).code != 0
    ours = bench.ours(scenario)
    assert ours.code != 0
    if "exitstatus" in finish or "exit(" in finish:
        assert ours.code == 7


def test_b18_a_cluster_that_does_not_come_up_is_10_with_its_reason(
    bench: Bench, interpreter: Callable[..., str]
) -> None:
    """Not 5 and "no tests ran": nobody was asked to run any (the design's class,
    infrastructure). Nor 15, where a plugin such as syrupy adds the bits of pytest's own status.
    """
    python = interpreter(
        without=("ray",),
        write={
            "ray-2.60.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: ray\nVersion: 2.60.0\n",
            "ray/__init__.py": f"raise ImportError({LIBRARY_MISSING!r})\n",
        },
    )
    scenario = Scenario(files=PASS, args=("-p", "syrupy"))
    ours = bench.ours(scenario, GPU_CLUSTER_LOCAL_PYTHON=python)

    assert ours.code == 10
    assert LIBRARY_MISSING in ours.raw
