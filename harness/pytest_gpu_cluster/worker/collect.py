"""The items that orders name, collected file by file when they are first needed."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract.messages import TestOrder
from pytest_gpu_cluster.worker.serialize import rendered


class LazyItems:
    """Finds items by node id, inside one pytest session.

    A file is never collected twice, so session state stays what one collection makes it. Items are
    stored as they are collected, before any plugin reorders or deselects: the selection has been
    made elsewhere. A test outside the tree has the same node id again only by way of the argument
    that led to it.
    """

    def __init__(self) -> None:
        self._items: dict[tuple[str, Path | None], list[pytest.Item]] = {}
        self._all: list[pytest.Item] = []
        self._requested: set[Path] = set()  # files that the present collection is for
        self._parents: set[Path] = set()  # and the directories above them
        self._collected: set[Path] = set()
        self._outside: dict[Path, str] = {}  # files outside the tree, with the argument of each
        self._problems: dict[str, str] = {}  # by the node id of a collector, which failed with it
        self._directories: dict[tuple[Path, pytest.Collector], pytest.Collector] = {}

    def get(self, order: TestOrder) -> pytest.Item | None:
        """Return the item of an order; None when nothing that was collected holds it."""
        outside = order.outside
        items = self._items.get((order.nodeid, Path(outside[1]) if outside else None))
        return items[min(order.occurrence, len(items) - 1)] if items else None

    def collect(self, session: pytest.Session, orders: Iterable[TestOrder]) -> None:
        """Collect the files of these orders that are not collected yet."""
        missing: dict[Path, TestOrder] = {}
        for order in orders:
            if (path := self._path(session, order)) not in self._collected:
                missing[path] = order
            if order.outside:
                self._outside[path] = order.outside[0]
        self._collected.update(missing)
        if missing:
            try:
                self._perform(session, list(missing))
            except pytest.UsageError:
                # A file does not exist or holds nothing: the other files must not suffer.
                for path, order in missing.items() if len(missing) > 1 else ():
                    self._collected.discard(path)
                    self.collect(session, [order])

    def explain_missing(self, session: pytest.Session, order: TestOrder) -> str:
        """Return the likely cause of a test that is not found."""
        nodeid = order.nodeid
        path = nodeid.partition("::")[0]
        for collector, problem in self._problems.items():
            if collector and nodeid.startswith(collector):
                return (
                    f"{path} was collected when the tests were selected, "
                    f"but not in this process:\n{problem}"
                )
        if not self._path(session, order).exists():
            return (
                f"{path} was there when the tests were selected, "
                "but is not in this process's tree (was it generated?)"
            )
        return (
            f"{nodeid} was selected, but {path} holds no such test in this process.\n"
            "Its id depends on something that differs between processes: the order of a set, "
            "a random number, the time,\n"
            "the devices or variables that are visible, or a file written while collecting.\n"
            "Give the parameters a fixed order and fixed ids."
        )

    @staticmethod
    def _path(session: pytest.Session, order: TestOrder) -> Path:
        if order.outside:
            return Path(order.outside[1])
        return session.config.rootpath / order.nodeid.partition("::")[0]

    def _perform(self, session: pytest.Session, paths: list[Path]) -> None:
        self._requested = set(paths)
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

    # -- hooks -------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_itemcollected(self, item: pytest.Item) -> None:
        key = (item.nodeid, item.path if item.path in self._outside else None)
        self._items.setdefault(key, []).append(item)
        self._all.append(item)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome == "passed":
            return
        longrepr = report.longrepr
        self._problems[report.nodeid] = (
            rendered(longrepr, markup=False) if hasattr(longrepr, "toterminal") else str(longrepr)
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """Ignore all but the requested files, so that a directory of many costs one listing."""
        if collection_path in self._requested or collection_path in self._parents:
            return None
        return None if self._requested.intersection(collection_path.parents) else True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collect_directory(
        self, path: Path, parent: pytest.Collector
    ) -> Generator[None, pytest.Collector | None, pytest.Collector | None]:
        """Return the same node for a directory each time.

        Since pytest 9.1 the fixtures of a conftest belong to the node of its directory.
        """
        node = yield
        return self._directories.setdefault((path, parent), node) if node is not None else None
