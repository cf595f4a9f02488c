"""pytest's objects rebuilt from what the cluster sent: nodes, reports, warnings. No module of the user is imported for it."""

from __future__ import annotations

import builtins
import functools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from _pytest._code.code import TerminalRepr
from _pytest._io import TerminalWriter

from pytest_gpu_cluster.contract.codec import from_wire


class RemoteRepr(TerminalRepr):
    """A failure that pytest cannot serialise, as the two texts that it would write: plain, and with colours."""

    def __init__(self, plain: str, coloured: str) -> None:
        self.plain, self.coloured = plain, coloured

    def toterminal(self, tw: TerminalWriter) -> None:
        tw.write(self.coloured if tw.hasmarkup else self.plain)


def report(config: pytest.Config, data: Mapping[str, Any]) -> Any:
    """A report from its plain form: a TestReport, CollectReport, or what a plugin makes of its own kind."""
    data = dict(data)
    longrepr = data["longrepr"]
    shown = longrepr["$repr"] if isinstance(longrepr, dict) and "$repr" in longrepr else None
    if shown is not None:
        data["longrepr"] = None
    plain = from_wire(data)
    context = dict(plain["_subtest.context"]["kwargs"]) if "_subtest.context" in plain else None
    made = config.hook.pytest_report_from_serializable(config=config, data=plain)
    if made is None:
        raise ValueError(f"no plugin here rebuilds a report of type {data.get('$report_type')!r}")
    if shown is not None:
        made.longrepr = RemoteRepr(*shown)
    if context is not None:  # pytest makes a repr of each value again when it loads them
        object.__setattr__(made.context, "kwargs", context)
    return made


def exception_repr(config: pytest.Config, longrepr: Any) -> Any:
    """The representation of an exception that ended the remote session."""
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


def warning(record: Mapping[str, Any]) -> warnings.WarningMessage:
    """A warning whose category has the right name and module, without importing that module."""
    key = record["module"], record["category"]
    category = getattr(builtins, key[1], None) if key[0] == "builtins" else _CATEGORIES.get(key)
    if category is None:
        category = _CATEGORIES[key] = type(key[1], (Warning,), {"__module__": key[0]})
    source = object() if record["source"] else None
    return warnings.WarningMessage(
        category(record["text"]),
        category,
        record["filename"],
        record["lineno"],
        line=record["line"],
        source=source,
    )


class _Documented:
    def __init__(self, doc: str) -> None:
        self.__doc__ = doc


class _Remote:
    """A node that exists elsewhere: it has the names, places and texts of the real one."""

    _shown = ""

    def describe(self, row: Mapping[str, Any]) -> None:
        if "location" in row:
            self.__dict__["location"] = tuple(row["location"])
        self._shown = row.get("repr") or f"<{type(self).__name__} {row['name']}>"
        if row.get("doc"):
            self.obj = _Documented(row["doc"])

    def __repr__(self) -> str:
        return self._shown


class RemoteItem(_Remote, pytest.Item):
    def runtest(self) -> None:
        raise NotImplementedError("this test runs on the cluster")


class RemoteCollector(_Remote, pytest.Collector):
    def collect(self) -> list[Any]:
        raise NotImplementedError("this was collected on the cluster")


@functools.cache
def _path(root: Path, relative: str) -> Path:
    return root / relative


def node(parent: Any, row: Mapping[str, Any], *, item: bool) -> Any:
    """A stand-in for a remote node below `parent`. `row` has at least `nodeid` and `name`."""
    path = _path(parent.config.rootpath, str(row["nodeid"]).partition("::")[0])
    kind = RemoteItem if item else RemoteCollector
    made = kind.from_parent(parent, name=row["name"], path=path, nodeid=row["nodeid"])
    made.describe(row)
    return made


def items(
    session: pytest.Session,
    collectors: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    *,
    made_before: dict[str, RemoteItem],
) -> list[pytest.Item]:
    """The collected items with their chain of collectors, each collector one object; parents precede their children.

    What collect reports have shown already (by node id; each is used once) becomes the item itself.
    """
    made: list[Any] = []
    for row in collectors:
        made.append(node(made[row["parent"]] if row["parent"] >= 0 else session, row, item=False))
    found = []
    for row in rows:
        parent = made[row["parent"]] if row["parent"] >= 0 else session
        item = made_before.pop(row["nodeid"], None)
        if item is None or item.name != row["name"]:
            item = node(parent, row, item=True)
        else:
            item.parent = parent
            item.describe(row)
        found.append(item)
    return found
