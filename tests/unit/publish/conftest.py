"""Fake hosts for the tests of publishing, on a network without proxies."""

from __future__ import annotations

import pytest

from tests.hosts.fixtures import bitbucket, github, gitlab

__all__ = ["bitbucket", "github", "gitlab"]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the machine that these tests run on is none of theirs."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
