"""The parts of `make bench` that decide what is shown: arithmetic, stamps, file and table."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks.bench import (
    BEGIN,
    END,
    environment,
    line,
    load,
    number,
    ordered,
    save,
    table,
    with_table,
)
from tests.benchmarks.charts import draw_plugin
from tests.benchmarks.drive import Run, Stamps, free_ports
from tests.benchmarks.drive import test_properties as read_properties  # not a test
from tests.benchmarks.figures import (
    FIGURES,
    HEAVY_SUM_S,
    HEAVY_TESTS,
    SLOTS,
    WORDS,
    Row,
    heavy_durations,
    lags,
    lower_bound_s,
    makespan_s,
    row,
)

KEPT = Row(
    name="tree_unchanged_s",
    value=0.25,
    unit="s",
    budget=0.5,
    samples=(0.2, 0.25, 0.4),
    note="5,000 files",
)
MISSED = Row(
    name="plugin_import_ms", value=12.0, unit="ms", budget=10.0, baseline=3.0, samples=(12.0,)
)

JUNIT = """<testsuites><testsuite>
<testcase classname="test_x" name="test_it[0]"><properties>
<property name="began" value="10.0"/><property name="ended" value="11.0"/></properties></testcase>
<testcase classname="test_x" name="test_it[1]"><properties>
<property name="began" value="10.5"/><property name="ended" value="14.0"/></properties></testcase>
</testsuite></testsuites>"""


def test_a_result_is_seen_when_its_word_arrives() -> None:
    """pytest -v ends a line only when the next test begins: that test's seconds are not ours."""
    stamps = Stamps()

    stamps.feed("collected 2 items\n\ntest_x.py::test_a ", 1.0)
    stamps.feed("PASSED", 2.0)
    stamps.feed("   [ 50%]\ntest_x.py::test_b[x y] PASSED [100%]\n", 3.0)

    assert stamps.seen == {"test_x.py::test_a": 2.0, "test_x.py::test_b[x y]": 3.0}


def test_lag_and_makespan_come_from_the_tests_own_clocks(tmp_path: Path) -> None:
    """Start-up is measured elsewhere; here it would hide what scheduling and streaming cost."""
    junit = tmp_path / "j.xml"
    junit.write_text(JUNIT)
    seen = {"test_x.py::test_it[0]": 11.2, "test_x.py::test_it[1]": 14.5}
    run = Run(began=9.0, wall_s=6.0, seen=seen, peak_mib=1.0, agent_peak_mib=0.0)

    assert read_properties(junit)["test_it[0]"] == {"began": "10.0", "ended": "11.0"}
    assert lags(run, junit) == pytest.approx([0.2, 0.5])
    assert makespan_s(junit) == pytest.approx(4.0)
    assert run.first_s == pytest.approx(2.2)


def test_the_heavy_suite_is_the_same_every_time() -> None:
    """Another suite would be another bound; and its longest test must not be the bound, or any
    schedule would do.
    """
    durations = heavy_durations()

    assert durations == heavy_durations()
    assert len(durations) == HEAVY_TESTS
    assert sum(durations) == pytest.approx(HEAVY_SUM_S)
    assert max(durations) > 5 * statistics.median(durations)
    assert lower_bound_s(durations, SLOTS) == pytest.approx(HEAVY_SUM_S / SLOTS, rel=0.15)


def test_the_bound_is_the_longest_test_or_the_mean_load() -> None:
    """No schedule can beat either."""
    assert lower_bound_s([5.0, 1.0, 1.0], 2) == 5.0
    assert lower_bound_s([2.0, 2.0, 2.0, 2.0], 2) == 4.0


