"""The behaviours by number, and the scenarios that stand for each."""

from __future__ import annotations

import pytest

from tests.replay_scenarios import SCENARIOS

NUMBERS = range(1, 85)
# Variants in which other code of pytest, and the same of ours, is run as in another scenario of the
# number: `make test` leaves them to the night.
NIGHTLY = frozenset(
    {
        *("b19_quiet", "b19_quieter", "b21_classic", "b22_tb_short", "b22_tb_line", "b22_tb_no"),
        *("b27_no_fold_skipped", "b30_no_warnings", "b30_disable_warnings"),
        *("b34_collect_only_quiet", "b34_collect_only_quieter", "b37_config_file"),
        *("b37_plugins_missing", "b41_testpaths", "b42_failed_first", "b42_lfnf_none"),
        *("b42_stepwise_skip", "b42_stepwise_reset", "b54_legacy"),
        *("b69_setup_plan", "b69_setup_only"),
    }
)


def scenarios(number: int) -> pytest.MarkDecorator:
    """Parametrise a test with every listed scenario of its behaviour."""
    chosen = [
        pytest.param(scenario, id=name, marks=[pytest.mark.slow] if name in NIGHTLY else [])
        for name, scenario in SCENARIOS.items()
        if name.startswith(f"b{number:02}_")
    ]
    assert chosen, f"no scenario stands for behaviour {number}"
    return pytest.mark.parametrize("scenario", chosen)
