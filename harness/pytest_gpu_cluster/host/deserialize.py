"""Rebuild pytest's objects from what the cluster sent: nodes, reports, warnings.

No module of the user is imported for it.
"""

from __future__ import annotations

import builtins
import functools
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, TypedDict, TypeVar

import pytest
from _pytest._code.code import TerminalRepr
from _pytest._io import TerminalWriter
from _pytest.pathlib import bestrelpath

from pytest_gpu_cluster.contract.codec import from_wire
from pytest_gpu_cluster.contract.errors import UnreadableRecordError
from pytest_gpu_cluster.contract.fields import shown
from pytest_gpu_cluster.contract.records import CollectorRow, ItemRow, WarningRecord


class ShownRow(TypedDict):
    """A node as a collect report or a deselection names it."""

    nodeid: str
    name: str


INSTALLED = "/site-packages/"  # an environment may lie in the tree
# Of a serialised failure: what holds the places of its frames.
PARTS = ("reprtraceback", "reprentries", "data", "chain")
Row: TypeAlias = ShownRow | CollectorRow | ItemRow


class RemoteRepr(TerminalRepr):
    """A failure that pytest cannot serialise, as the two texts that it would write."""

    def __init__(self, plain: str, coloured: str) -> None:
        self.plain, self.coloured = plain, coloured

    def toterminal(self, tw: TerminalWriter) -> None:
        tw.write(self.coloured if tw.hasmarkup else self.plain)


def report(
    config: pytest.Config, data: Mapping[str, object]
) -> pytest.TestReport | pytest.CollectReport:
    """Rebuild a report from its plain form; a plugin may rebuild a type of its own.

    Raises UnreadableRecordError for data that are no report, or one of a type that no plugin here
    rebuilds.
    """
    try:
        rebuilt = _report(config, dict(data))
        usable = rebuilt is None or _is_usable(rebuilt)
    except Exception as problem:  # of pytest or of a plugin, which trust what they wrote themselves
        raise unreadable(data.get("nodeid"), f"{type(problem).__name__}: {problem}") from problem
    if rebuilt is None:
        kind = shown(data.get("$report_type"))
        raise unreadable(data.get("nodeid"), f"no plugin here rebuilds its type {kind}")
    if not usable:
        raise unreadable(data.get("nodeid"), "its place, phase, duration or reason is none")
    return rebuilt


def unreadable(nodeid: object, problem: str) -> UnreadableRecordError:
    """Return the error for a part of an event that is not what a cluster tells."""
    return UnreadableRecordError(
        f"the journal's report of {shown(nodeid)} cannot be read: {problem}",
        remedy="use the same version of pytest-gpu-cluster and of the plugins on both sides;"
        " nothing else may write to the store's sessions/",
    )


def _is_usable(report: pytest.TestReport | pytest.CollectReport) -> bool:
    """Return True where reporters find in a report what every one has. May raise anything.

    A failure is written once, into nothing: a reporter would fail in the middle of its lines.
    Captured output and a reason that are no texts become texts.
    """
    report.sections = [(str(name), str(text)) for name, text in report.sections]
    failure = report.longrepr
    crash = getattr(failure, "reprcrash", None)  # whose first line is in every summary
    usable = isinstance(report.longreprtext, str)
    usable = usable and (crash is None or isinstance(crash.message, str))
    if isinstance(failure, tuple):  # the place and the reason of a skip
        usable = usable and len(failure) == 3 and isinstance(failure[2], str)
    if isinstance(report, pytest.CollectReport):
        return usable
    if hasattr(report, "wasxfail"):
        report.wasxfail = str(report.wasxfail)
    hash(getattr(report, "node", None))  # of pytest-xdist; the JUnit writer looks reports up by it
    file, line, name = report.location
    is_place = isinstance(file, str) and isinstance(name, str) and isinstance(line, int | None)
    has_phase = report.when is None or isinstance(report.when, str)
    return usable and is_place and has_phase and isinstance(report.duration, float | int)


def _report(
    config: pytest.Config, data: dict[str, object]
) -> pytest.TestReport | pytest.CollectReport | None:
    longrepr = data["longrepr"] = with_paths_from(data["longrepr"], config.rootpath, Path.cwd())
    texts = longrepr["$repr"] if isinstance(longrepr, dict) and "$repr" in longrepr else None
    if texts is not None:
        data["longrepr"] = None
    plain = from_wire(data)
    kwargs = dict(plain["_subtest.context"]["kwargs"]) if "_subtest.context" in plain else None
    hook = config.hook.pytest_report_from_serializable
    rebuilt: pytest.TestReport | pytest.CollectReport | None = hook(config=config, data=plain)
    if rebuilt is None:
        return None
    if texts is not None:
        rebuilt.longrepr = RemoteRepr(*texts)
    if kwargs is not None:  # pytest makes a repr of each value again when it loads them
        object.__setattr__(getattr(rebuilt, "context", None), "kwargs", kwargs)
    return rebuilt


