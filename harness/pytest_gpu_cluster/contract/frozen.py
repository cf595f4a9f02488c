"""The decorator of frozen dataclasses: the standard one to a type checker, a quick one at run time.

The standard one compiles six methods for each class, 0.5 ms at every start of a process, and a
client imports seventy of them before its first line. Here the constructor alone is compiled, a
fifth of that. That nobody assigns to a field is left to the type checker.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

T = TypeVar("T")
__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls: type[T] | None = None, /, **how: bool) -> type[T] | Callable[..., type[T]]:
        """Make a class a dataclass: one that is frozen, and nothing more, in the quick way."""
        if cls is not None or not how.get("frozen") or how.keys() - {"frozen", "kw_only"}:
            return dataclasses.dataclass(cls, **how)
        return partial(_quick, kw_only=how.get("kw_only", False))


def _quick(cls: type[T], *, kw_only: bool) -> type[T]:
    made = dataclasses.dataclass(kw_only=kw_only, repr=False, eq=False)(cls)
    for name, method in METHODS.items():
        if name not in vars(cls):
            setattr(made, name, method)
    return made


def _values(instance: Any) -> list[object]:
    return [getattr(instance, name) for name in instance.__dataclass_fields__]


def _repr(self: Any) -> str:
    shown = [
        f"{each.name}={getattr(self, each.name)!r}"
        for each in dataclasses.fields(self)
        if each.repr
    ]
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _eq(self: Any, other: object) -> bool:
    return _values(self) == _values(other) if type(self) is type(other) else NotImplemented


def _hash(self: Any) -> int:
    return hash(tuple(_values(self)))


METHODS = {"__repr__": _repr, "__eq__": _eq, "__hash__": _hash}
