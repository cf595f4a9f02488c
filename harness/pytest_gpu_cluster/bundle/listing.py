"""The files of a working tree: what git tracks or would add; without git, all but litter."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.globs import matcher, parts_of
from pytest_gpu_cluster.contract.tree_paths import refusal

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
            ".gpu-cluster",  # a store of this package
        ),
    }
)
_VENV_MARK = "pyvenv.cfg"
_GITLINK = "160000"  # the mode under which git records a submodule
# A git hook has these set for its repository; `git rev-parse --local-env-vars` lists them.
GIT_VARIABLES = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
)


def listing(
    root: Path, *, start: str = "", include: Sequence[str], exclude: Sequence[str]
) -> list[str]:
    """Return paths relative to `root`, sorted, with `/` between parts, decoded by `os.fsdecode`.

    They lie below the directory `start`, or match `include`. By now a path may have vanished, or be
    a directory or a pipe. Raises RequestError when `start` is in a git repository and git fails.
    """
    top = root / start
    in_repository = any((folder / ".git").exists() for folder in (top, *top.parents))
    paths = _git_paths(top) if in_repository else set()
    if start:
        paths = {f"{start}/{path}" for path in paths}
    # A project below a versioned home directory may be ignored there altogether: then walk it.
    paths = paths or set(_walk(root, start))
    for pattern in include:
        is_included = matcher([pattern])
        paths.update(path for path in _walk(root, _fixed_part(pattern)) if is_included(path))
    if not exclude:
        return sorted(paths)
    is_excluded = matcher(exclude)
    return sorted(path for path in paths if not is_excluded(path))


def _fixed_part(pattern: str) -> str:
    """Return the part of a pattern before its first wildcard; "" if it holds at any depth."""
    return "/".join(
        itertools.takewhile(lambda part: not re.search(r"[*?\[]", part), parts_of(pattern))
    )


def _walk(root: Path, start: str) -> Iterator[str]:
    """Yield files below `start`, or `start` if it is a file, without litter and environments."""
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
        if entry.name in LITTER or refusal(path):
            continue
        if not entry.is_dir(follow_symlinks=False):
            yield path
        elif not os.path.lexists(root / path / _VENV_MARK):
            yield from _walk(root, path)


def _git_paths(top: Path) -> set[str]:
    """Return what git tracks or would add below `top`, in submodules and inner repositories too."""
    tracked: set[str] = set()
    untracked: set[str] = set()
    inner: set[str] = set()
    for record in os.fsdecode(_git_ls_files(top)).split("\0"):
        tag, _, rest = record.partition(" ")
        if tag == "?":
            (inner if rest.endswith("/") else untracked).add(rest.rstrip("/"))
        elif tag:
            fields, _, path = rest.partition("\t")
            (inner if fields.startswith(_GITLINK) else tracked).add(path)
    paths = tracked | _without_litter(untracked)
    for name in inner:
        if (top / name / ".git").exists():  # else a submodule that was never checked out
            paths.update(f"{name}/{path}" for path in _git_paths(top / name))
    return paths


def _git_ls_files(top: Path) -> bytes:
    # With -t and -s, one call distinguishes tracked files ("H 100644 <object> 0\t<path>") from
    # others ("? <path>").
    command = ["git", "ls-files", "-z", "-t", "-s", "--cached", "--others", "--exclude-standard"]
    environ = {name: value for name, value in os.environ.items() if name not in GIT_VARIABLES}
    try:
        return subprocess.run(command, cwd=top, env=environ, capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise RequestError(
            f"{top} is in a git repository, but there is no git to say which files belong to it",
            remedy="install git",
        ) from error
    except subprocess.CalledProcessError as error:
        raise RequestError(
            f"git ls-files failed in {top}: {os.fsdecode(error.stderr).strip()}",
            remedy=f"make `git -C {top} status` work, then run again",
        ) from error


def _without_litter(paths: Iterable[str]) -> set[str]:
    """Return `paths` without caches and virtual environments, which not every .gitignore names."""
    paths = set(paths)
    environments = tuple(
        path.removesuffix(_VENV_MARK) for path in paths if path.endswith(f"/{_VENV_MARK}")
    )
    return {
        path
        for path in paths
        if LITTER.isdisjoint(path.split("/"))
        and not path.startswith(environments)
        and not refusal(path)  # such as .GIT, which git would not add here
    }
