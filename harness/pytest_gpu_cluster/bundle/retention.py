"""Retention in a local store: the newest sessions stay, and the trees and blobs that they name."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from pathlib import Path

from pytest_gpu_cluster.contract.bounded import read_file
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.store_errors import damaged, translate_error
from pytest_gpu_cluster.contract.trees import BLOBS, TREES

YOUNG_S = 3600.0  # younger objects stay


def prune(store: Store, *, keep_sessions: int = 20) -> None:
    """Delete all but the newest sessions of a local store, and trees and blobs without a session.

    What is younger than an hour stays: a client may be sending the tree or blob, and a session
    still writes events. Trees go before blobs, so that a tree in the store has its blobs. Raises
    StoreError.
    """
    assert store.root is not None, "only a local store is pruned; give a bucket a lifecycle rule"
    try:
        sessions = _prune_sessions(store.root / "sessions", keep_sessions)
        trees: set[str] = set()
        for session in sessions:
            with contextlib.suppress(FileNotFoundError):  # it is starting: its tree is young
                trees.update(_named(store, session / "request.json", "tree|code"))
        blobs = _prune_trees(store, trees)
        for entry in _entries(store.root / BLOBS):
            if entry.name not in blobs and not _is_young(Path(entry.path)):
                Path(entry.path).unlink(missing_ok=True)
    except OSError as error:
        raise translate_error(f"cannot prune {store.url}", error) from error


def _named(store: Store, path: Path, keys: str) -> list[str]:
    """Return the digests at `keys` in a JSON file of the store. Raises StoreError, OSError."""
    try:
        return _digests(path, keys)
    except ValueError as problem:
        assert store.root is not None
        raise damaged(store.url, path.relative_to(store.root).as_posix(), problem) from problem


def _prune_sessions(folder: Path, keep_sessions: int) -> list[Path]:
    """Delete old sessions that have ended. Return those that stay."""
    ids = sorted((entry.name for entry in _entries(folder)), reverse=True)
    retained = [folder / session for session in ids[:keep_sessions]]
    for session in (folder / session for session in ids[keep_sessions:]):
        is_closed = (session / "result.json").exists()
        if not is_closed and any(map(_is_young, (session, *session.glob("events/*")))):
            retained.append(session)
        else:
            shutil.rmtree(session, ignore_errors=True)  # the next call deletes the rest
    return retained


def _prune_trees(store: Store, trees: set[str]) -> set[str]:
    """Delete old trees that are not in `trees`. Return the blobs of those that stay."""
    assert store.root is not None
    blobs: set[str] = set()
    for entry in _entries(store.root / TREES):
        if entry.name.removesuffix(".json") in trees or _is_young(Path(entry.path)):
            blobs.update(_named(store, Path(entry.path), "blob"))
        else:
            Path(entry.path).unlink(missing_ok=True)
    return blobs


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        return list(entries)
    return []


def _is_young(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < YOUNG_S
    except FileNotFoundError:
        return True  # another prune was faster


def _digests(path: Path, keys: str) -> list[str]:
    """Return the digests at `keys` in a JSON file, by pattern: parsing would take too long.

    A pattern finds too many digests at worst, and then too much stays. Raises ValueError for a file
    that is too big.
    """
    pattern = rf'"(?:{keys})":\s*"([0-9a-f]{{64}})"'.encode()
    return [match.decode() for match in re.findall(pattern, read_file(path))]
