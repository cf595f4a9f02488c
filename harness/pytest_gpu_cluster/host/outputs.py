"""The last lines about files: what came home, what was kept, what stays in the record."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Sequence

from pytest_gpu_cluster.contract.outputs import REST_BYTES, REST_FILES, WANTED_BYTES
from pytest_gpu_cluster.contract.tree_paths import shown_path
from pytest_gpu_cluster.outputs import NAMED, Homecoming


def output_lines(home: Homecoming, session: str) -> Iterator[str]:
    """Yield a line for each thing that a user should know of the files that the tests wrote."""
    fetch = f"gpu-cluster artifacts {session}"
    if home.written:
        yield f"outputs: {_counted(home.written)} came home: {_named(home.written)}"
    for conflict in home.merged.conflicts:
        if conflict.path in home.written:
            first, last = conflict.nodes
            path = shown_path(conflict.path)
            yield f"outputs: {path} was written on {first} and on {last}, there later"
    for path, reason in [*home.kept.items()][:NAMED]:
        yield f"outputs: {shown_path(path)} did not come home: it {reason}; to fetch it: {fetch}"
    if len(home.kept) > NAMED:
        yield f"outputs: {len(home.kept) - NAMED} more did not come home; to fetch them: {fetch}"
    if home.rest:
        places, globs = _places(home.rest)
        text = ", ".join(f'"{glob}"' for glob in globs)
        yield (
            f"outputs: {_counted(home.rest)} that the tests wrote did not come home: {places};"
            f" outputs = [{text}] brings such files, {fetch} these"
        )
    if home.merged.left:
        limit = f"{REST_FILES:,} files of {REST_BYTES >> 20} MiB together"
        named = f"and {WANTED_BYTES >> 30} GiB of what outputs names"
        more = f"{home.merged.left:,} more that the tests wrote are not in the record"
        yield f"outputs: {more}, which takes {limit}, {named}"


def artifact_lines(artifacts: Collection[str], session: str) -> Iterator[str]:
    """Yield a line that says how to fetch what tests left in `artifacts`."""
    if artifacts:
        yield f"artifacts: {_counted(artifacts)}; gpu-cluster artifacts {session}"


def _counted(paths: Collection[str]) -> str:
    return f"{len(paths):,} file{'s' if len(paths) != 1 else ''}"


def _named(paths: Sequence[str]) -> str:
    return ", ".join([*map(shown_path, paths[:NAMED]), *(["…"] if len(paths) > NAMED else [])])


def _places(paths: Sequence[str]) -> tuple[str, list[str]]:
    """Return the places of files for people, and the globs that name them.

    >>> _places(["a/b/c.txt", "a/b/d.txt", "e.txt"])
    ('a/b/…, e.txt', ['a/b/**', 'e.txt'])
    >>> _places([f"out/{n}/a.txt" for n in range(9)])
    ('out/…', ['out/**'])
    """
    folders = dict.fromkeys(map(posixpath.dirname, paths))
    if len(folders) > NAMED:
        folders = dict.fromkeys(path.partition("/")[0] for path in paths if "/" in path)
    above = [folder for folder in folders if folder]
    alone = [path for path in paths if "/" not in path]
    places = [*(f"{folder}/" for folder in above), *alone]
    texts = [
        f"{shown_path(place)}…" if place.endswith("/") else shown_path(place) for place in places
    ]
    shown = ", ".join([*texts[:NAMED], *(["…"] if len(texts) > NAMED else [])])
    return shown, [f"{place}**" if place.endswith("/") else place for place in places[:NAMED]]
