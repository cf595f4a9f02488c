"""Paths of files that one machine names and another writes: which of them no git would make.

A name may have any character but "/" and NUL, control characters and backslashes too, as in git.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection, Iterable, Set

GIT = ".git"
NAME_BYTES = 255  # of one part; every file system of Linux and macOS has this limit
_EMPTY = re.compile(r"(?:\A|/)\.{0,2}(?:/|\Z)|\0")  # an empty part, "." or "..", or a NUL
_MAY_BE_GIT = re.compile(r"(?i)git|[^\x00-\x7f]")  # else no part is read as .git anywhere
_MAY_BE_LONG = re.compile(r"[^/]{64}")  # else no part has more bytes than a name may have
# Characters that HFS+ passes over in a name; git's `is_hfs_dotgit` has the same list.
_UNSEEN = dict.fromkeys(
    [*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF]
)


def refusal(path: str) -> str:
    """Return why a file of this path cannot be written below a directory; "" where it can be.

    >>> refusal("a/b"), refusal("a/../b"), refusal("a/.GIT/x")
    ('', 'leads out of the tree', "is a place in .git, as 'a/.GIT/x' is read on some systems")
    """
    is_plain = path.isascii() and "/." not in path and "//" not in path and "\0" not in path
    if is_plain and path[:1] not in ("", ".", "/") and path[-1] != "/":
        if "git" not in path.lower() and not _MAY_BE_LONG.search(path):
            return ""  # nearly every path, of which a tree has 50,000
    elif _EMPTY.search(path):
        return "leads out of the tree"
    if not path.isascii():
        try:
            os.fsencode(path)
        except UnicodeEncodeError:
            return "is no name here"
    if _MAY_BE_LONG.search(path) and _has_long_name(path):
        return f"has a name of more than {NAME_BYTES} bytes"
    if _MAY_BE_GIT.search(path):
        return _refusal_of_git(path)
    return ""


def _has_long_name(path: str) -> bool:
    return max(len(os.fsencode(part)) for part in path.split("/")) > NAME_BYTES


def _refusal_of_git(path: str) -> str:
    """Return why git would not have this path; a plain `.git` without hooks may be sent."""
    parts = path.split("/")
    if any(part != GIT and names_git(part) for part in parts):
        return f"is a place in {GIT}, as {path!r} is read on some systems"
    hooks = (GIT, "hooks")
    if any((first, second.lower()) == hooks for first, second in itertools.pairwise(parts)):
        return f"is a hook in {GIT}"
    return ""


def names_git(part: str) -> bool:
    """Return True for a name that some file system reads as `.git`: HFS+, NTFS, FAT.

    >>> [names_git(name) for name in (".git", ".Git", "git~1", ".git.", ".gitignore")]
    [True, True, True, True, False]
    """
    name = part.translate(_UNSEEN).lower().partition(":")[0].rstrip(" .")
    return name in (GIT, "git~1")


def clash(paths: Collection[str], folders: Set[str]) -> str:
    """Return why files and links of these paths cannot all be there; "" where they can.

    `folders` are the directories that hold them. A link is no directory: nothing is written
    through it.
    """
    if len({*paths}) == len(paths) and folders.isdisjoint(paths):
        return ""
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            return f"{path!r} is there twice"
        if path in folders:
            return f"{path!r} is a file or a link and has files below it"
        seen.add(path)
    return ""


def folders_of(paths: Iterable[str]) -> set[str]:
    """Return the directories that hold these paths, with those above them; the top is ""."""
    folders = {""}
    unvisited = {path.rpartition("/")[0] for path in paths} - folders
    while unvisited:
        folders |= unvisited
        unvisited = {folder.rpartition("/")[0] for folder in unvisited} - folders
    return folders


def shown_path(path: str) -> str:
    """Return a path as a terminal may have it: on one line, in any encoding.

    >>> shown_path("a/ü"), shown_path("a/\\n")
    ('a/ü', "'a/\\\\n'")
    """
    return path if path.isprintable() else ascii(path)
