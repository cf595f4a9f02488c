"""Skip the tests that people have quarantined at their CI host."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from _pytest.junitxml import mangle_test_address


class Quarantine:
    """The quarantined tests, each by package, class and name as the host read them from JUnit.

    A host may keep the parts of a JUnit class name apart or together, so a test is matched by its
    name and by the package, the class, or both.
    """

    def __init__(self, tests: Iterable[tuple[str, str, str]]) -> None:
        self._places: dict[str, set[str]] = {}  # of each name
        for package, class_name, name in tests:
            places = (class_name, package, f"{package}.{class_name}")
            self._places.setdefault(name, set()).update(p for p in places if p.strip("."))

    def skip(self, item: pytest.Item) -> None:
        """Mark the item to be skipped if it is quarantined and not skipped already."""
        if not self._places:
            return
        *parents, name = mangle_test_address(item.nodeid)
        if (
            ".".join(parents) in self._places.get(name, ())
            and item.get_closest_marker("skip") is None
        ):
            item.add_marker(pytest.mark.skip(reason="quarantined at the CI host"))
