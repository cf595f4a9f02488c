"""What crosses between the cluster and here: one JSON object per event, and the little that JSON cannot say by itself.

A message on a socket is a line of plain JSON (`encode_line`, `decode_line`). What pytest and its plugins put into a report is
anything at all, so it is first made plain by `to_wire` and rebuilt by `from_wire`; in between it survives any JSON transport.
Imports nothing but the standard library: a keeper without pytest reads it too.
"""

from __future__ import annotations

import enum
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_gpu_cluster.contract.errors import InfrastructureError

VERSION = 1
KINDS = frozenset(
    {
        *("session", "phase", "node", "node_lost", "worker_lost", "retry", "selection_restarted"),
        *(
            "hello",
            "header",
            "warning",
            "collectreport",
            "deselected",
            "collected",
            "output",
            "finishing",
            "summary",
        ),
        *(
            "test_started",
            "test_finished",
            "late",
            "internal_error",
            "interrupted",
            "usage_error",
            "session_finished",
        ),
    }
)
TAGS = frozenset(
    {"$t", "$d"}
)  # of a tuple, and of a mapping that is no JSON object, as the only key of one
DEPTH = 60  # of nested containers; what lies deeper travels as text
DIGITS_BITS = (
    12_000  # integers above this have no decimal form in Python (sys.set_int_max_str_digits)
)


@dataclass(frozen=True)
class Event:
    """One event of a session. `seq` counts without a gap per writer; 0 for events that no journal has seen."""

    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)
    seq: int = 0
    writer: str = ""
    t: float = 0.0  # unix seconds on the writer's clock; for display only

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Event:
        """An event from its JSON object. Raises InfrastructureError for a version or a kind that this code does not know."""
        data = dict(message)
        version, kind = data.pop("v", VERSION), data.pop("kind", None)
        if version != VERSION or kind not in KINDS:
            raise InfrastructureError(
                f"the journal holds an event that this version cannot read: kind {kind!r}, version {version!r}",
                remedy="use the same version of pytest-gpu-cluster on both sides",
            )
        return cls(kind, data, data.pop("seq", 0), data.pop("writer", ""), data.pop("t", 0.0))

    def __getitem__(self, name: str) -> Any:
        return self.kind if name == "kind" else self.data[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.data.get(name, default)


def encode_line(message: Mapping[str, Any]) -> bytes:
    """One line of ASCII JSON; never raises: what is not plain travels as its text."""
    try:
        text = _encoder.encode(message)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(to_wire(message), separators=(",", ":"))
    return text.encode("ascii") + b"\n"


_encoder = json.JSONEncoder(separators=(",", ":"), default=lambda value: text_of(value))


def decode_line(line: bytes | str) -> dict[str, Any]:
    """The message of one line."""
    message: dict[str, Any] = json.loads(line)
    return message


def to_wire(value: object, lossy: list[str] | None = None, depth: int = 0) -> Any:
    """A value as plain JSON. Tuples and odd mappings are tagged, paths become strings, anything else its `str`.

    Each value that had to become text adds its type's name to `lossy`. Never raises.

    >>> to_wire({"a": (1, 2)}), to_wire({1: 2})
    ({'a': {'$t': [1, 2]}}, {'$d': [[1, 2]]})
    """
    kind = type(value)
    if value is None or kind is bool or kind is str or kind is float:
        return value
    if kind is int and isinstance(value, int):
        return value if value.bit_length() < DIGITS_BITS else hex(value)
    if depth < DEPTH:
        try:
            if kind is list and isinstance(value, list):
                return [to_wire(item, lossy, depth + 1) for item in value]
            if isinstance(value, tuple):
                return {"$t": [to_wire(item, lossy, depth + 1) for item in value]}
            if isinstance(value, Mapping):
                if all(type(key) is str for key in value) and not (
                    len(value) == 1 and TAGS & value.keys()
                ):
                    return {key: to_wire(item, lossy, depth + 1) for key, item in value.items()}
                pairs = value.items()
                return {
                    "$d": [
                        [to_wire(key, lossy, depth + 1), to_wire(item, lossy, depth + 1)]
                        for key, item in pairs
                    ]
                }
        except Exception:  # a container that lies about itself is text like anything else
            pass
    if isinstance(value, os.PathLike):
        return text_of(os.fspath(value))
    if isinstance(value, (str, int, float)) and not isinstance(value, enum.Enum):
        return text_of(value) if isinstance(value, str) else _number(value)
    if lossy is not None:
        lossy.append(kind.__qualname__)
    return text_of(value)


def _number(value: float) -> float | int | str:
    """A number of a subclass, such as numpy's, as the plain number that prints alike."""
    try:
        return to_wire(int(value)) if isinstance(value, int) else float(value)
    except Exception:
        return text_of(value)


def text_of(value: object) -> str:
    """`str(value)`, whatever the value does."""
    try:
        return str.__str__(str(value))
    except Exception:
        return f"<unprintable {type(value).__qualname__}>"


def from_wire(value: Any) -> Any:
    """The value that `to_wire` made plain.

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


def _hashable(key: Any) -> Any:
    try:
        hash(key)
    except TypeError:
        return text_of(key)
    return key


class PathMap:
    """Rewrites roots in text, on path boundaries only: `/far/root/a.py` maps, `/far/root2/a.py` does not."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        wanted = {
            far.rstrip("/"): near.rstrip("/")
            for far, near in pairs
            if far.rstrip("/") and far != near
        }
        self._near = wanted
        self._far = sorted(wanted, key=len, reverse=True)
        roots = "|".join(re.escape(far) for far in self._far)
        # Before: nothing that continues a path, but an ANSI code or an escape of a repr may end in a letter.
        self._pattern = re.compile(
            rf"(^|[^\w.\-+~@]|\x1b\[[0-9;]*m|\\[nrt])({roots})(?![\w\-+~@]|\.\w)", re.MULTILINE
        )

    def text(self, text: str) -> str:
        for far in self._far:
            if far in text:
                break
        else:
            return text
        return self._pattern.sub(lambda match: match[1] + self._near[match[2]], text)

    def __call__(self, value: Any) -> Any:
        """The same structure with every string mapped, keys too."""
        return map_strings(value, self.text) if self._far else value


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """The same plain structure with `change` applied to every string in it."""
    kind = type(value)  # what JSON gives has no subclasses
    if kind is str:
        return change(value)
    if kind is list:
        return [map_strings(item, change) for item in value] if value else value
    if kind is dict:
        return {
            change(key): map_strings(item, change) if item else item for key, item in value.items()
        }
    return value


