"""What the agent writes down holds no secret: its events, its history, the names of files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from pytest_gpu_cluster.contract.events import Collected, CollectorFinished, Event
from pytest_gpu_cluster.contract.fields import JsonObject
from pytest_gpu_cluster.contract.masked_ids import MaskedIds
from pytest_gpu_cluster.contract.masking import Masker

T = TypeVar("T")


class JournalMask:
    """Masks the events of one session. Tests that differ in a secret alone stay different tests."""

    def __init__(self, mask: Masker) -> None:
        self._mask, self._ids = mask, MaskedIds(mask)

    def __call__(self, event: Event) -> JsonObject:
        """Return the JSON object of an event as the journal may have it."""
        body = event.to_json()
        if not self._mask.touches(body):
            return body
        match event:
            case CollectorFinished():
                for _, nodeid, name in event.kids:
                    self._ids.add(nodeid, name)
            case Collected():
                for collector in event.collectors:
                    self._ids.add(collector["nodeid"], collector["name"])
                for item in event.items:
                    self._ids.add(item["nodeid"], item["name"])
                    self._ids.add_place(str(item["location"][2]), item["name"])
        return self._mask.json(body, self._ids.shown)

    def by_real_id(self, stored: Mapping[str, T]) -> Mapping[str, T]:
        """Return what is stored by masked ids, for the real ids of tests."""
        return ByRealId(stored, self._ids) if self._mask.any else stored

    def by_masked_id(self, values: Mapping[str, T]) -> dict[str, T]:
        """Return by masked ids what is known by real ones, for the store."""
        if not self._mask.any:
            return dict(values)
        return {self._ids.of(nodeid): value for nodeid, value in values.items()}


class ByRealId(Mapping[str, T]):
    """A view of values that are stored by masked ids; tests are added to the ids meanwhile."""

    def __init__(self, stored: Mapping[str, T], ids: MaskedIds) -> None:
        self._stored, self._ids = stored, ids

    def __getitem__(self, nodeid: str) -> T:
        return self._stored[self._ids.of(nodeid)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)
