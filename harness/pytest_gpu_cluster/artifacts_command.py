"""`gpu-cluster artifacts`: the files of a session's record, into a directory.

DIR/artifacts/<test>/…   what tests left in `artifacts`
DIR/outputs/…            what tests wrote into the tree
DIR/outputs-<node>/…     what an earlier writer of the same path left on another node
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from pytest_gpu_cluster.contract.errors import RequestError, StoreError
from pytest_gpu_cluster.contract.fields import JsonObject
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.tree_paths import shown_path
from pytest_gpu_cluster.outputs import UnsafePathError, merge, write_file


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file of a record."""

    path: str  # below the directory that it is fetched to
    size: int | None  # in bytes; None: known once it is read
    executable: bool
    read: Callable[[], bytes]


def fetch_artifacts(
    record: SessionRecord, directory: str | None, *, only_list: bool
) -> tuple[JsonObject, str]:
    """Write the files of a record into `directory`; return a document and a text that name them.

    Without a directory it is `gpu-cluster-<session>` here, which git ignores; with `only_list` none
    is written there. Raises RequestError for a directory that is not empty, StoreError.
    """
    files = [*_artifacts(record), *_outputs(record)]
    troubles: list[str] = []
    place = Path(directory or f"gpu-cluster-{record.session}")
    fetched = bool(files) and (directory is not None or not only_list)
    if fetched:
        _make(place)
        if directory is None:
            (place / ".gitignore").write_text("*\n")
        troubles = [*_write(files, place)]
    document: JsonObject = {
        "session": record.session,
        "files": [{"path": file.path, "size": file.size} for file in files],
        "directory": str(place) if fetched else None,
        "not_written": [*troubles],
    }
    lines = [
        *(shown_path(file.path) for file in files),
        *(f"not written: {text}" for text in troubles),
    ]
    if not files:
        lines = [f"session {record.session} left no files"]
    elif fetched:
        lines.append(f"{len(files) - len(troubles)} files are in {place}")
    return document, "\n".join(lines)


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        is_empty = not any(directory.iterdir())
    except OSError as problem:
        raise RequestError(
            f"{directory} cannot be used: {problem.strerror}", remedy="name another directory"
        ) from problem
    if not is_empty:
        raise RequestError(f"{directory} is not empty", remedy="name a new directory")


def _write(files: Iterable[StoredFile], directory: Path) -> Iterator[str]:
    """Write files below the directory; yield why one could not be written."""
    for file in files:
        try:
            write_file(directory, file.path, file.read(), executable=file.executable)
        except UnsafePathError as problem:
            yield f"{file.path!r} {problem}"


def _artifacts(record: SessionRecord) -> Iterator[StoredFile]:
    for name in record.artifacts():
        read = partial(_artifact, record, name)
        yield StoredFile(path=f"artifacts/{name}", size=None, executable=False, read=read)


def _artifact(record: SessionRecord, name: str) -> bytes:
    content = record.artifact(name)
    if content is None:
        raise StoreError(
            f"the artifact {name!r} of session {record.session} has gone", remedy="try again"
        )
    return content


def _outputs(record: SessionRecord) -> Iterator[StoredFile]:
    merged = merge(record.outputs())
    placed = [("outputs", file) for file in merged.files.values()]
    placed += [(f"outputs-{node}", file) for node, file in merged.earlier]
    for folder, file in placed:
        yield StoredFile(
            path=f"{folder}/{file.path}",
            size=file.size,
            executable=file.executable,
            read=partial(record.output, file),
        )
