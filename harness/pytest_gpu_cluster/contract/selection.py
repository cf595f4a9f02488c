"""Nouns of a selection: its early end, its order and options, the memory of stepwise."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pytest_gpu_cluster.contract.fields import Noun
from pytest_gpu_cluster.contract.frozen import dataclass


class Distribution(StrEnum):
    """Which tests stay together in one process, in their order. The setting `distribute`."""

    AUTO = "auto"  # those that share state, as long as history does not say that it costs time
    TEST = "test"  # none
    CLASS = "class"  # those of a class
    MODULE = "module"  # those of a class, and the functions of a module: xdist's loadscope
    FILE = "file"  # those of a file: xdist's loadfile
    GROUP = "group"  # those with the same mark xdist_group: xdist's loadgroup


class Ordering(StrEnum):
    """How far the order of the collection binds the order in which tests run."""

    FREE = "free"  # on all slots, the longest first
    KEPT = "kept"  # on all slots, handed out as collected
    SERIAL = "serial"  # one at a time, as collected


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
    stepwise_limit: int = 0  # failures after which stepwise starts no further test; 0: without it
    distribution: Distribution = Distribution.AUTO
    ordering: Ordering = Ordering.FREE
    ordering_reason: str = ""  # what binds the order, for people; "" where it is free
    ordering_fixed: bool = False  # no `distribute` makes it free
    remarks: tuple[str, ...] = ()  # what plugins cannot do here, for people
    unused: tuple[str, ...] = ()  # options of pytest-xdist that have no effect here, as typed
    randomly_seed: int | str | None = None  # of pytest-randomly
    wants_reports: bool = True  # a hook of the user's own may ask for every report


@dataclass(frozen=True, kw_only=True)
class Stepwise(Noun):
    """What pytest's stepwise plugin remembers."""

    last_failed: str | None
    last_test_count: int | None