def crash_records(
    nodeid: str,
    location: Sequence[Any],
    *,
    when: str,
    text: str,
    duration_s: float = 0.0,
    sections: Iterable[Sequence[str]] = (),
    earlier: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """The records of a test that could not report itself: FAILED when it died in `call`, ERROR in `setup` or `teardown`.

    `text` is the whole failure, its first line the message of the summary. `earlier` holds what the test had recorded; the
    phases before `when` count as passed, and a teardown always follows, so that JUnit closes the test case.
    """
    records = [dict(record) for record in earlier]
    known = {record["report"]["when"] for record in records if record["kind"] == "report"}
    if not records:
        records.append({"kind": "logstart", "nodeid": nodeid, "location": list(location)})

    def add(phase: str, outcome: str, longrepr: Any = None, seconds: float = 0.0) -> None:
        if phase in known and outcome == "passed":
            return
        report = {
            "$report_type": "TestReport",
            "nodeid": nodeid,
            "location": tuple(location),
            "keywords": {},
            "outcome": outcome,
            "longrepr": longrepr,
            "when": phase,
            "sections": [tuple(section) for section in sections] if longrepr else [],
            "duration": seconds,
            "start": 0.0,
            "stop": 0.0,
            "user_properties": [],
        }
        records.append({"kind": "report", "report": to_wire(report), "status": None})

    for phase in ("setup", "call", "teardown"):
        if phase == when:
            add(phase, "failed", _native(text, location), duration_s)
        elif phase == "teardown" or (phase == "setup" or when == "teardown"):
            add(phase, "passed")
    return [*records, {"kind": "logfinish", "nodeid": nodeid, "location": list(location)}]


def _native(text: str, location: Sequence[Any]) -> dict[str, Any]:
    """`text` in the form in which pytest serialises a native traceback, so that summaries find its first line."""
    entry = {
        "type": "ReprEntryNative",
        "data": {"lines": [f"{line}\n" for line in text.splitlines()]},
    }
    traceback = {"reprentries": [entry], "extraline": None, "style": "native"}
    crash = {
        "path": str(location[0]),
        "lineno": (location[1] or 0) + 1,
        "message": text.partition("\n")[0],
    }
    return {"reprcrash": crash, "reprtraceback": traceback, "sections": [], "chain": None}
