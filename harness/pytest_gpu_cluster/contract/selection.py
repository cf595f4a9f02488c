"""Nouns of a selection: its early end, the options that hold for it, the memory of stepwise."""

from __future__ import annotations

from typing import Literal

from pytest_gpu_cluster.contract.fields import Noun
from pytest_gpu_cluster.contract.frozen import dataclass


@dataclass(frozen=True, kw_only=True)
class Raised(Noun):
    """What ended a collection before its end."""

    kind: Literal["failed", "interrupted"]  # which of pytest's two exceptions
    text: str


@dataclass(frozen=True, kw_only=True)
class SelectionOptions(Noun):
    """Options of the remote pytest that agent or client act on."""

    maxfail: int = 0  # 0: none
    capture: str = "fd"  # pytest's --capture
    stepwise: bool = False
    randomly_seed: int | str | None = None  # of pytest-randomly
    wants_reports: bool = True  # a hook of the user's own may ask for every report


@dataclass(frozen=True, kw_only=True)
class Stepwise(Noun):
    """What pytest's stepwise plugin remembers."""

    last_failed: str | None
    last_test_count: int | None
