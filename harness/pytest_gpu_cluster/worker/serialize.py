"""pytest's objects as plain JSON: reports, warnings, the collection, exceptions."""

from __future__ import annotations

import inspect
import io
import linecache
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias, cast

import pytest
from _pytest._code.code import TerminalRepr
from _pytest._io import TerminalWriter
from _pytest.nodes import Node

from pytest_gpu_cluster.contract.codec import text_of, to_wire
from pytest_gpu_cluster.contract.fields import JsonObject, JsonValue
from pytest_gpu_cluster.contract.records import (
    CollectorRow,
    ItemRow,
    LogFileRecord,
    PluginLines,
    ReportData,
    WarningRecord,
)
from pytest_gpu_cluster.worker.hooks import Answer

Report: TypeAlias = pytest.TestReport | pytest.CollectReport
ScopeRow: TypeAlias = Callable[[pytest.Item], Mapping[str, str | bool]]
# Attributes that every report has.
BARE_ATTRIBUTES = (
    *("nodeid", "location", "outcome", "when"),
    *("sections", "duration", "start", "stop"),
)


class LossyTypes:
    """Types of objects that could only be reported as text: a warning for each, once a session."""

    def __init__(self) -> None:
        self.names: list[str] = []  # since the last warnings
        self._reported: set[str] = set()

    def warnings(self, nodeid: str) -> Iterator[WarningRecord]:
        """Yield the warnings that are due, as those of one test or file."""
        for name in dict.fromkeys(self.names):
            if name not in self._reported:
                self._reported.add(name)
                text = f"a report holds an object of type {name}, which reaches reporters as text"
                message = warnings.WarningMessage(
                    pytest.PytestWarning(text), pytest.PytestWarning, __file__, 1, line=""
                )
                yield warning_record(message, "runtest", nodeid, None)
        self.names.clear()


class LogFile:
    """The user's --log-file, in the directory of this process."""

    def __init__(self, scratch: str) -> None:
        self._path = Path(scratch, "log-file")
        self._position = 0

    def new_records(self) -> list[LogFileRecord]:
        """Return a record of what was written since the last time, if anything was."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
            self._position = file.tell()
        return [{"kind": "log_file", "text": data.decode("utf-8", "replace")}] if data else []


def report_data(config: pytest.Config, report: Report, lossy: list[str]) -> ReportData:
    """Return a report as pytest's own serialiser has it, made plain.

    Never raises and never loses the outcome. Names of types that became text are added to `lossy`.
    """
    longrepr = report.longrepr
    try:
        data = config.hook.pytest_report_to_serializable(config=config, report=report)
        # Reporters make text of properties in any case: no warning about those.
        properties = (
            {"user_properties": to_wire(data.pop("user_properties"))}
            if "user_properties" in data
            else {}
        )
        plain = cast(ReportData, cast(JsonObject, to_wire(data, lossy)) | properties)
    except Exception as problem:  # noqa: BLE001 - objects of plugins may raise anything
        lossy.append(f"{type(report).__qualname__} ({type(problem).__name__}: {text_of(problem)})")
        plain = _bare(report)
    if hasattr(longrepr, "toterminal") and not (
        hasattr(longrepr, "reprtraceback") and hasattr(longrepr, "reprcrash")
    ):
        plain["longrepr"] = {
            "$repr": [rendered(longrepr, markup=False), rendered(longrepr, markup=True)]
        }
    return plain


def _bare(report: Report) -> ReportData:
    """Return the attributes that every report has, for one that pytest's serialiser refuses."""
    plain = {
        name: to_wire(getattr(report, name)) for name in BARE_ATTRIBUTES if hasattr(report, name)
    }
    plain["longrepr"] = None if report.longrepr is None else text_of(report.longrepr)
    if isinstance(report, pytest.CollectReport):
        plain |= {"$report_type": "CollectReport", "result": None}
    else:
        plain |= {"$report_type": "TestReport", "keywords": {}, "user_properties": []}
    return cast(ReportData, plain)


