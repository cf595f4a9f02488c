"""pytest's objects as plain JSON: reports with their status, warnings, nodes, exceptions."""

from __future__ import annotations

import inspect
import io
import linecache
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from _pytest._io import TerminalWriter
from _pytest.reports import BaseReport

from pytest_gpu_cluster.contract.codec import text_of, to_wire


def report_data(config: pytest.Config, report: Any, lossy: list[str]) -> Any:
    """A report as pytest's own serialiser has it, made plain; never raises, never loses the outcome."""
    longrepr = report.longrepr
    try:
        data = config.hook.pytest_report_to_serializable(config=config, report=report)
        properties = (
            {"user_properties": to_wire(data.pop("user_properties"))}
            if "user_properties" in data
            else {}
        )
        plain = to_wire(data, lossy) | properties  # reporters make text of properties in any case
    except Exception as problem:
        lossy.append(f"{type(report).__qualname__} ({type(problem).__name__}: {text_of(problem)})")
        plain = _bare(report)
    if hasattr(longrepr, "toterminal") and not (
        hasattr(longrepr, "reprtraceback") and hasattr(longrepr, "reprcrash")
    ):
        plain["longrepr"] = {
            "$repr": [rendered(longrepr, markup=False), rendered(longrepr, markup=True)]
        }
    return plain


def _bare(report: BaseReport) -> dict[str, Any]:
    """What every report has, for one that pytest's serialiser refuses."""
    names = ("nodeid", "location", "outcome", "when", "sections", "duration", "start", "stop")
    kind = "CollectReport" if isinstance(report, pytest.CollectReport) else "TestReport"
    plain = {name: to_wire(getattr(report, name)) for name in names if hasattr(report, name)}
    longrepr = None if report.longrepr is None else text_of(report.longrepr)
    extra: dict[str, Any] = (
        {"result": None} if kind == "CollectReport" else {"keywords": {}, "user_properties": []}
    )
    return {"$report_type": kind, **plain, "longrepr": longrepr, **extra}


def rendered(longrepr: Any, *, markup: bool) -> str:
    """What a representation writes to a terminal, with or without colours."""
    file = io.StringIO()
    writer = TerminalWriter(file)
    writer.hasmarkup = markup
    try:
        longrepr.toterminal(writer)
    except Exception as problem:
        return f"<unprintable failure: {type(problem).__name__}: {text_of(problem)}>\n"
    return file.getvalue()


def warning_record(
    message: warnings.WarningMessage, when: str, nodeid: str, location: Any
) -> dict[str, Any]:
    """A warning with its category by name and its source line, so that nothing has to be imported to show it."""
    category = message.category
    line = (
        message.line
        if message.line is not None
        else linecache.getline(message.filename, message.lineno)
    )
    return {
        "kind": "warning",
        "category": category.__name__,
        "module": category.__module__,
        "text": text_of(message.message),
        "filename": message.filename,
        "lineno": message.lineno,
        "line": line,
        "source": message.source is not None,
        "when": when,
        "nodeid": str(nodeid),
        "location": to_wire(location),
    }


def exception_repr(config: pytest.Config, excinfo: pytest.ExceptionInfo[BaseException]) -> Any:
    """`excinfo.getrepr(funcargs=True)` as a report would carry it."""
    carrier = pytest.TestReport(
        "", ("", 0, ""), {}, "failed", excinfo.getrepr(funcargs=True), "call"
    )
    return report_data(config, carrier, [])["longrepr"]


class Nodes:
    """The collection tree as a table: each collector once, each item a row that names its parent."""

    def __init__(self, config: pytest.Config, arguments: Mapping[Path, str]) -> None:
        self._root, self._arguments = (
            config.rootpath,
            arguments,
        )  # those that lead out of the tree, by where
        self._numbers: dict[pytest.Collector, int] = {}
        self.collectors: list[dict[str, Any]] = []
        self._tree = bool(config.option.collectonly)
        self._docs = self._tree and config.get_verbosity(pytest.Config.VERBOSITY_TEST_CASES) > 0

    def item(self, item: pytest.Item) -> dict[str, Any]:
        marks = {
            mark.name: mark
            for mark in item.iter_markers()
            if mark.name in ("gpu", "ray", "xdist_group")
        }
        closest = {name: item.get_closest_marker(name) for name in marks}
        needs = {name: _arguments(mark) for name, mark in closest.items() if mark is not None}
        return {
            **self._row(item),
            "location": list(item.location),
            "outside": self._outside(item),
            "gpu": None,
            "ray": None,
            **needs,
        }

    def _outside(self, item: pytest.Item) -> list[str] | None:
        """For a test outside the tree the argument that led there, from which its node id counts, and its file."""
        if not self._arguments or item.path.is_relative_to(self._root):
            return None
        above = (path for path in (item.path, *item.path.parents) if path in self._arguments)
        return next(([self._arguments[path], str(item.path)] for path in above), None)

    def _row(self, node: Any) -> dict[str, Any]:
        row = {"nodeid": node.nodeid, "name": node.name, "parent": self._number(node.parent)}
        if self._tree:
            row["repr"] = text_of(node)
        if self._docs and getattr(node, "obj", None):
            row["doc"] = inspect.getdoc(node.obj)
        return row

    def _number(self, node: Any) -> int:
        """The row of a collector; -1 for the session."""
        if node is None or isinstance(node, pytest.Session):
            return -1
        if node not in self._numbers:
            row = self._row(node)
            self._numbers[node] = len(self.collectors)
            self.collectors.append(row)
        return self._numbers[node]


GPU_ARGUMENTS = {"gpu": ("count", "memory_gib"), "ray": ("gpus", "nodes"), "xdist_group": ("name",)}


def _arguments(mark: pytest.Mark) -> dict[str, Any]:
    """A mark's arguments by name, positional ones too."""
    named: dict[str, Any] = dict(zip(GPU_ARGUMENTS[mark.name], mark.args, strict=False)) | dict(
        mark.kwargs
    )
    return {name: to_wire(value) for name, value in named.items()}


def plugin_parts(
    calls: list[tuple[str, Any]], lines_of: Callable[[Any], list[str]]
) -> list[dict[str, Any]]:
    """What plugins answered, each with the plugin's name, so that the client leaves out those that it runs itself."""
    return [{"plugin": name, "lines": lines_of(answer)} for name, answer in calls if answer]
