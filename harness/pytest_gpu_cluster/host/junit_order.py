"""pytest's JUnit writer: what tests record for it, and its cases in the order of the collection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

import pytest
from _pytest.junitxml import xml_key

from pytest_gpu_cluster.contract.records import XmlRecord


class JUnitOrder:
    """The local writer of --junitxml; without the option nothing happens."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._rank: dict[int, int] = {}  # of a case, by its id

    @property
    def writer(self) -> Any:
        """pytest's LogXML, which has no public type; None without --junitxml."""
        return self._config.stash.get(xml_key, None)

    def _cases(self) -> Sequence[Any]:
        cases: Sequence[Any] = getattr(self.writer, "node_reporters_ordered", ())
        return cases

    def collected(self) -> None:
        """What is there by now comes from collecting, and stays in front."""
        for case in self._cases():
            self._rank[id(case)] = -1

    def count(self) -> int:
        return len(self._cases())

    def place_since(self, before: int, rank: int) -> None:
        """Give the cases after the first `before` ones their place in the collection."""
        for case in self._cases()[before:]:
            self._rank[id(case)] = rank

    def join_since(self, before: int) -> None:
        """Make one case of a test and an error of its teardown that came after its end.

        pytest has two of a test that failed before, and one of any other.
        """
        for late in [*self._cases()[before:]]:
            case = late.to_xml()
            earlier = self._last_case(before, case)
            if earlier is None:
                continue
            rank = self._rank.get(id(earlier))
            if earlier.to_xml().find("failure") is not None:
                self._rank[id(late)] = -1 if rank is None else rank
                self.writer.cnt_double_fail_tests += 1
                continue
            earlier.to_xml().extend(case)
            self.writer.node_reporters_ordered.remove(late)

    def _last_case(self, before: int, case: Element) -> Any:
        """Return the last of the first cases that is of the same test; None where there is none."""
        names = [case.get(key) for key in ("classname", "name")]
        for earlier in reversed(self._cases()[:before]):
            if [earlier.to_xml().get(key) for key in ("classname", "name")] == names:
                return earlier
        return None

    def sort(self, last: int) -> None:
        """Order the cases as the tests were collected; `last` is the rank of what was not."""
        if self.writer is not None:
            self.writer.node_reporters_ordered.sort(key=lambda case: self._rank.get(id(case), last))

    def record(self, record: XmlRecord, value: str, *, several: bool) -> None:
        """Add a property or an attribute.

        `several` processes may record one property of the suite.
        """
        writer, name = self.writer, record["name"]
        if writer is None:
            return
        if record["kind"] == "xml_global":
            if not several or not any(key == name for key, _ in writer.global_properties):
                writer.add_global_property(name, value)
        elif record["kind"] == "xml_attribute":
            writer.node_reporter(record["nodeid"]).add_attribute(name, value)
        else:
            writer.node_reporter(record["nodeid"]).add_property(name, value)