def rendered(longrepr: object, *, markup: bool) -> str:
    """Return the text that a representation of a failure writes to a terminal.

    It has a method `toterminal`. `markup` adds colours.
    """
    file = io.StringIO()
    writer = TerminalWriter(file)
    writer.hasmarkup = markup
    try:
        cast(TerminalRepr, longrepr).toterminal(writer)
    except Exception as problem:  # noqa: BLE001 - objects of plugins may raise anything
        return f"<unprintable failure: {type(problem).__name__}: {text_of(problem)}>\n"
    return file.getvalue()


def warning_record(
    message: warnings.WarningMessage, when: str, nodeid: str, location: object
) -> WarningRecord:
    """Return a warning with its category by name and its source line.

    Nothing has to be imported to show it.
    """
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


def exception_repr(
    config: pytest.Config, excinfo: pytest.ExceptionInfo[BaseException]
) -> JsonValue:
    """Return `excinfo.getrepr(funcargs=True)` as a report would carry it."""
    carrier = pytest.TestReport(
        "", ("", 0, ""), {}, "failed", excinfo.getrepr(funcargs=True), "call"
    )
    return report_data(config, carrier, [])["longrepr"]


class CollectionTable:
    """The collection tree as rows: each collector once, each item with the number of its parent."""

    def __init__(
        self, config: pytest.Config, arguments: Mapping[Path, str], scope_row: ScopeRow
    ) -> None:
        self._scope_row = scope_row  # the keys `scope` and `bound`
        self._root = config.rootpath
        self._arguments = arguments  # those that lead out of the tree, by their place
        self._numbers: dict[Node, int] = {}
        self.collectors: list[CollectorRow] = []
        self._tree = bool(config.option.collectonly)
        self._docs = self._tree and config.get_verbosity(pytest.Config.VERBOSITY_TEST_CASES) > 0

    def item(self, item: pytest.Item) -> ItemRow:
        """Return the row of an item. Rows of its collectors are added to `collectors`."""
        closest: dict[str, JsonObject] = {}
        for mark in item.iter_markers():  # the closest of a name comes first
            if mark.name in MARK_ARGUMENTS and mark.name not in closest:
                closest[mark.name] = mark_arguments(mark)
        row: dict[str, object] = {
            **self._row(item),
            "location": list(item.location),
            "outside": self._outside(item),
            "gpu": None,
            "ray": None,
            **closest,
        }
        return cast(ItemRow, {**row, **self._scope_row(item)})

    def _outside(self, item: pytest.Item) -> list[str] | None:
        """Return, for a test outside the tree, the argument that led there and the test's file.

        The node id counts from that argument.
        """
        if not self._arguments or item.path.is_relative_to(self._root):
            return None
        above = (path for path in (item.path, *item.path.parents) if path in self._arguments)
        return next(([self._arguments[path], str(item.path)] for path in above), None)

    def _row(self, node: Node) -> CollectorRow:
        row: CollectorRow = {
            "nodeid": node.nodeid,
            "name": node.name,
            "parent": self._number(node.parent),
        }
        if self._tree:
            row["repr"] = text_of(node)
        if self._docs and (function := getattr(node, "obj", None)):
            row["doc"] = inspect.getdoc(function)
        return row

    def _number(self, node: Node | None) -> int:
        """Return the row of a collector; -1 for the session."""
        if node is None or isinstance(node, pytest.Session):
            return -1
        if node not in self._numbers:
            row = self._row(node)
            self._numbers[node] = len(self.collectors)
            self.collectors.append(row)
        return self._numbers[node]


# The arguments of the marks that decide where a test runs, as they may be given by position.
MARK_ARGUMENTS = {
    "gpu": ("count", "memory_gib"),
    "ray": ("gpus", "nodes"),
}


def mark_arguments(mark: pytest.Mark) -> JsonObject:
    """Return a mark's arguments by name, positional ones too."""
    names = (*MARK_ARGUMENTS[mark.name], *(f"argument {n + 1}" for n in range(2, len(mark.args))))
    arguments = dict(zip(names, mark.args, strict=False)) | dict(mark.kwargs)
    return {name: to_wire(value) for name, value in arguments.items()}


def plugin_lines(
    answers: Iterable[Answer], lines_of: Callable[[object], list[str]]
) -> list[PluginLines]:
    """Return the lines that plugins answered, each with the name of the plugin.

    By the name the client leaves out those of plugins that it runs itself.
    """
    return [{"plugin": name, "lines": lines_of(answer)} for name, answer in answers if answer]
