"""Plugins of others that decide over the exit code, or report at the end: as plain pytest has it.

Each is run plainly and replayed, on workers that are subprocesses. `make plugins` does the same
with a hundred plugins on a cluster.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.replay_rig import Outcome, Scenario, compare, run

XML = ("--junitxml=junit.xml", "-p", "no:cacheprovider")
PASS = {"test_p.py": "def test_p(): pass\n"}
FAIL = {"test_f.py": "def test_f(): assert 0\n"}
ACME = {
    "acme.py": "def half(x):\n    if x > 9:\n        return 0\n    return x / 2\n",
    "test_a.py": "import acme\ndef test_a(): assert acme.half(4) == 2\n",
}
MEASURED = {
    "test_b.py": "def test_sum(benchmark): assert benchmark(sum, [1, 2]) == 3\n"
    "def test_other(): pass\n"
    "def test_wrong(benchmark): assert benchmark(sum, [1, 2]) == 4\n",
}
SLOW_NOW = """
import time, pathlib
def test_sleep(benchmark):
    slow = pathlib.Path("slow.txt").exists()
    benchmark.pedantic(time.sleep, args=(0.1 if slow else 0.001,), rounds=2)
"""


def same_result(scenario: Scenario, home: Path) -> tuple[Outcome, Outcome]:
    """Both sides, whose exit code, JUnit and last line are equal."""
    plain, replayed = compare(scenario, home)
    assert replayed.exitcode == plain.exitcode, replayed.raw + replayed.err
    assert replayed.junit == plain.junit
    assert replayed.out.splitlines()[-1] == plain.out.splitlines()[-1]
    return plain, replayed


@pytest.mark.parametrize("configured", [False, True], ids=["option", "coveragerc"])
def test_coverage_below_its_limit_fails_the_run(configured: bool, tmp_path: Path) -> None:
    """pytest-cov fails the session here, which the cluster knows nothing of: 1, and not 3."""
    files = {**ACME, ".coveragerc": "[report]\nfail_under = 90\n"} if configured else ACME
    args = ("--cov=acme", *(() if configured else ("--cov-fail-under=90",)), *XML)
    plain, _ = same_result(Scenario(files=files, args=args), tmp_path)

    assert plain.exitcode == 1


def test_an_exit_code_of_the_users_own_hook_is_the_exit_code(tmp_path: Path) -> None:
    """Plain pytest takes it; a hook that the client does not have can only say it there."""
    conftest = "def pytest_sessionfinish(session): session.exitstatus = 9\n"
    same_result(Scenario(files={**PASS, "conftest.py": conftest}, args=XML), tmp_path)


@pytest.mark.parametrize("files", [PASS, FAIL], ids=["green", "red"])
@pytest.mark.parametrize("status", [0, 1])
def test_a_plugin_that_both_sides_have_decides_once_and_here(
    files: dict[str, str], status: int, tmp_path: Path
) -> None:
    """Such as pytest-custom-exit-code; on the cluster it may know less than here."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "deciding.py").write_text(
        f"def pytest_sessionfinish(session): session.exitstatus = {status}\n"
    )
    env = {"PYTHONPATH": f"{Path.cwd()}:{tmp_path / 'plugins'}"}
    scenario = Scenario(files=files, args=("-p", "deciding", *XML), env=env)
    plain, _ = same_result(scenario, tmp_path)

    assert plain.exitcode == status


def test_benchmarks_are_measured_there_and_shown_and_saved_here(tmp_path: Path) -> None:
    """pytest-benchmark switched itself off: "xdist is on", exit code 4, an empty table."""
    args = ("-p", "benchmark", "--benchmark-only", "--benchmark-json=out.json", *XML)
    plain, replayed = same_result(Scenario(files=MEASURED, args=args), tmp_path)

    saved = [json.loads((side.project / "out.json").read_text()) for side in (plain, replayed)]
    names = [[each["name"] for each in side["benchmarks"]] for side in saved]
    assert names[0] == names[1] == ["test_sum", "test_wrong"]
    assert "test_sum" in replayed.out
    assert "Name (time in" in replayed.out


def test_a_benchmark_that_has_become_slow_fails_the_run(tmp_path: Path) -> None:
    """It was green here: the times were in another process."""
    scenario = Scenario(
        files={"test_s.py": SLOW_NOW},
        before=(("-p", "benchmark", "--benchmark-autosave", "-p", "no:cacheprovider"),),
        change={"slow.txt": ""},
        args=("-p", "benchmark", "--benchmark-compare", "--benchmark-compare-fail=min:50%", *XML),
    )
    plain, replayed = compare(scenario, tmp_path)

    assert plain.exitcode == replayed.exitcode == 1
    assert "Performance has regressed" in replayed.out + replayed.err
    assert replayed.junit == plain.junit


