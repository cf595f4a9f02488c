"""An S3 server that can be made to fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpu_tests.s3_server import S3Server


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
