"""Retention in a local store: the newest sessions stay, and the trees and blobs that they name."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

from pytest_gpu_cluster.contract.bounded import DOCUMENT_BYTES
from pytest_gpu_cluster.contract.local_files import entries_of
from pytest_gpu_cluster.contract.record import session_ids
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.store_errors import translate_error
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
        trees: set[str] = set()
        for session in _prune_sessions(store, store.root / "sessions", keep_sessions):
            # Nothing there: it is starting, and its tree is young.
            request = store.get(f"sessions/{session}/request.json", limit_bytes=DOCUMENT_BYTES)
            trees.update(_digests(request, "tree|code"))
        blobs = _prune_trees(store, trees)
        for entry in entries_of(store.root, BLOBS):
            if entry.is_file() and entry.name not in blobs and not _is_young(Path(entry.path)):
                Path(entry.path).unlink(missing_ok=True)
    except OSError as error:
        raise translate_error(f"cannot prune {store.url}", error) from error


def _prune_sessions(store: Store, folder: Path, keep_sessions: int) -> list[str]:
    """Delete old sessions that have ended. Return those that stay."""
    ids = session_ids(store)[::-1]
    retained = ids[:keep_sessions]
    for session in ids[keep_sessions:]:
        place = folder / session
        is_closed = (place / "result.json").exists()
        if not is_closed and any(map(_is_young, (place, *place.glob("events/*")))):
            retained.append(session)
        else:
            shutil.rmtree(place, ignore_errors=True)  # the next call deletes the rest
    return retained


def _prune_trees(store: Store, trees: set[str]) -> set[str]:
    """Delete old trees that are not in `trees`. Return the blobs of those that stay."""
    assert store.root is not None
    blobs: set[str] = set()
    for entry in entries_of(store.root, TREES):
        if entry.name.removesuffix(".json") in trees or _is_young(Path(entry.path)):
            blobs.update(_digests(store.get(f"{TREES}{entry.name}"), "blob"))
        elif entry.is_file():
            Path(entry.path).unlink(missing_ok=True)
    return blobs


def _is_young(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < YOUNG_S
    except FileNotFoundError:
        return True  # another prune was faster


def _digests(content: bytes | None, keys: str) -> list[str]:
    """Return the digests at `keys` in a JSON document, by pattern: parsing would take too long.

    A pattern finds too many digests at worst, and then too much stays.
    """
    pattern = rf'"(?:{keys})":\s*"([0-9a-f]{{64}})"'.encode()
    return [match.decode() for match in re.findall(pattern, content or b"")]
