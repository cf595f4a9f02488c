"""The items that orders name, collected when they are first asked for, file by file, inside one pytest session."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_gpu_cluster.worker.serialize import rendered


class LazyItems:
    """Finds items by node id. The same file is never collected twice, so session state stays what one collection makes it.

    Items are taken as they are collected, before any plugin reorders or deselects: the selection has been made elsewhere.
    An order names a test: `nodeid`, which of several it is (`occurrence`), and for a file outside the tree `outside`, the argument
    that led to it and the file. Only by way of that argument has the test the same node id again.
    """

    def __init__(self) -> None:
        self._items: dict[tuple[str, Path | None], list[pytest.Item]] = {}
        self._all: list[pytest.Item] = []
        self._wanted: set[Path] = set()
        self._parents: set[Path] = set()
        self._collected: set[Path] = set()
        self._outside: dict[
            Path, str
        ] = {}  # files outside the tree, with the argument that leads there
        self._problems: dict[str, str] = {}  # node id of a collector: why it could not be collected
        self._directories: dict[tuple[Path, pytest.Collector], pytest.Collector] = {}

    def get(self, order: Mapping[str, Any]) -> pytest.Item | None:
        """The item of an order; None when nothing that was collected holds it."""
        outside = order.get("outside")
        found = self._items.get((order["nodeid"], Path(outside[1]) if outside else None))
        return found[min(order.get("occurrence", 0), len(found) - 1)] if found else None

    def collect(self, session: pytest.Session, orders: Iterable[Mapping[str, Any]]) -> None:
        """Collect what is missing of the files of these orders."""
        missing: dict[Path, Mapping[str, Any]] = {}
        for order in orders:
            if (path := self._path(session, order)) not in self._collected:
                missing[path] = order
            if order.get("outside"):
                self._outside[path] = order["outside"][0]
        self._collected.update(missing)
        if missing:
            try:
                self._perform(session, list(missing))
            except (
                pytest.UsageError
            ):  # one of them is not there, or holds nothing: the others must not suffer
                for path, order in missing.items() if len(missing) > 1 else ():
                    self._collected.discard(path)
                    self.collect(session, [order])

    def why(self, session: pytest.Session, order: Mapping[str, Any]) -> str:
        """The likely cause of a test that is not found."""
        nodeid = order["nodeid"]
        path = nodeid.partition("::")[0]
        for collector, problem in self._problems.items():
            if collector and nodeid.startswith(collector):
                return f"{path} was collected when the tests were selected, but not in this process:\n{problem}"
        if not self._path(session, order).exists():
            return f"{path} was there when the tests were selected, but is not in this process's tree (was it generated?)"
        return (
            f"{nodeid} was selected, but {path} holds no such test in this process.\n"
            "Its id depends on something that differs between processes: the order of a set, a random number, the time,\n"
            "the devices or variables that are visible, or a file written while collecting.\n"
            "Give the parameters a fixed order and fixed ids."
        )

    @staticmethod
    def _path(session: pytest.Session, order: Mapping[str, Any]) -> Path:
        outside = order.get("outside")
        return (
            Path(outside[1])
            if outside
            else session.config.rootpath / order["nodeid"].partition("::")[0]
        )

    def _perform(self, session: pytest.Session, paths: list[Path]) -> None:
        self._wanted = set(paths)
        self._parents = {parent for path in paths for parent in path.parents}
        before = len(self._all)
        try:
            session.config.option.pyargs = not self._outside.keys().isdisjoint(paths)
            session.perform_collect(
                list(dict.fromkeys(self._outside.get(path, str(path)) for path in paths))
            )
        finally:
            fresh = {id(item) for item in self._all}
            for item in session.items:  # put there by a plugin, not collected
                if id(item) not in fresh:
                    self.pytest_itemcollected(item)
            session.items = list(self._all)
            session.testscollected = len(self._all)
            assert before <= len(self._all)

    # -- hooks ---------------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_itemcollected(self, item: pytest.Item) -> None:
        self._items.setdefault(
            (item.nodeid, item.path if item.path in self._outside else None), []
        ).append(item)
        self._all.append(item)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome == "passed":
            return
        longrepr: Any = report.longrepr
        text = (
            rendered(longrepr, markup=False) if hasattr(longrepr, "toterminal") else str(longrepr)
        )
        self._problems[report.nodeid] = text

    @pytest.hookimpl(tryfirst=True)
    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """Nothing but what is wanted is looked at, so that a directory of many files costs one listing."""
        if collection_path in self._wanted or collection_path in self._parents:
            return None
        return None if self._wanted.intersection(collection_path.parents) else True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collect_directory(
        self, path: Path, parent: pytest.Collector
    ) -> Generator[None, Any, Any]:
        """Since pytest 9.1 fixtures of a conftest belong to the directory's node itself, so that node must stay the same."""
        made = yield
        return self._directories.setdefault((path, parent), made) if made is not None else None
