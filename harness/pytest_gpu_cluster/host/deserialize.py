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

    Raises ValueError for a report type that no plugin rebuilds.
    """
    data = dict(data)
    longrepr = data["longrepr"] = with_paths_from(data["longrepr"], config.rootpath, Path.cwd())
    texts = longrepr["$repr"] if isinstance(longrepr, dict) and "$repr" in longrepr else None
    if texts is not None:
        data["longrepr"] = None
    plain = from_wire(data)
    kwargs = dict(plain["_subtest.context"]["kwargs"]) if "_subtest.context" in plain else None
    hook = config.hook.pytest_report_from_serializable
    rebuilt: pytest.TestReport | pytest.CollectReport | None = hook(config=config, data=plain)
    if rebuilt is None:
        raise ValueError(f"no plugin here rebuilds a report of type {data.get('$report_type')!r}")
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
    """Rebuild the report of a collector. Raises ValueError for another report type."""
    rebuilt = report(config, data)
    if not isinstance(rebuilt, pytest.CollectReport):
        raise ValueError(f"a collector cannot have a report of type {data.get('$report_type')!r}")
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