def test_our_plugin_may_be_named_and_a_plugin_may_be_a_module_that_is_imported_already(
    tmp_path: Path,
) -> None:
    """With PYTEST_DISABLE_PLUGIN_AUTOLOAD everything is named, ours and modules such as `rich`."""
    ini = "[pytest]\naddopts = -p pytest_gpu_cluster.plugin -p asyncio\nfilterwarnings = error\n"
    scenario = Scenario(files={**PASS, "pytest.ini": ini}, args=XML)
    same_result(scenario, tmp_path / "addopts")

    named = replace(scenario, files=PASS, args=("-p", "pytest_gpu_cluster.plugin", *XML))
    assert run(named, tmp_path / "typed", replayed=True).exitcode == 0


LATE = """
import pytest
@pytest.fixture(scope="module")
def engine():
    yield
    raise RuntimeError("closing failed")
def test_first(engine): pass
def test_last(engine): {last}
"""


@pytest.mark.parametrize("last", ["pass", "assert 0", "pytest.skip('no')"])
def test_an_error_of_a_late_teardown_is_in_the_case_of_its_test(last: str, tmp_path: Path) -> None:
    """The next test is not known when a test ends, so its module's fixtures end later."""
    files = {"test_a.py": LATE.format(last=last), "test_b.py": "def test_b(): pass\n"}
    plain, _ = same_result(Scenario(files=files, args=XML), tmp_path)

    assert plain.junit.count("closing failed") >= 1


REPORTING = """
class Measured:
    def __init__(self): self.ran = []
    def pytest_runtest_teardown(self, item): self.ran.append(item.name)
    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("MEASURED")
        terminalreporter.write_line(f"measured: {self.ran}")
def pytest_configure(config): config.pluginmanager.register(Measured(), "measured")
"""


def test_a_report_on_the_process_of_the_tests_is_that_process_own(tmp_path: Path) -> None:
    """pytest-memray's, for one: the copy of the plugin here has measured nothing."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "pytest_profiling.py").write_text(REPORTING)
    env = {"PYTHONPATH": f"{Path.cwd()}:{tmp_path / 'plugins'}"}
    scenario = Scenario(files=PASS, args=("-p", "pytest_profiling", *XML), env=env)
    plain, replayed = same_result(scenario, tmp_path)

    assert "measured: ['test_p']" in plain.out
    assert replayed.out == plain.out


SUBTESTS = """
def test_a(subtests):
    with subtests.test("one"): assert 0
    with subtests.test("two"): pass
def test_b(): assert 0
def test_c(): assert 0
"""


@pytest.mark.parametrize(
    "args", [("--maxfail=2", "-v"), ("-p", "no:terminal"), ()], ids=["maxfail", "mute", "all"]
)
@pytest.mark.skipif(not hasattr(pytest, "Subtests"), reason="subtests came to pytest with 9.0")
def test_a_test_with_failed_subtests_counts_as_in_plain_pytest(
    args: tuple[str, ...], tmp_path: Path
) -> None:
    """pytest counts it before its reporter makes a failure of it: `--maxfail` came too early."""
    plain, replayed = compare(Scenario(files={"test_s.py": SUBTESTS}, args=args + XML), tmp_path)

    for part in ("exitcode", "junit", "out"):
        assert getattr(replayed, part) == getattr(plain, part), part


def test_a_report_file_beside_the_project_does_not_hide_its_settings(tmp_path: Path) -> None:
    """The client has made it when the cluster starts; pytest looks for settings beside files."""
    log = tmp_path / "report log.jsonl"
    scenario = Scenario(
        files={**PASS, **FAIL, "pytest.ini": "[pytest]\naddopts = -k test_p\n"},
        args=("--report-log", str(log), *XML),
    )
    outcomes = []
    for replayed in (False, True):
        log.unlink(missing_ok=True)
        outcomes.append(run(scenario, tmp_path / str(replayed), replayed=replayed))

    assert [each.exitcode for each in outcomes] == [0, 0], outcomes[1].raw
    assert outcomes[0].junit == outcomes[1].junit


LEAKS = """
import pytest
leaks = []
@pytest.fixture(autouse=True)
def watch(request):
    yield
    leaks.append(request.node.name)
def pytest_sessionfinish(session):
    if leaks:
        session.exitstatus = 7
"""


def test_what_a_hook_saw_in_the_process_of_the_tests_fails_the_run(tmp_path: Path) -> None:
    """A conftest that looks for leaks has seen them where the tests ran, and nowhere else."""
    plain, _ = same_result(Scenario(files={**PASS, "conftest.py": LEAKS}, args=XML), tmp_path)

    assert plain.exitcode == 7


REPLACING = """
import pytest
from _pytest.terminal import TerminalReporter
class Other(TerminalReporter): pass
@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    manager = config.pluginmanager
    manager.unregister(manager.getplugin("terminalreporter"))
    manager.register(Other(config), "terminalreporter")
"""


def test_a_reporter_of_a_plugin_is_as_mute_on_the_cluster_as_pytests_own(tmp_path: Path) -> None:
    """With pytest-instafail its `no tests ran` stood in the middle of the output."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "replacing.py").write_text(REPLACING)
    env = {"PYTHONPATH": f"{Path.cwd()}:{tmp_path / 'plugins'}"}
    scenario = Scenario(files={**PASS, **FAIL}, args=("-p", "replacing", *XML), env=env)
    plain, replayed = same_result(scenario, tmp_path)

    assert replayed.out == plain.out
