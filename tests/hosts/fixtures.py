"""Fixtures: each fake host, running until the test ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hosts import FakeBitbucket, FakeGitHub, FakeGitLab


@pytest.fixture
def bitbucket() -> Iterator[FakeBitbucket]:
    with FakeBitbucket() as host:
        yield host


@pytest.fixture
def github() -> Iterator[FakeGitHub]:
    with FakeGitHub() as host:
        yield host


@pytest.fixture
def gitlab() -> Iterator[FakeGitLab]:
    with FakeGitLab() as host:
        yield host
