"""The words that events are built of: as a whole string one of them is never masked."""

from __future__ import annotations

import functools
import importlib
from dataclasses import fields, is_dataclass
from enum import StrEnum

from pytest_gpu_cluster.contract.fields import Noun

# The modules whose nouns, rows and enums an event is made of.
_MODULES = ("events", "records", "request", "selection", "failures", "gpus")
# Those of pytest's own serialised reports, and the values of keys that code reads.
_REPORT_TEXT = """
$t $d $repr TestReport CollectReport SubtestReport SubTestReport ReprEntry
ReprEntryNative reprcrash reprtraceback reprentries reprfuncargs reprlocals reprfileloc
chain extraline style type data lines args path lineno message long short line native
value auto passed failed skipped error rerun xfailed xpassed setup call teardown config
collect runtest report logstart logfinish warning output log_file xml_attribute
xml_property xml_global plugin head main interrupted
"""
_OF_REPORTS = frozenset(_REPORT_TEXT.split())


@functools.cache
def event_words() -> frozenset[str]:
    """Return the keys of all nouns and rows, the values of enums, and pytest's own words."""
    words = set(_OF_REPORTS)
    for name in _MODULES:
        module = importlib.import_module(f"pytest_gpu_cluster.contract.{name}")
        for each in vars(module).values():
            if isinstance(each, type):
                words |= _words_of(each)
    return frozenset(words)


def _words_of(each: type) -> set[str]:
    if issubclass(each, StrEnum):
        return {str(member) for member in each}
    if is_dataclass(each) and issubclass(each, Noun):
        return {key.metadata.get("key", key.name) for key in fields(each)}
    return set(each.__annotations__) if "__total__" in vars(each) else set()  # a TypedDict
