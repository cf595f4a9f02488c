"""What somebody else may write into a store: changes of what belongs there."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

DEEP: object = []
for _ in range(150):
    DEEP = [DEEP, {"a": 1}]
JUNK: Sequence[object] = (
    *(None, True, False, 0, -1, 7, 2**63, 10**400, 0.5, 1e300, float("nan"), float("-inf")),
    *("", "a", "\ud800", "\0", "../../x", "/etc/passwd", "\x1b[2J", "a" * 300, ".git/hooks/x"),
    *([], {}, [[]], [None], ["a", 1], {"a": 1}, {"$t": 5}, {"$d": [1]}, {"$repr": []}, DEEP),
)
RAW: Sequence[bytes] = (
    *(b"", b"\0", b"null", b"[]", b"{}", b"7", b'"a"', b"{", b"\xff\xfe", b"\x01", b"NaN"),
    *(b"[" * 50_000, b'{"a":' * 50_000, b"[" * 5000 + b"]" * 5000, b"9" * 5000),
    *('{"v": 1}'.encode("utf-16"), b"\xef\xbb\xbf{}", b"\x01" + zlib.compress(b"a" * 9999)),
)
ACTIONS = ("replace", "replace", "replace", "remove", "add", "key", "cut", "flip", "insert", "raw")


class Change(NamedTuple):
    """One change of a document: its kind, where, and the number of what is put there."""

    action: str
    place: int
    what: int


def mutated(document: bytes, changes: Sequence[Change], *, lines: bool) -> bytes:
    """Return a document of the store as somebody else may have written it."""
    plain = zlib.decompress(document) if lines else document
    content = plain.split(b"\n") if lines else [plain]
    for change in changes:
        number = change.place % len(content)
        content[number] = _changed(content[number], change)
    body = b"\n".join(content)
    return zlib.compress(body, 1) if lines and changes[-1].what % 9 else body


def _changed(content: bytes, change: Change) -> bytes:
    match change.action:
        case "cut":
            return content[: change.place % (len(content) + 1)]
        case "flip" if content:
            at = change.place % len(content)
            return content[:at] + bytes([content[at] ^ (1 << change.what % 8)]) + content[at + 1 :]
        case "insert":
            at = change.place % (len(content) + 1)
            return content[:at] + RAW[change.what % len(RAW)] + content[at:]
        case "raw":
            return RAW[change.what % len(RAW)]
    try:
        value = [json.loads(content)]
    except (ValueError, RecursionError):
        return content
    slots = [*_slots(value)]
    holder, key = slots[change.place // 7 % len(slots)]
    _change(holder, key, change)
    return json.dumps(value[0] if value else None).encode()


def _slots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place of a JSON value: its container, and its key or index there."""
    unvisited = [value]
    while unvisited:
        holder = unvisited.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            yield holder, key
            if isinstance(holder[key], dict | list):
                unvisited.append(holder[key])


def _change(holder: Any, key: Any, change: Change) -> None:
    junk = copy.deepcopy(JUNK[change.what % len(JUNK)])
    match change.action:
        case "replace":
            holder[key] = junk
        case "remove":
            del holder[key]
        case "add" if isinstance(holder[key], dict):
            holder[key]["unknown"] = junk
        case "add" if isinstance(holder[key], list):
            holder[key].append(junk)
        case "key" if isinstance(holder, dict):
            holder[str(junk)] = holder.pop(key)
        case _:
            holder[key] = [holder[key], holder[key]]
