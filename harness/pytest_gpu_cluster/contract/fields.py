"""Nouns that are stored or sent as one JSON object, a key for each field.

`to_json` and `from_json` are derived from the fields of a frozen dataclass. What is read is
checked: a missing or unknown key, or a value of another type, is a FieldError that names the noun,
the key and the value.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from enum import Enum
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    ClassVar,
    Literal,
    Self,
    TypeAlias,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from pytest_gpu_cluster.contract.frozen import dataclass

if TYPE_CHECKING:
    JsonValue: TypeAlias = (
        "dict[str, JsonValue] | list[JsonValue] | str | int | float | bool | None"
    )
else:
    JsonValue = object  # any JSON value; the recursive type is for the type checker alone
JsonObject: TypeAlias = dict[str, JsonValue]

Convert = Callable[[object], object]
SHOWN_CHARS = 80  # of a value in an error


class FieldError(ValueError):
    """A JSON value is not the noun that was expected."""


def alias(key: str) -> Mapping[str, str]:
    """Metadata of a field whose JSON key has another name."""
    return {"key": key}


def outside() -> Mapping[str, str]:
    """Metadata of a field that is no part of the JSON object: whoever reads it fills it in."""
    return {"outside": "yes"}


class Noun:
    """Base of the frozen dataclasses that cross a process or the store."""

    sparse: ClassVar[bool] = False  # True: a field with its default is left out, but for `v`

    def to_json(self) -> JsonObject:
        """Return the JSON object of this noun."""
        result: JsonObject = {}
        for each in _plan(type(self)).fields:
            value = getattr(self, each.name)
            if self.sparse and value == each.default and each.key != "v":
                continue
            encoded = value if each.encode is None else each.encode(value)
            result[each.key] = encoded  # type: ignore[assignment]  # JSON by its type
        return result

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Return the noun of a JSON object. Raises FieldError."""
        if not isinstance(value, dict):
            raise FieldError(f"{cls.__name__}: expected an object, got {shown(value)}")
        plan = _plan(cls)
        arguments: dict[str, object] = {}
        for key, item in value.items():
            each = plan.by_key.get(key)
            if each is None:
                raise FieldError(f"{cls.__name__}: unknown key {shown(key)}")
            try:
                arguments[each.name] = item if each.decode is None else each.decode(item)
            except FieldError as problem:
                raise FieldError(f"{cls.__name__}.{key}: {problem}") from None
        if missing := plan.required - value.keys():
            raise FieldError(f"{cls.__name__}: missing key {shown(min(missing))}")
        return cls(**arguments)


def value_of(hint: object, value: object) -> object:
    """Return a JSON value as the type of a field. Raises FieldError."""
    decode = _decoder(hint)
    return value if decode is None else decode(value)


def shown(value: object) -> str:
    """Return a value for an error message, abridged."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} of too many levels"
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1]}…"


@dataclass(frozen=True)
class _Field:
    name: str
    key: str
    default: object  # MISSING: the key is required
    encode: Convert | None  # None: the value is JSON already
    decode: Convert | None  # None: any JSON value


@dataclass(frozen=True)
class _Plan:
    fields: tuple[_Field, ...]
    by_key: Mapping[str, _Field]
    required: frozenset[str]


_plans: dict[type[Noun], _Plan] = {}


def _plan(noun: type[Noun]) -> _Plan:
    if noun not in _plans:
        _plans[noun] = _derive(noun)
    return _plans[noun]


def _derive(noun: type[Noun]) -> _Plan:
    hints = get_type_hints(noun)
    fields = tuple(
        _Field(
            name=each.name,
            key=each.metadata.get("key", each.name),
            default=each.default if each.default_factory is MISSING else each.default_factory(),
            encode=_encoder(hints[each.name]),
            decode=_decoder(hints[each.name]),
        )
        # Every subclass is a dataclass.
        for each in dataclasses.fields(noun)  # type: ignore[arg-type]
        if "outside" not in each.metadata
    )
    required = frozenset(each.key for each in fields if each.default is MISSING)
    return _Plan(fields, {each.key: each for each in fields}, required)


def _encoder(hint: object) -> Convert | None:
    """Return the conversion of a value of this type to JSON; None where it is JSON already."""
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Noun):
        return lambda value: cast(Noun, value).to_json()
    if isinstance(hint, type) and issubclass(hint, Path):
        return str
    if origin in (Union, types.UnionType):
        return next(filter(None, map(_encoder_or_none, args)), None)
    if origin is tuple:
        return functools.partial(_list_of, _encoder(args[0]))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return functools.partial(_object_of, _encoder(args[1]))
    if isinstance(origin, type) and origin is not list and issubclass(origin, Sequence):
        return functools.partial(_list_of, None)
    return None


def _encoder_or_none(hint: object) -> Convert | None:
    convert = _encoder(hint)
    return None if convert is None else lambda value: None if value is None else convert(value)


def _list_of(item: Convert | None, value: object) -> object:
    parts = cast("Sequence[object]", value)
    return list(parts) if item is None else [item(part) for part in parts]


def _object_of(item: Convert | None, value: object) -> object:
    pairs = cast("Mapping[str, object]", value).items()
    return dict(pairs) if item is None else {key: item(part) for key, part in pairs}


def _decoder(hint: object) -> Convert | None:
    """Return the conversion of a JSON value to this type, which raises FieldError.

    None where any value will do.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is object:
        return None
    if origin is Literal:
        return functools.partial(_one_of, args)
    if origin in (Union, types.UnionType):
        return _union(args)
    if origin is tuple:
        return _tuple(args)
    if origin is not None and issubclass(origin, Mapping):
        return functools.partial(_mapping, _decoder(args[1]))
    if origin is not None and issubclass(origin, Sequence):
        return _objects if _is_record(args[0]) else functools.partial(_list, _decoder(args[0]))
    if is_typeddict(hint):
        return functools.partial(_scalar, dict, "an object")
    if isinstance(hint, type):
        return _of_class(hint)
    raise TypeError(f"a noun cannot have a field of type {hint!r}")