def with_paths_from(longrepr: object, root: Path, here: Path) -> object:
    """Return a failure whose places outside of `root`, or installed, are written as pytest does.

    That is relative to `here` where that is shorter. On the cluster the tree is at another place.
    """
    if isinstance(longrepr, list):
        return [with_paths_from(part, root, here) for part in longrepr]
    if not isinstance(longrepr, dict):
        return longrepr
    place = longrepr.get("reprfileloc")
    path = str(place.get("path")) if isinstance(place, dict) else ""
    if isinstance(place, dict) and _is_foreign(path, root):
        shorter = min(bestrelpath(here, Path(path)), path, key=len)
        longrepr = {**longrepr, "reprfileloc": {**place, "path": shorter}}
    parts = {
        name: with_paths_from(longrepr.get(name), root, here) for name in PARTS if name in longrepr
    }
    return {**longrepr, **parts}


def _is_foreign(path: str, root: Path) -> bool:
    return os.path.isabs(path) and (INSTALLED in path or not Path(path).is_relative_to(root))


def collect_report(config: pytest.Config, data: Mapping[str, object]) -> pytest.CollectReport:
    """Rebuild the report of a collector. Raises UnreadableRecordError for another report type."""
    rebuilt = report(config, data)
    if not isinstance(rebuilt, pytest.CollectReport):
        problem = f"a collector has none of type {shown(data.get('$report_type'))}"
        raise unreadable(data.get("nodeid"), problem)
    return rebuilt


def exception_repr(config: pytest.Config, longrepr: object) -> object:
    """Rebuild the representation of an exception that ended the remote session."""
    data = {
        "$report_type": "TestReport",
        "nodeid": "",
        "location": ["", 0, ""],
        "keywords": {},
        "outcome": "failed",
        "longrepr": longrepr,
        "when": "call",
    }
    return report(config, data).longrepr


_CATEGORIES: dict[tuple[str, str], type[Warning]] = {}


def warning(record: WarningRecord) -> warnings.WarningMessage:
    """Rebuild a warning. Its category has the right name and module, which is not imported."""
    key = record["module"], record["category"]
    category = getattr(builtins, key[1], None) if key[0] == "builtins" else _CATEGORIES.get(key)
    if category is None:
        category = _CATEGORIES[key] = type(key[1], (Warning,), {"__module__": key[0]})
    return warnings.WarningMessage(
        category(record["text"]),
        category,
        record["filename"],
        record["lineno"],
        line=record["line"],
        source=object() if record["source"] else None,
    )


class _Documented:
    def __init__(self, doc: str) -> None:
        self.__doc__ = doc


class _RemoteNode:
    """A node that exists on the cluster: it has the name, place and texts of the real one."""

    _repr = ""

    def describe(self, row: Row) -> None:
        location, shown, doc = (row.get(key) for key in ("location", "repr", "doc"))
        if isinstance(location, list | tuple):
            self.__dict__["location"] = tuple(location)
        self._repr = str(shown) if shown else f"<{type(self).__name__} {row['name']}>"
        if doc:
            self.obj = _Documented(str(doc))

    def __repr__(self) -> str:
        return self._repr


class RemoteItem(_RemoteNode, pytest.Item):
    def runtest(self) -> None:
        raise NotImplementedError("this test runs on the cluster")


class RemoteCollector(_RemoteNode, pytest.Collector):
    def collect(self) -> list[pytest.Item | pytest.Collector]:
        raise NotImplementedError("this was collected on the cluster")


_Node = TypeVar("_Node", RemoteItem, RemoteCollector)


@functools.cache
def _path(root: Path, relative: str) -> Path:
    return root / relative


def node(parent: pytest.Collector, row: Row, *, item: bool) -> RemoteItem | RemoteCollector:
    """Return a stand-in for a remote node below `parent`."""
    if item:
        return _stand_in(RemoteItem, parent, row)
    return _stand_in(RemoteCollector, parent, row)


def _stand_in(kind: type[_Node], parent: pytest.Collector, row: Row) -> _Node:
    path = _path(parent.config.rootpath, row["nodeid"].partition("::")[0])
    stand_in = kind.from_parent(parent, name=row["name"], path=path, nodeid=row["nodeid"])
    stand_in.describe(row)
    return stand_in


def items(
    session: pytest.Session,
    collectors: Sequence[CollectorRow],
    rows: Sequence[ItemRow],
    *,
    reported: dict[str, RemoteItem],
) -> list[pytest.Item]:
    """Rebuild the collected items below their collectors; in `collectors` parents precede children.

    `reported` holds the items of collect reports by node id. Each is used once, then removed.
    """
    for number, row in enumerate((*collectors, *rows)):
        if not -1 <= row["parent"] < min(number, len(collectors)):
            raise unreadable(row["nodeid"], f"its collector is number {row['parent']}")
    parents: list[pytest.Collector] = []
    for row in collectors:
        parent = parents[row["parent"]] if row["parent"] >= 0 else session
        parents.append(_stand_in(RemoteCollector, parent, row))
    collected: list[pytest.Item] = []
    for row in rows:
        parent = parents[row["parent"]] if row["parent"] >= 0 else session
        item = reported.pop(row["nodeid"], None)
        if item is None or item.name != row["name"]:
            item = _stand_in(RemoteItem, parent, row)
        else:
            item.parent = parent
            item.describe(row)
        collected.append(item)
    return collected
