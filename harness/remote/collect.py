"""Items by node id, collected when they are first asked for, file by file, inside one pytest session."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest

from harness.remote.serialize import rendered


class LazyItems:
    """Finds items by node id. The same file is never collected twice, so session state stays what one collection makes it.

    Items are taken as they are collected, before any plugin reorders or deselects: the selection has been made elsewhere.
    """

    def __init__(self) -> None:
        self._items: dict[str, list[pytest.Item]] = {}
        self._all: list[pytest.Item] = []
        self._wanted: set[Path] = set()
        self._parents: set[Path] = set()
        self._collected: set[Path] = set()
        self._problems: dict[str, str] = {}  # node id of a collector: why it could not be collected
        self._directories: dict[tuple[Path, pytest.Collector], pytest.Collector] = {}

    def get(self, nodeid: str, occurrence: int) -> pytest.Item | None:
        """The item of a node id, of its k-th occurrence if there are several; None when nothing that was collected holds it."""
        found = self._items.get(nodeid)
        return found[min(occurrence, len(found) - 1)] if found else None

    def collect(self, session: pytest.Session, nodeids: Iterable[str]) -> None:
        """Collect what is missing of the files of these node ids."""
        paths = dict.fromkeys(self._path(session, nodeid) for nodeid in nodeids)
        missing = [path for path in paths if path not in self._collected]
        self._collected.update(missing)
        if missing:
            try:
                self._perform(session, missing)
            except pytest.UsageError:  # one of them is not there, or holds nothing: the others must not suffer
                for path in missing if len(missing) > 1 else []:
                    self._collected.discard(path)
                    self.collect(session, [str(path)])

    def why(self, session: pytest.Session, nodeid: str) -> str:
        """The likely cause of a node id that is not found."""
        path = nodeid.partition("::")[0]
        for collector, problem in self._problems.items():
            if collector and nodeid.startswith(collector):
                return f"{path} was collected when the tests were selected, but not in this process:\n{problem}"
        if not self._path(session, nodeid).exists():
            return f"{path} was there when the tests were selected, but is not in this process's tree (was it generated?)"
        return (
            f"{nodeid} was selected, but {path} holds no such test in this process.\n"
            "Its id depends on something that differs between processes: the order of a set, a random number, the time,\n"
            "the devices or variables that are visible, or a file written while collecting.\n"
            "Give the parameters a fixed order and fixed ids."
        )

    @staticmethod
    def _path(session: pytest.Session, nodeid: str) -> Path:
        return session.config.rootpath / nodeid.partition("::")[0]

    def _perform(self, session: pytest.Session, paths: list[Path]) -> None:
        self._wanted = set(paths)
        self._parents = {parent for path in paths for parent in path.parents}
        before = len(self._all)
        try:
            session.perform_collect([str(path) for path in paths])
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
        self._items.setdefault(item.nodeid, []).append(item)
        self._all.append(item)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome == "passed":
            return
        longrepr: Any = report.longrepr
        text = rendered(longrepr, markup=False) if hasattr(longrepr, "toterminal") else str(longrepr)
        self._problems[report.nodeid] = text

    @pytest.hookimpl(tryfirst=True)
    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """Nothing but what is wanted is looked at, so that a directory of many files costs one listing."""
        if collection_path in self._wanted or collection_path in self._parents:
            return None
        return None if self._wanted.intersection(collection_path.parents) else True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> Generator[None, Any, Any]:
        """Since pytest 9.1 fixtures of a conftest belong to the directory's node itself, so that node must stay the same."""
        made = yield
        return self._directories.setdefault((path, parent), made) if made is not None else None
