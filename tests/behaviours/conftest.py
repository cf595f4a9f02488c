"""The bench, on the store of this process's tests."""

from __future__ import annotations

import pytest

from tests.acceptance.conftest import interpreter, lone, shared_store  # noqa: F401 - fixtures
from tests.behaviours.bench import Bench


@pytest.fixture
def bench(tmp_path_factory: pytest.TempPathFactory, shared_store: str) -> Bench:  # noqa: F811
    """A bench on the shared store: its runs take the one warm cluster of this directory's tests, or
    start it.
    """
    return Bench(tmp_path_factory.getbasetemp() / "bench", shared_store)
