"""Ids of tests that hold a secret: masked, and numbered where nothing else tells them apart.

`test_x[SECRET-1]` and `test_x[SECRET-2]` become `test_x[***]` and `test_x[***-2]`, in the order in
which they are collected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pytest_gpu_cluster.contract.masking import Masker
from pytest_gpu_cluster.contract.secret_cuts import MASK

_NUMBER = re.compile(re.escape(MASK) + r"-\d+(?!.*" + re.escape(MASK) + ")", re.DOTALL)


class MaskedIds:
    """The masked ids of a collection. Parents are added before their children."""

    def __init__(self, mask: Masker) -> None:
        self._mask = mask
        self._numbers: dict[str, dict[str, int]] = {}  # of names, by what masking makes of them
        self.shown: dict[str, str] = {}  # ids, names and places that are not shown as they are

    def add(self, nodeid: str, name: str) -> None:
        """Take in a test, a class, a file or a directory."""
        shown_name = self._name(name)
        if nodeid.endswith(name):
            parent = nodeid[: -len(name)] if name else nodeid
            core = parent.rstrip(":/")
            shown = self.shown.get(core, self._mask(core)) + parent[len(core) :] + shown_name
        else:
            shown = self._mask(nodeid)
        if shown != nodeid:
            self.shown[nodeid] = shown

    def add_place(self, place: str, name: str) -> None:
        """Take in a test's place in its file, which ends with its name: `TestClass.test_name`."""
        if place != name and place.endswith(name) and name in self.shown:
            self.shown[place] = self._mask(place[: -len(name)]) + self.shown[name]

    def of(self, nodeid: str) -> str:
        """Return the masked id of a test."""
        return self.shown.get(nodeid) or self._mask(nodeid)

    def _name(self, name: str) -> str:
        masked = self._mask(name)
        if MASK not in masked:
            return masked
        numbers = self._numbers.setdefault(masked, {})
        number = numbers.setdefault(name, len(numbers) + 1)
        if number > 1:
            before, _, after = masked.rpartition(MASK)
            masked = f"{before}{MASK}-{number}{after}"
        if masked != name:
            self.shown[name] = masked
        return masked


class MaskedFailures(dict[object, bool]):
    """pytest's memory of failed tests, by masked ids: a test is in it by its real id too.

    The number of a masked id does not count. Where one test failed, all that are called alike are
    in it. An id is a text, or with pytest 9.2 an object whose text it is.
    """

    def __init__(self, failures: Mapping[object, bool], mask: Masker) -> None:
        super().__init__(failures)
        self._mask = mask
        self._alike = {_unnumbered(str(nodeid)) for nodeid in failures if MASK in str(nodeid)}

    def __contains__(self, nodeid: object) -> bool:
        if super().__contains__(nodeid):
            return True
        masked = self._mask(str(nodeid))
        return MASK in masked and masked in self._alike


def real_id(shown: str, tests: Iterable[tuple[str, str]], mask: Masker) -> str:
    """Return the real id of a masked one, among ids and names of tests as collected.

    Return the masked one where it is of none.
    """
    ids = MaskedIds(mask)
    for nodeid, name in tests:
        ids.add(nodeid, name)
        if ids.of(nodeid) == shown:
            return nodeid
    return shown


def _unnumbered(nodeid: str) -> str:
    return _NUMBER.sub(MASK, nodeid)
