"""One world for a run of the rigs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.rigs.world import REQUIRED, World, missing, new_world

MEMORY_BYTES = 3 << 30  # of the second machine


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """A world; skipped with the reason where there can be none, but never in our own CI."""
    if reason := missing():
        if os.environ.get(REQUIRED) == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    with new_world(memory_bytes=MEMORY_BYTES) as made:
        yield made
