"""JSON lines, and the little that JSON cannot say by itself.

A message on a socket is a line of plain JSON (`encode_line`). What pytest and its plugins put into
a report is anything at all, so `to_wire` makes it plain first and `from_wire` rebuilds it; in
between it survives any transport of JSON. Only the standard library is imported: a keeper without
pytest reads this too.
"""

from __future__ import annotations

import enum
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pytest_gpu_cluster.contract.fields import JsonValue

T = TypeVar("T")
VERSION = 1
# Of a tuple, and of a mapping that is no JSON object: each as the only key of an object.
TAGS = frozenset({"$t", "$d"})
DEPTH = 60  # of nested containers; what lies deeper travels as text
# Integers above this have no decimal form in Python (sys.set_int_max_str_digits).
DIGITS_BITS = 12_000


def encode_line(message: Mapping[str, JsonValue]) -> bytes:
    """Return one line of ASCII JSON. Never raises: what is not plain travels as its text."""
    try:
        text = _encoder.encode(message)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(to_wire(message), separators=(",", ":"))
    return text.encode("ascii") + b"\n"


def to_wire(value: object, lossy: list[str] | None = None, depth: int = 0) -> JsonValue:
    """Return a value as plain JSON.

    Tuples and odd mappings are tagged, paths become strings, anything else its `str`; each value
    that had to become text adds its type's name to `lossy`. Never raises.

    >>> to_wire({"a": (1, 2)}), to_wire({1: 2})
    ({'a': {'$t': [1, 2]}}, {'$d': [[1, 2]]})
    """
    if value is None or type(value) in (bool, str, float):
        return value  # type: ignore[return-value]  # one of these
    if type(value) is int:
        return value if value.bit_length() < DIGITS_BITS else hex(value)
    if depth < DEPTH and isinstance(value, list | tuple | Mapping):
        try:
            return _container(value, lossy, depth + 1)
        except Exception:  # noqa: BLE001
            # A container that lies about itself is text like anything else.
            pass
    if isinstance(value, os.PathLike):
        return text_of(os.fspath(value))
    if isinstance(value, (str, int, float)) and not isinstance(value, enum.Enum):
        return text_of(value) if isinstance(value, str) else _number(value)
    if lossy is not None:
        lossy.append(type(value).__qualname__)
    return text_of(value)


def _container(
    value: list[object] | tuple[object, ...] | Mapping[object, object],
    lossy: list[str] | None,
    depth: int,
) -> JsonValue:
    if type(value) is list:
        return [to_wire(item, lossy, depth) for item in value]
    if isinstance(value, tuple):
        return {"$t": [to_wire(item, lossy, depth) for item in value]}
    if not isinstance(value, Mapping):  # a list of a class of its own
        raise TypeError(type(value))
    plain = all(type(key) is str for key in value) and not (len(value) == 1 and TAGS & value.keys())
    if plain:
        return {str(key): to_wire(item, lossy, depth) for key, item in value.items()}
    pairs = [
        [to_wire(key, lossy, depth), to_wire(item, lossy, depth)] for key, item in value.items()
    ]
    return {"$d": pairs}  # type: ignore[dict-item]  # lists are invariant


def _number(value: float) -> JsonValue:
    """Return a number of a subclass, such as numpy's, as the plain number that prints alike."""
    try:
        return to_wire(int(value)) if isinstance(value, int) else float(value)
    except Exception:  # noqa: BLE001 - an object that is printed may raise anything
        return text_of(value)


def text_of(value: object) -> str:
    """Return `str(value)`, whatever the value does."""
    try:
        return str.__str__(str(value))
    except Exception:  # noqa: BLE001 - an object that is printed may raise anything
        return f"<unprintable {type(value).__qualname__}>"


_encoder = json.JSONEncoder(separators=(",", ":"), default=text_of)


def from_wire(value: object) -> Any:
    """Return the value that `to_wire` made plain: anything that can be in a report.

    >>> from_wire(to_wire([("a", {2: 3})]))
    [('a', {2: 3})]
    """
    if isinstance(value, list):
        return [from_wire(item) for item in value]
    if isinstance(value, dict):
        if len(value) == 1:
            if "$t" in value:
                return tuple(from_wire(item) for item in value["$t"])
            if "$d" in value:
                return {_hashable(from_wire(key)): from_wire(item) for key, item in value["$d"]}
        return {key: from_wire(item) for key, item in value.items()}
    return value


def _hashable(key: object) -> object:
    try:
        hash(key)
    except TypeError:
        return text_of(key)
    return key


class PathMap:
    """Rewrites roots in text, on path boundaries only.

    `/far/root/a.py` maps, `/far/root2/a.py` does not.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._near = {
            far.rstrip("/"): near.rstrip("/")
            for far, near in pairs
            if far.rstrip("/") and far != near
        }
        self._far = sorted(self._near, key=len, reverse=True)
        roots = "|".join(re.escape(far) for far in self._far)
        # Before a root stands nothing that continues a path, but an ANSI code or an escape of a
        # repr may end in a letter.
        before = r"(^|[^\w.\-+~@]|\x1b\[[0-9;]*m|\\[nrt])"
        self._pattern = re.compile(rf"{before}({roots})(?![\w\-+~@]|\.\w)", re.MULTILINE)

    def text(self, text: str) -> str:
        """Return `text` with every root of the far side rewritten."""
        if not any(far in text for far in self._far):
            return text
        return self._pattern.sub(lambda match: match[1] + self._near[match[2]], text)

    def __call__(self, value: T) -> T:
        """Return the same structure with every string mapped, keys too."""
        return map_strings(value, self.text) if self._far else value


def map_strings(
    value: T,
    change: Callable[[str], str],
    change_list: Callable[[list[str]], list[str]] | None = None,
) -> T:
    """Return the same plain structure with `change` applied to every string in it.

    Before that `change_list` is applied to every list of two strings or more, such as lines.
    """
    return _mapped(value, change, change_list)  # type: ignore[return-value]  # of the same types


def _mapped(
    value: object,
    change: Callable[[str], str],
    change_list: Callable[[list[str]], list[str]] | None,
) -> object:
    kind = type(value)  # what JSON gives has no subclasses
    if kind is str:
        return change(value)  # type: ignore[arg-type]  # a str
    if kind is list:
        if not value:
            return value
        items: list[object] = value  # type: ignore[assignment]  # a list
        if change_list is not None and len(items) > 1 and all(type(i) is str for i in items):
            items = [*change_list(items)]  # type: ignore[arg-type]  # strings
        return [_mapped(item, change, change_list) for item in items]
    if kind is dict:
        pairs = value.items()  # type: ignore[attr-defined]
        return {
            change(key): _mapped(item, change, change_list) if item else item for key, item in pairs
        }
    return value
