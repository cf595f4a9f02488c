"""Ids: the names of sessions, clusters, nodes, writers and suites.

Keys of the store and paths on a disk are made of them, and whoever may write to a store chooses
those in it. So nothing becomes a part of a key or of a path that has not passed here.
"""

from __future__ import annotations

import re

from pytest_gpu_cluster.contract.errors import StoreError, UnreadableRecordError

ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}"  # no path: neither `/`, nor `.` or `..` alone
SHOWN_CHARS = 80  # of a text that is none, in an error
REMEDY = "find out who writes to the store, and remove what has this name there"


def is_id(text: object) -> bool:
    """Return True for a text that may be a part of a key or of a path.

    >>> [is_id(text) for text in ("20260101-000000-abcd", "..", "../c1", "", "c1\\n", None)]
    [True, False, False, False, False, False]
    """
    return isinstance(text, str) and re.fullmatch(ID, text) is not None


def check_id(text: str, kind: str) -> str:
    """Return the id of a `kind` of thing, such as a cluster. Raises StoreError for anything else.

    >>> check_id("c1", "cluster")
    'c1'
    """
    if is_id(text):
        return text
    raise StoreError(
        f"{_shown(text)} is no id of a {kind}: letters, digits, '.', '_' and '-', at most 80",
        remedy=REMEDY,
    )


def check_named(key: str, name: str, expected: str) -> None:
    """Raise UnreadableRecordError where the record at `key` names another thing than its key."""
    if name != expected:
        raise foreign(key, name)


def foreign(key: str, name: str) -> UnreadableRecordError:
    """Return the error for a record that names what it may not."""
    return UnreadableRecordError(f"{key} in the store names {_shown(name)}", remedy=REMEDY)


def is_below(path: str) -> bool:
    """Return True for a path that stays below the directory that it is relative to.

    >>> [is_below(path) for path in ("a/b", "/a", "a/../..", "")]
    [True, False, False, False]
    """
    return bool(path) and "\0" not in path and not {"", ".."} & {*path.split("/")}


def _shown(text: str) -> str:
    return repr(text) if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]!r}…"
