"""A store of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpu_cluster.contract.store import Store
from tests.s3_stores import open_s3


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "file":
        return Store.open("store", base=tmp_path)
    request.getfixturevalue("s3")
    return open_s3(tmp_path.name)
