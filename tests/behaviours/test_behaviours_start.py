"""Trees of collection, the ways to start a run, and output that is hard to print."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.behaviours.bench import Bench
from tests.behaviours.listed import scenarios
from tests.replay_rig import Scenario, write
from tests.replay_scenarios import MIXED_FILES, SCENARIOS

MANY = dict.fromkeys(
    ("test_a.py", "test_b.py", "test_c.py", "test_d.py"),
    (
        "import time, pytest\n"
        "@pytest.mark.parametrize('n', range(5))\n"
        "def test_it(n):\n"
        "    time.sleep(0.05)\n"
        "    assert n != 3\n"
    ),
)


@scenarios(34)
def test_b34_collect_only_prints_the_tree_of_the_cluster(bench: Bench, scenario: Scenario) -> None:
    """The tree, its root's name and the docstrings come from modules that are not imported here."""
    assert bench.same(scenario).code == 0


@scenarios(35)
def test_b35_header_summary_and_terminal_can_be_left_out(bench: Bench, scenario: Scenario) -> None:
    """--no-header, --no-summary; -p no:terminal prints nothing at all.

    Before 9.1 pytest cannot explain an assertion without its reporter, which a worker always has:
    there JUnit says more than plain's.
    """
    silent = "no:terminal" in scenario.args
    if silent and pytest.version_tuple < (9, 1):
        plain, ours = bench.plain(scenario), bench.ours(scenario)
        assert (ours.code, ours.err, ours.cache) == (plain.code, plain.err, plain.cache)
    else:
        ours = bench.same(scenario)

    assert silent == (ours.out == "")


def test_b36_with_two_workers_each_test_has_one_status_line(bench: Bench) -> None:
    """Nothing started twice, nothing printed between; the counts add up, and both workers really
    ran tests.
    """
    ours = bench.alike(Scenario(files=MANY))
    workers = {event["worker"] for event in bench.events(ours) if event["kind"] == "test_finished"}

    assert len(workers) == 2
    assert len(ours.statuses) == len(set(ours.statuses)) == 20
    assert sorted(ours.statuses) == sorted(
        f"test_{name}.py::test_it[{n}] {'FAILED' if n == 3 else 'PASSED'}"
        for name in "abcd"
        for n in range(5)
    )
    assert "4 failed, 16 passed" in ours.counts


@scenarios(37)
def test_b37_pytest_may_be_started_from_anywhere(bench: Bench, scenario: Scenario) -> None:
    """A subdirectory, -c, --rootdir, --pyargs; and what is imported, or is missing, by way of
    it.
    """
    assert bench.same(scenario).code in (0, 1)


def test_b37_absolute_paths_lead_into_the_shipped_tree(bench: Bench) -> None:
    """The path that was typed does not exist on the cluster, and here no longer either."""
    scenario = Scenario(
        files=MIXED_FILES,
        args=(str(bench.project / "sub" / "test_other.py"), f"--rootdir={bench.project}"),
    )

    assert "1 failed, 1 passed" in bench.same(scenario).counts


INSTALLED = {
    "__init__.py": "",
    "conftest.py": "import pytest\n"
    "\n"
    "@pytest.fixture\n"
    "def one(): return 1\n"
    "\n"
    "def pytest_configure(config):\n"
    "    config.addinivalue_line('markers', 'small: registered by the package itself')\n",
    "test_a.py": (
        "import pytest\n"
        "\n"
        "@pytest.mark.small\n"
        "def test_it(one): assert one == 1\n"
        "def test_ko(one): assert one == 2\n"
    ),
    "test_b.py": "def test_it(one): print('of b'); assert one == 3\n",
    "sub/__init__.py": "",
    "sub/test_a.py": "def test_it(one): pass\n",
}


@pytest.mark.parametrize(
    ("args", "counts"),
    [
        (("installed",), "2 failed, 2 passed"),
        (("installed", "-m", "small"), "1 passed, 3 deselected"),
        (("installed.test_a", "installed.test_b"), "2 failed, 1 passed"),
        (("installed.sub", "test_a.py"), "1 failed, 1 passed"),
        (("installed.test_b::test_it",), "1 failed"),
    ],
)
def test_b37_an_installed_package_is_run_where_it_is(
    bench: Bench, args: tuple[str, ...], counts: str
) -> None:
    """Its node ids count from the argument, so that they name a file of the project, or none, or
    several files at once.
    """
    site = bench.beside("site")
    write(site / "installed", INSTALLED)
    scenario = Scenario(
        files={
            "pytest.ini": f"[pytest]\npythonpath = {site}\n",
            "test_a.py": "def test_it(): assert 0, 'of the project'\n",
        },
        args=("--strict-markers", "-v", "--tb=line", "--pyargs", *args),
    )

    assert counts in bench.same(scenario).counts


@scenarios(38)
def test_b38_subtests_are_counted_and_named_as_plain_does(bench: Bench, scenario: Scenario) -> None:
    """Their values are shown without a second pair of quotes; a test that contains a failed one has
    failed.

    --tb=short, because the long one shows the address of the fixture's object.
    """
    ours = bench.same(replace(scenario, args=(*scenario.args, "--tb=short")))

    assert "(i=1" in ours.out
    assert "k=\"'abc'\"" not in ours.out


def test_b38_the_same_with_two_workers(bench: Bench) -> None:
    """Subtests of one test stay together."""
    bench.alike(Scenario(files=SCENARIOS["b38_subtests"].files, args=("--tb=short",)))


@scenarios(39)
def test_b39_output_may_hold_anything(bench: Bench, scenario: Scenario) -> None:
    """NUL, escape codes, a lone surrogate, bytes that are no text, 10 kB of it."""
    assert bench.same(scenario).code == 1


@scenarios(40)
def test_b40_one_node_id_twice_is_two_tests(bench: Bench, scenario: Scenario) -> None:
    """--keep-duplicates."""
    assert "4 passed" in bench.same(scenario).counts


def test_b40_the_same_with_two_workers(bench: Bench) -> None:
    """Each of the two may run elsewhere; each is reported once."""
    plain, ours = (
        bench.plain(SCENARIOS["b40_keep_duplicates"]),
        bench.ours(SCENARIOS["b40_keep_duplicates"], workers=2),
    )

    assert (ours.code, ours.lines, ours.junit) == (plain.code, plain.lines, plain.junit)
