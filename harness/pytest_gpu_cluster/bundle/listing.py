"""Which files belong to a working tree: what git tracks or would add; without git, everything but litter."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from pytest_gpu_cluster.contract.errors import RequestError

LITTER = frozenset(
    {
        *(".git", ".hg", ".svn", "__pycache__", "node_modules"),
        *(
            ".pytest_cache",
            ".mypy_cache",
            ".ruff_cache",
            ".hypothesis",
            ".tox",
            ".nox",
            ".ipynb_checkpoints",
        ),
    }
)
_VENV_MARK = "pyvenv.cfg"
_GITLINK = b"160000"  # the mode under which git records a submodule
# A hook runs with these set for its own repository; `git rev-parse --local-env-vars` lists them.
_GIT_OWN = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
)


def listing(root: Path, *, include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Paths relative to `root`, `/` between their parts, sorted; bytes that are not UTF-8 as `os.fsdecode` has them.

    A listed path may be gone, a directory or a pipe by now. Raises RequestError when git is there but cannot answer.
    """
    paths = (
        _git(root) if any((above / ".git").exists() for above in (root, *root.parents)) else set()
    )
    # A root that an outer repository ignores altogether, such as a project below a versioned home, is not under git.
    paths = paths or set(_walk(root, ""))
    for pattern in include:
        wanted = matcher([pattern])
        paths.update(path for path in _walk(root, _fixed_part(pattern)) if wanted(path))
    unwanted = matcher(exclude)
    return sorted(path for path in paths if not unwanted(path))


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a path, or a directory above it, fits one of `patterns`.

    `*` and `?` stay within one part of a path, `**` stands for any number of parts, a pattern of a single part holds
    at any depth, and one that ends in `/` means directories: all as in `.gitignore`.

    >>> [path for path in ("a/b.bin", "a/c/d.bin", "e.bin") if matcher(["a/*.bin", "c"])(path)]
    ['a/b.bin', 'a/c/d.bin']
    """
    split = [_parts(pattern) for pattern in patterns]
    return lambda path: any(_fits(path.split("/"), parts) for parts in split)


def _parts(pattern: str) -> list[str]:
    parts = [part for part in pattern.split("/") if part not in ("", ".")] + [
        "**"
    ] * pattern.endswith("/")
    return parts if "/" in pattern.rstrip("/") else ["**", *parts]


def _fits(path: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return True
    if not path:
        return False
    if pattern[0] == "**":
        return len(pattern) == 1 or any(
            _fits(path[above:], pattern[1:]) for above in range(len(path))
        )
    return fnmatchcase(path[0], pattern[0]) and _fits(path[1:], pattern[1:])


def _fixed_part(pattern: str) -> str:
    """The part of a pattern before its first wildcard: where a search for it starts. "" for one that holds anywhere."""
    return "/".join(
        itertools.takewhile(lambda part: not re.search(r"[*?\[]", part), _parts(pattern))
    )


def _walk(root: Path, start: str) -> Iterator[str]:
    """Everything below `start`, or `start` itself when it is no directory; litter and virtual environments left out."""
    top = root / start
    if top.is_symlink() or not top.is_dir():
        if start and os.path.lexists(top):
            yield start
        return
    try:
        entries = list(os.scandir(top))
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise RequestError(
            f"{top} cannot be read: {error.strerror}",
            remedy=f"mend its permissions, or add {start!r} to exclude",
        ) from error
    for entry in entries:
        path = f"{start}/{entry.name}" if start else entry.name
        if entry.name in LITTER:
            continue
        if not entry.is_dir(follow_symlinks=False):
            yield path
        elif not os.path.lexists(root / path / _VENV_MARK):
            yield from _walk(root, path)


def _git(top: Path) -> set[str]:
    """What git tracks below `top` or would add, submodules and repositories inside it too."""
    tracked: set[str] = set()
    untracked: set[str] = set()
    inner: set[str] = set()
    for record in _ask_git(top).split(b"\0"):
        tag, _, rest = record.partition(b" ")
        if tag == b"?":
            (inner if rest.endswith(b"/") else untracked).add(os.fsdecode(rest).rstrip("/"))
        elif tag:
            facts, _, path = rest.partition(b"\t")
            (inner if facts.startswith(_GITLINK) else tracked).add(os.fsdecode(path))
    found = tracked | _without_litter(untracked)
    for name in inner:
        if (top / name / ".git").exists():  # else a submodule that was never checked out
            found.update(f"{name}/{path}" for path in _git(top / name))
    return found


def _ask_git(top: Path) -> bytes:
    # -t and -s together tell the tracked ("H 100644 <object> 0\t<path>") from the others ("? <path>") in one call.
    command = ["git", "ls-files", "-z", "-t", "-s", "--cached", "--others", "--exclude-standard"]
    environ = {name: value for name, value in os.environ.items() if name not in _GIT_OWN}
    try:
        return subprocess.run(command, cwd=top, env=environ, capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise RequestError(
            f"{top} is in a git repository, but there is no git to say which files belong to it",
            remedy="install git",
        ) from error
    except subprocess.CalledProcessError as error:
        said = os.fsdecode(error.stderr).strip()
        raise RequestError(
            f"git ls-files failed in {top}: {said}",
            remedy=f"make `git -C {top} status` work, then run again",
        ) from error


def _without_litter(paths: Iterable[str]) -> set[str]:
    """Without what nobody wants and not every .gitignore names: caches, and virtual environments by their mark."""
    paths = set(paths)
    environments = tuple(
        path.removesuffix(_VENV_MARK) for path in paths if path.endswith(f"/{_VENV_MARK}")
    )
    return {
        path
        for path in paths
        if LITTER.isdisjoint(path.split("/")) and not path.startswith(environments)
    }
