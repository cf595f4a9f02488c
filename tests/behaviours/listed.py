"""The behaviours by number, and the scenarios that stand for each."""

from __future__ import annotations

import pytest

from tests.replay_scenarios import SCENARIOS

NUMBERS = range(1, 80)


def scenarios(number: int) -> pytest.MarkDecorator:
    """Parametrise a test with every listed scenario of its behaviour."""
    chosen = [
        pytest.param(scenario, id=name)
        for name, scenario in SCENARIOS.items()
        if name.startswith(f"b{number:02}_")
    ]
    assert chosen, f"no scenario stands for behaviour {number}"
    return pytest.mark.parametrize("scenario", chosen)
