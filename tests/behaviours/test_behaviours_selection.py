"""Selection and cache: chosen on the cluster, remembered here."""

from __future__ import annotations

from tests.behaviours.bench import Bench
from tests.behaviours.listed import scenarios
from tests.replay_rig import Scenario
from tests.replay_scenarios import MIXED_FILES, SCENARIOS


@scenarios(41)
def test_b41_every_way_to_select_selects_the_same(bench: Bench, scenario: Scenario) -> None:
    """-m, --deselect, --ignore, testpaths, node ids with `::`, `/` and `@` among their
    parameters.
    """
    assert bench.same(scenario).code in (0, 1)


def test_b41_k_with_two_workers(bench: Bench) -> None:
    """Workers are told node ids; they do not select again."""
    assert (
        "deselected"
        in bench.alike(Scenario(files=MIXED_FILES, args=("-k", "param or other or method"))).counts
    )


@scenarios(42)
def test_b42_what_a_run_remembers_leads_the_next(bench: Bench, scenario: Scenario) -> None:
    """--lf, --ff, --nf, --lfnf, --sw and its variants: the same tests in the same order, and the
    same cache files after it.
    """
    assert bench.same(scenario).cache


def test_b42_last_failed_with_two_workers(bench: Bench) -> None:
    """lastfailed does not depend on who ran what."""
    scenario = SCENARIOS["b42_last_failed"]
    plain, ours = bench.plain(scenario, "-v"), bench.ours(scenario, "-v", workers=2)

    assert (ours.code, ours.lines, ours.cache) == (plain.code, plain.lines, plain.cache)


@scenarios(43)
def test_b43_a_collection_error_that_was_mended_is_forgotten(
    bench: Bench, scenario: Scenario
) -> None:
    """Under xdist it stays in lastfailed for ever."""
    assert "test_broken.py" not in bench.same(scenario).cache.get("lastfailed", {})


@scenarios(44)
def test_b44_the_cache_is_cleared_and_shown_here(bench: Bench, scenario: Scenario) -> None:
    """--cache-clear clears this machine's cache, before the cluster is asked."""
    assert bench.same(scenario).code == 1


def test_b44_cache_show_needs_no_cluster(bench: Bench) -> None:
    """It lists local files, and ends."""
    scenario = Scenario(files=MIXED_FILES, before=((),), args=("--cache-show",))
    plain, ours = bench.plain(scenario), bench.ours(scenario, shipped=False)

    assert (ours.code, ours.out, ours.err) == (plain.code, plain.out, plain.err)
    assert "cache/lastfailed contains" in ours.out


INTERRUPTED = {
    "test_i.py": (
        "def test_a(): assert 0\ndef test_b(): raise KeyboardInterrupt\ndef test_c(): assert 0\n"
    )
}


def test_b45_an_interrupted_run_remembers_what_had_failed(bench: Bench) -> None:
    """The next --lf must not have to find it out again."""
    ours = bench.same(Scenario(files=INTERRUPTED))

    assert ours.code == 2
    assert ours.cache["lastfailed"] == {"test_i.py::test_a": True}
