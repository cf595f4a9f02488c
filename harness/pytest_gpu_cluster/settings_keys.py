"""The keys of a settings table: for each the values that it takes, and how a text becomes one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PREFIX = "GPU_CLUSTER_"  # of the environment variable of a key


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key. A message names what is `expected`.

    `read` checks a value of a TOML file and raises ValueError, whose text is a hint or empty.
    `from_text` parses an environment variable; `read` checks its result. `resolve` completes the
    value that holds in the end, from the project and the environment; it raises RequestError.
    """

    expected: str
    read: Callable[[object], object]
    from_text: Callable[[str], object] = str
    resolve: Callable[[object, Path, Mapping[str, str]], object] | None = None


def suggest(name: str, candidates: Iterable[str]) -> str:
    """Return a question that names the candidate nearest to `name`, or ""."""
    from difflib import get_close_matches  # only when something is wrong

    matches = get_close_matches(name, list(candidates), n=1)
    return "".join(f"did you mean {match}?" for match in matches)


def number_from_text(text: str) -> object:
    """Return the number in `text`, or `text` when it is none."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def read_text(value: object) -> str:
    """Return a string. Raises ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError
    return value


def whole(least: int) -> Key:
    """Return a key for a whole number of at least `least`."""

    def read(value: object) -> int:
        if type(value) is not int or value < least:  # a bool is an int to isinstance
            raise ValueError
        return value

    return Key(expected=f"a whole number, {least} or more", read=read, from_text=number_from_text)


def number(*, zero: bool) -> Key:
    """Return a key for a finite number above 0, or 0 too."""

    def read(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise ValueError
        return float(value)

    expected = f"a number, {'0 or more' if zero else 'more than 0'}"
    return Key(expected=expected, read=read, from_text=number_from_text)


def flag() -> Key:
    """Return a key for true or false."""

    def read(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    texts: dict[str, object] = {"true": True, "1": True, "false": False, "0": False}
    return Key(
        expected="true or false", read=read, from_text=lambda text: texts.get(text.lower(), text)
    )


def strings(expected: str, *, relative: bool = False) -> Key:
    """Return a key for a list of strings; with `relative`, of paths that may begin with ../."""

    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise ValueError
        if relative and not all(is_inside(re.sub(r"\A(?:\.\./)+", "", item)) for item in value):
            raise ValueError
        return tuple(value)

    def from_text(text: str) -> object:
        return [item.strip() for item in text.split(",") if item.strip()]

    return Key(expected=expected, read=read, from_text=from_text)


def one_of(*words: str) -> Key:
    """Return a key for one of these words."""

    def read(value: object) -> str:
        text = read_text(value)
        if text not in words:
            raise ValueError(suggest(text, words))
        return text

    return Key(expected=" or ".join(f'"{word}"' for word in words), read=read)


def matching(pattern: str, *, expected: str) -> Key:
    """Return a key for a string that matches `pattern` as a whole."""

    def read(value: object) -> str:
        text = read_text(value)
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return Key(expected=expected, read=read)


def is_inside(path: str) -> bool:
    """Return whether a path is relative and does not lead out of its directory."""
    return not path.startswith(("/", "~")) and ".." not in path.split("/")
