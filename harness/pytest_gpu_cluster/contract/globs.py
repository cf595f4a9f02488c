"""The globs of the settings, on both sides: `include`, `exclude`, `allow-files`, `outputs`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Return a predicate: a path, or a directory above it, matches one of `patterns`.

    Patterns are as in `.gitignore`: `*` and `?` stay within a part of the path, `**` stands for any
    number of parts, a pattern of a single part holds at any depth, and a `/` at the end means a
    directory.

    >>> [path for path in ("a/b.bin", "a/c/d.bin", "e.bin") if matcher(["a/*.bin", "c"])(path)]
    ['a/b.bin', 'a/c/d.bin']
    """
    split = [parts_of(pattern) for pattern in patterns]
    return lambda path: any(_matches(path.split("/"), parts) for parts in split)


def parts_of(pattern: str) -> list[str]:
    """Return the parts of a pattern; it begins with `**` where it holds at any depth."""
    parts = [part for part in pattern.split("/") if part not in ("", ".")] + [
        "**"
    ] * pattern.endswith("/")
    return parts if "/" in pattern.rstrip("/") else ["**", *parts]


def _matches(path: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return True
    if not path:
        return False
    if pattern[0] == "**":
        return len(pattern) == 1 or any(
            _matches(path[start:], pattern[1:]) for start in range(len(path))
        )
    return fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])
