"""A store of each kind, and an S3 server that can be made to fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_tests.s3_server import S3Server
from pytest_gpu_cluster.contract.store import Store
from tests.s3_stores import open_s3


@pytest.fixture(scope="module")
def running_s3() -> Iterator[S3Server]:
    with S3Server() as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture
def s3(running_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The S3 server, healthy, and this process's environment as a client's of it."""
    for name, value in running_s3.env.items():
        monkeypatch.setenv(name, value)
    yield running_s3
    running_s3.heal()


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "file":
        return Store.open("store", base=tmp_path)
    request.getfixturevalue("s3")
    return open_s3(tmp_path.name)
