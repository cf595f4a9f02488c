"""The records of an event as the journal has them: each is checked before anything is made of it.

A process that tells records to its agent is trusted to know its own types, and the agent is not
slowed by it; whoever reads them in the store is not that process.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import (
    Literal,
    NamedTuple,
    NotRequired,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from pytest_gpu_cluster.contract.fields import FieldError, shown
from pytest_gpu_cluster.contract.records import Location, ReportData

Check = Callable[[object], None]  # raises FieldError

# What pytest's serialiser and plugins put into a report may be anything; this much is read here.
_OF_REPORT = {"nodeid": (str,), "outcome": (str,), "duration": (int, float, types.NoneType)}
_OF_LOCATION = (str, int, types.NoneType)


class _Keys(NamedTuple):
    """The keys of one kind of record."""

    required: frozenset[str]
    types: Mapping[str, tuple[type, ...]]  # a key that is not in it may have any value
    deeper: tuple[tuple[str, Check], ...]


LAST_SECOND = 253_402_300_800  # of the year 9999, in unix seconds: calendars end there


def is_time(value: object) -> bool:
    """Return True for unix seconds that a calendar has."""
    return isinstance(value, float | int) and 0 <= value < LAST_SECOND


def check_records(event: object) -> None:
    """Check the records of an event. Raises FieldError that names the key."""
    kind = type(event)
    if kind not in _checks:
        _checks[kind] = _checks_of(kind)
    for name, check in _checks[kind]:
        try:
            check(getattr(event, name))
        except FieldError as problem:
            raise FieldError(f"{type(event).__name__}.{name}: {problem}") from None


_checks: dict[type, tuple[tuple[str, Check], ...]] = {}  # by the class of an event


def _checks_of(kind: type) -> tuple[tuple[str, Check], ...]:
    """Return the fields of an event that hold records, each with its check."""
    hints = get_type_hints(kind)
    return tuple((name, check) for name, hint in hints.items() if (check := _of(hint)) is not None)


def _of(hint: object) -> Check | None:
    """Return the check of a type; None for one whose values the noun has checked, or that is free.

    >>> _of(str), _of(object)
    (None, None)
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint == Location:
        return _location
    if is_typeddict(hint):
        return functools.partial(_record, _keys(cast(type, hint)))
    if origin in (Union, types.UnionType) and all(map(is_typeddict, args)):
        return functools.partial(_one_of, _by_kind(args))
    if isinstance(origin, type) and issubclass(origin, Sequence) and origin is not tuple:
        item = _text if args[0] is str else _of(args[0])
        return None if item is None else functools.partial(_each, item)
    return None


def _by_kind(records: Sequence[type]) -> Mapping[str, _Keys]:
    """Return the keys of each record by the words of its key `kind`."""
    return {
        word: _keys(record)
        for record in records
        for word in get_args(get_type_hints(record)["kind"])
    }


def _keys(record: type) -> _Keys:
    if record is ReportData:
        return _Keys(frozenset({"nodeid", "outcome", "longrepr"}), _OF_REPORT, ())
    hints = get_type_hints(record)
    marked = get_type_hints(record, include_extras=True)
    required = frozenset(name for name in hints if get_origin(marked[name]) is not NotRequired)
    plain = {name: kinds for name, hint in hints.items() if (kinds := _types(hint))}
    deeper = tuple((name, check) for name, hint in hints.items() if (check := _of(hint)))
    return _Keys(required, plain, deeper)


def _types(hint: object) -> tuple[type, ...]:
    """Return the classes of a value in JSON; none where it may be anything."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return (str,)
    if origin in (Union, types.UnionType):
        parts = [_types(each) for each in args]
        return tuple(kind for part in parts for kind in part) if all(parts) else ()
    if origin is dict:
        return (dict,)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return (list,)
    if is_typeddict(hint):
        return (dict,)
    return (hint,) if isinstance(hint, type) and hint is not object else ()


def _record(keys: _Keys, record: object) -> None:
    if type(record) is not dict:
        raise FieldError(f"expected an object, got {shown(record)}")
    if missing := keys.required - record.keys():
        raise FieldError(f"missing key {shown(min(missing))}")
    for name, kinds in keys.types.items():
        if name in record and not isinstance(record[name], kinds):
            raise FieldError(f"{name} is {shown(record[name])}")
    for name, check in keys.deeper:
        if name in record:
            check(record[name])


def _one_of(kinds: Mapping[str, _Keys], record: object) -> None:
    kind = record.get("kind") if isinstance(record, dict) else None
    keys = kinds.get(kind) if isinstance(kind, str) else None
    if keys is None:
        raise FieldError(f"a record of unknown kind: {shown(kind)}")
    _record(keys, record)


def _each(check: Check, values: object) -> None:
    for value in cast(Sequence[object], values):
        check(value)


def _text(value: object) -> None:
    if not isinstance(value, str):
        raise FieldError(f"expected a text, got {shown(value)}")


def _location(value: object) -> None:
    """Check a place: file, line or None, name."""
    if not isinstance(value, list) or len(value) != 3:
        raise FieldError(f"expected a file, a line and a name, got {shown(value)}")
    for part in value:
        if not isinstance(part, _OF_LOCATION):
            raise FieldError(f"expected a file, a line and a name, got {shown(value)}")
