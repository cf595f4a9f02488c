"""A stand-in for pytest's JUnit writer: the client has the real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest

from pytest_gpu_cluster.contract.codec import text_of
from pytest_gpu_cluster.contract.records import XmlRecord


class XmlStub:
    """Passes on the calls of `record_xml_attribute`, `record_testsuite_property` and the like."""

    def __init__(self, config: pytest.Config, sink: Callable[[XmlRecord], None]) -> None:
        family = config.getini("junit_family")
        self.family = "xunit1" if family == "legacy" else family
        self._sink = sink
        self._nodeid = ""

    def node_reporter(self, report: object) -> XmlStub:
        """Take a report or a node id, as pytest's own does; what is added next is of this test."""
        self._nodeid = str(getattr(report, "nodeid", report))
        return self

    def add_attribute(self, name: str, value: object) -> None:
        self._add("xml_attribute", self._nodeid, name, value)

    def add_property(self, name: str, value: object) -> None:
        self._add("xml_property", self._nodeid, name, value)

    def add_global_property(self, name: str, value: object) -> None:
        __tracebackhide__ = True
        if not isinstance(name, str):
            raise TypeError(f"name parameter needs to be a string, but {type(name).__name__} given")
        self._add("xml_global", "", name, value)

    def _add(
        self,
        kind: Literal["xml_attribute", "xml_property", "xml_global"],
        nodeid: str,
        name: str,
        value: object,
    ) -> None:
        self._sink({"kind": kind, "nodeid": nodeid, "name": str(name), "value": text_of(value)})