def _of_class(hint: type) -> Convert:
    if issubclass(hint, Noun):
        return hint.from_json
    if issubclass(hint, Enum):
        return functools.partial(_enum, hint)
    if issubclass(hint, Path):
        return lambda value: hint(str(_scalar(str, "a path", value)))
    if hint is float:
        return _float
    names = {str: "a text", int: "a whole number", bool: "true or false", dict: "an object"}
    return functools.partial(_scalar, hint, names.get(hint, hint.__name__))


def _scalar(kind: type, name: str, value: object) -> object:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise FieldError(f"expected {name}, got {shown(value)}")
    return value


def _float(value: object) -> object:
    if not isinstance(value, bool) and isinstance(value, int | float):
        with contextlib.suppress(OverflowError):  # of an integer
            if math.isfinite(number := float(value)):
                return number
    raise FieldError(f"expected a number, got {shown(value)}")


def _enum(kind: type[Enum], value: object) -> object:
    try:
        return kind(value)
    except ValueError:
        names = ", ".join(str(member.value) for member in kind)
        raise FieldError(f"expected one of {names}, got {shown(value)}") from None


def _one_of(values: tuple[object, ...], value: object) -> object:
    if value not in values:
        raise FieldError(f"expected one of {', '.join(map(str, values))}, got {shown(value)}")
    return value


def _union(args: tuple[object, ...]) -> Convert | None:
    """A union is None or one other type, or several plain types of which one must fit."""
    decoders = [_decoder(each) for each in args if each is not types.NoneType]
    optional = types.NoneType in args
    if any(decode is None for decode in decoders):
        return None

    def decode(value: object) -> object:
        if optional and value is None:
            return None
        for number, each in enumerate(decoders, 1):
            try:
                return each(value)  # type: ignore[misc]  # none of them is None
            except FieldError:
                if number == len(decoders):
                    raise
        return None

    return decode


def _is_record(hint: object) -> bool:
    """Return True for one kind of record, or a union of kinds: each is a JSON object."""
    return is_typeddict(hint) or (
        get_origin(hint) in (Union, types.UnionType) and all(map(is_typeddict, get_args(hint)))
    )


def _objects(value: object) -> object:
    """Check a list of records, of which every test has several."""
    items = _items(value)
    if {*map(type, items)} - {dict}:
        return [_scalar(dict, "an object", each) for each in items]
    return items


def _items(value: object) -> list[object]:
    if not isinstance(value, list | tuple):
        raise FieldError(f"expected a list, got {shown(value)}")
    return list(value)


def _list(item: Convert | None, value: object) -> object:
    items = _items(value)
    return items if item is None else [item(each) for each in items]


def _tuple(args: tuple[object, ...]) -> Convert:
    if len(args) == 2 and args[1] is Ellipsis:
        item = _decoder(args[0])
        return lambda value: tuple(_list(item, value))  # type: ignore[arg-type]  # a list
    decoders = [_decoder(each) for each in args]

    def decode(value: object) -> object:
        items = _items(value)
        if len(items) != len(decoders):
            raise FieldError(f"expected {len(decoders)} values, got {shown(value)}")
        pairs = zip(decoders, items, strict=True)
        return tuple(item if each is None else each(item) for each, item in pairs)

    return decode


def _mapping(item: Convert | None, value: object) -> object:
    if not isinstance(value, dict):
        raise FieldError(f"expected an object, got {shown(value)}")
    return value if item is None else {key: item(each) for key, each in value.items()}
