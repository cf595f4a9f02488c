"""The directory that settings belong to, and the tree that is sent.

A project is the directory of the nearest pyproject.toml with a table [tool.gpu-cluster], looked for
upwards. Its settings hold, and their relative paths begin there. The rule is the same for pytest
and for the command `gpu-cluster`; only where they begin to look differs.
"""

from __future__ import annotations

import os
import posixpath
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.settings import FileSettings, SentTree

PYPROJECT = "pyproject.toml"
TABLE = "gpu-cluster"


@dataclass(frozen=True, kw_only=True)
class ProjectDirectory:
    """Where the settings of a run come from, and what was looked at and is not read."""

    root: Path
    configured: bool  # its pyproject.toml has [tool.gpu-cluster]
    unread: tuple[Path, ...] = ()  # other files with that table, which somebody may expect to hold


def find_project(start: Path) -> ProjectDirectory:
    """Return the project of a directory. Raises RequestError for a table that cannot be read.

    Without any table it is the top of the git repository, else the directory of the nearest
    pyproject.toml, else `start` itself.
    """
    if (table := _nearest_table(start)) is not None:
        return ProjectDirectory(root=table, configured=True)
    top = git_top(start)
    if top is None:
        top = next((path for path in _upwards(start) if (path / PYPROJECT).is_file()), start)
    return ProjectDirectory(root=top, configured=False)


def project_of_run(rootdir: Path, invocation_dir: Path, named: Iterable[Path]) -> ProjectDirectory:
    """Return the project of a pytest run whose arguments name the paths `named`.

    The search begins in the directory where pytest was started, as that of `gpu-cluster` does, or
    in pytest's rootdir where that lies elsewhere. Raises RequestError.
    """
    inside = invocation_dir.is_relative_to(rootdir)
    found = find_project(invocation_dir if inside else rootdir)
    folders = (path if path.is_dir() else path.parent for path in named)
    above = {*rootdir.parents} & {*found.root.parents}  # they would lose against either anyway
    places = {
        path
        for start in (rootdir, invocation_dir, *folders)
        for path in _upwards(start)
        if path not in above
    }
    nearest = _nearest_table(invocation_dir)
    others = {path for path in places if has_table(path)} | ({nearest} if nearest else set())
    unread = tuple(path / PYPROJECT for path in sorted(others - {found.root}))
    return replace(found, unread=unread)


def unread_note(project: ProjectDirectory, invocation_dir: Path) -> str:
    """Return the words on tables that are not read, with paths as seen from a directory."""

    def seen(path: Path) -> str:
        return os.path.relpath(path, invocation_dir)

    if not project.unread:
        return ""
    read = seen(project.root / PYPROJECT) if project.configured else "none"
    return f"settings: {read}; not read: {', '.join(map(seen, project.unread))}"


def command(project: Path, invocation_dir: Path) -> str:
    """Return the words that begin a `gpu-cluster` command about a project.

    Whoever pastes it where pytest was started reaches the store of the run.
    """
    if find_project(invocation_dir).root == project:
        return "gpu-cluster"
    return f"gpu-cluster -C {shlex.quote(os.path.relpath(project, invocation_dir))}"


def git_top(start: Path) -> Path | None:
    """Return the top of the git repository or worktree that `start` lies in."""
    return next((path for path in _upwards(start) if (path / ".git").exists()), None)


def has_table(directory: Path) -> bool:
    """Return whether the pyproject.toml of a directory has the table. Raises RequestError."""
    path = directory / PYPROJECT
    try:
        mentioned = TABLE.encode() in path.read_bytes()
    except OSError:
        return False
    tool = read_toml(path).get("tool") if mentioned else None
    return isinstance(tool, dict) and TABLE in tool


def read_toml(path: Path) -> dict[str, object]:
    """Return the content of a TOML file; nothing where it does not exist. Raises RequestError."""
    import tomllib  # 1.5 ms that a pytest without this plugin's flag need not pay

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read: {error}", remedy=f"mend {path}") from error


def _nearest_table(start: Path) -> Path | None:
    return next((path for path in _upwards(start) if has_table(path)), None)


def _upwards(start: Path) -> Iterator[Path]:
    yield from (start, *start.parents)


# --- what is sent --------------------------------------------------------------------------------


def sent_tree(
    rootdir: Path,
    project: ProjectDirectory,
    *,
    tree: Literal["project", "git"],
    files: FileSettings,
) -> SentTree:
    """Return the directory that is sent, and its globs relative to it. Raises RequestError.

    It is the project's, or the top of its git repository. Without a table it is pytest's rootdir,
    so that nobody sends a large repository without having said so. Directories that `include` names
    outside of it come along: then the tree begins at the nearest directory above them all.
    """
    home = project.root if project.configured else rootdir
    chosen = home
    if tree == "git":
        top = git_top(home)
        if top is None:
            raise RequestError(
                f'tree is "git", but {home} is in no git repository',
                remedy='set tree = "project", or name what is missing in include = [...]',
            )
        chosen = top
    chosen = _common([chosen, rootdir])
    outside = [home / above for glob in files.include if (above := _parts(glob)[0])]
    top = _common([chosen, *(Path(os.path.normpath(path)) for path in outside)])
    if outside and top == Path(top.anchor):
        raise RequestError(
            f"include leads from {home} up to {top}, and so all the way of a path would be sent",
            remedy="keep what the tests need nearer: below one directory with the project",
        )
    at, start = home.relative_to(top).as_posix(), chosen.relative_to(top).as_posix()
    start = "" if start == "." else start
    return SentTree(
        top=top,
        start=start,
        files=FileSettings(
            include=_moved("include", files.include, at, alone=f"{start}/**/" if start else ""),
            exclude=_moved("exclude", files.exclude, at),
            allow_files=_moved("allow-files", files.allow_files, at),
            outputs=_moved("outputs", files.outputs, at),
        ),
    )


def _common(paths: Sequence[Path]) -> Path:
    return Path(os.path.commonpath(paths))


def _parts(glob: str) -> tuple[str, str]:
    """Return the leading `../` of a glob, and the rest.

    >>> _parts("../../libs/**"), _parts("./data/*")
    (('../../', 'libs/**'), ('', 'data/*'))
    """
    plain = re.sub(r"\A(?:\./)+", "", glob)
    above = re.match(r"(?:\.\./)*", plain)
    assert above is not None
    return above[0], plain[above.end() :]


def _moved(key: str, globs: Iterable[str], at: str, *, alone: str = "") -> tuple[str, ...]:
    """Return globs that are relative to the directory `at` of the tree, relative to its top.

    One of a single part holds at any depth, in the whole tree or below `alone`.
    """
    moved = []
    for glob in globs:
        above, rest = _parts(glob)
        if not above and "/" not in rest.rstrip("/"):
            moved.append(f"{alone}{rest}")
            continue
        place = posixpath.normpath(posixpath.join(at, above))
        if place == ".." or place.startswith("../"):
            raise RequestError(
                f"{key} {glob!r} leads out of the tree that is sent",
                remedy=f"remove it from {key}, or send more: by tree or include",
            )
        moved.append(rest if place == "." else f"{place}/{rest}")
    return tuple(moved)