def test_a_row_is_the_median_with_its_budget() -> None:
    """One slow round on a shared machine must not decide."""
    found = row("tree_unchanged_s", "s", [0.4, 0.1, 9.0], baseline=[1.0, 3.0])

    assert (found.value, found.budget, found.baseline, found.missed) == (0.4, 0.5, 2.0, False)
    assert replace(found, value=0.51).missed
    assert not row("event_bytes_per_test", "B", [1e9]).missed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.01234, "0.0123"),
        (1.0, "1"),
        (4.567, "4.57"),
        (789.4, "789"),
        (12345.6, "12346"),
        (0.0, "0"),
    ],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    """More digits than a noisy machine gives would be a claim."""
    assert number(value) == text


def test_the_file_holds_every_row(tmp_path: Path) -> None:
    """Later runs with --only keep the others as they are."""
    rows = {r.name: r for r in (KEPT, MISSED)}
    save(tmp_path / "bench.json", rows)

    assert load(tmp_path / "bench.json") == rows
    assert load(tmp_path / "none.json") == {}


def test_rows_have_one_order_and_none_is_left_of_a_figure_that_is_gone() -> None:
    """A diff of bench.json shows what changed and nothing else."""
    ci = replace(KEPT, name="tree_unchanged_s_ci")
    gone = replace(KEPT, name="gone")

    assert list(ordered({r.name: r for r in (gone, ci, MISSED, KEPT)})) == [
        KEPT.name,
        MISSED.name,
        ci.name,
    ]


def test_the_table_shows_a_missed_budget() -> None:
    """A red row stays in the README."""
    rows = {
        r.name: r for r in (KEPT, MISSED, replace(MISSED, name="plugin_import_ms_ci", value=9.0))
    }

    assert table(rows).splitlines()[2:] == [
        "| sending an unchanged tree | `tree_unchanged_s` | 0.25 s | – | 0.5 | – | 5,000 files |",
        f"| {WORDS['plugin_import_ms']} | `plugin_import_ms` | **12** ms | 9 | 10 | 3 |  |",
    ]
    assert "MISSED" in line(MISSED)
    assert "MISSED" not in line(KEPT)


def test_the_picture_of_the_plugin_says_what_is_better(tmp_path: Path) -> None:
    """A ratio is drawn as the seconds that it was made of; what was not measured is left out."""
    measured = Row(name="trivial_1000_vs_xdist", value=0.5, unit="ratio", baseline=3.0, samples=())

    draw_plugin({measured.name: measured}, tmp_path)

    drawn = (tmp_path / "plugin.svg").read_text().replace("&#160;", " ")
    for words in ("Seconds for 1,000 trivial tests (lower is better)", "pytest-xdist -n 2", "1.5"):
        assert words in drawn
    assert "torch" not in drawn


def test_the_table_goes_between_its_markers() -> None:
    """Twice writes the same, and the rest of the README is not touched."""
    readme = f"# a\n{BEGIN}\nold\n{END}\nend\n"

    once = with_table(readme, "new")
    assert once == f"# a\n{BEGIN}\nnew\n{END}\nend\n"
    assert with_table(once, "new") == once
    with pytest.raises(ValueError, match="bench:begin"):
        with_table("# a", "new")


def test_measured_processes_see_no_settings_of_ours() -> None:
    """A variable of the shell that runs the benchmark would change what is measured."""
    outer = {
        "PATH": "/bin",
        "CI": "1",
        "PYTEST_ADDOPTS": "-x",
        "GPU_CLUSTER_STORE": "s3://x",
        "AWS_PROFILE": "me",
    }

    assert environment(outer, ci=False) == {"PATH": "/bin"}
    assert environment(outer, ci=True) == {
        "PATH": "/bin",
        "CI": "true",
        "GPU_CLUSTER_IDLE_MINUTES": "5",
    }


def test_every_figure_has_one_name() -> None:
    """--only finds it, and no two overwrite each other."""
    names = [name for gives in FIGURES.values() for name in gives]

    assert len(names) == len(set(names))
    assert set(WORDS) == set(names)


def test_ports_are_all_different() -> None:
    """Ray refuses two of its services on one port."""
    assert len(set(free_ports(5))) == 5
