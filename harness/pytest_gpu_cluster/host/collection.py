"""The collected tests here, and which of them have a result."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_gpu_cluster.contract.events import Collected, TestFinished, TestStarted
from pytest_gpu_cluster.contract.selection import Stepwise
from pytest_gpu_cluster.host import deserialize


class Collection:
    """Stand-ins for the tests that the cluster has selected, in their order."""

    def __init__(self) -> None:
        self.items: list[pytest.Item] = []
        self.complete = False  # every one of them has to be reported
        self._places: dict[str, list[int]] = {}  # by node id
        self._reported: set[int] = set()
        self._of_reports: dict[
            str, deserialize.RemoteItem
        ] = {}  # items that collect reports have shown

    def __len__(self) -> int:
        return len(self.items)

    def show(self, node: object) -> None:
        """Take in a child of a collect report: the item of the same id is the same object."""
        if isinstance(node, deserialize.RemoteItem):
            self._of_reports.setdefault(node.nodeid, node)

    def fill(self, session: pytest.Session, event: Collected) -> None:
        """Build the items of a final selection."""
        items = deserialize.items(session, event.collectors, event.items, reported=self._of_reports)
        session.items = self.items = items
        for index, item in enumerate(items):
            self._places.setdefault(item.nodeid, []).append(index)

    def place(self, event: TestStarted | TestFinished) -> int | None:
        """Return a test's place in the collection; None for one that was not collected."""
        if isinstance(event, TestFinished) and event.index is not None:
            return event.index
        places = self._places.get(event.nodeid, [])
        unreported = (place for place in places if place not in self._reported)
        return next(unreported, places[-1] if places else None)

    def is_reported(self, place: int | None) -> bool:
        return place in self._reported

    def report(self, place: int | None) -> None:
        if place is not None:
            self._reported.add(place)

    def missing(self) -> Iterator[tuple[int, pytest.Item]]:
        """Yield the tests without a result."""
        for index, item in enumerate(self.items):
            if index not in self._reported:
                yield index, item


def adopt_caches(
    config: pytest.Config, items: list[pytest.Item], stepwise: Stepwise | None
) -> None:
    """Keep the memory of pytest's own selection plugins: the cluster has made the selection."""
    plugin = config.pluginmanager.get_plugin
    if (failed := plugin("lfplugin")) is not None:
        failed.active = False
    if (new := plugin("nfplugin")) is not None:
        new.cached_nodeids.update(getattr(item, "id", item.nodeid) for item in items)
    if (ours := plugin("stepwiseplugin")) is not None and stepwise is not None:
        info = ours.cached_info
        info.last_test_count = stepwise.last_test_count
        if stepwise.last_failed is None or str(info.last_failed) != stepwise.last_failed:
            info.last_failed = None
        ours.report_status = []
