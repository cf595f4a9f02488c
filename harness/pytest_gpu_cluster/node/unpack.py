"""A tree of the store -> files on this node."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pytest_gpu_cluster.contract.errors import StoreError
from pytest_gpu_cluster.contract.store import DISK_THREADS, REMOTE_THREADS, Store
from pytest_gpu_cluster.contract.trees import (
    FileEntry,
    StoredTree,
    blob_key,
    tree_key,
    unpack_blob,
)


class _BrokenBlobError(Exception):
    """A blob is missing, or holds other bytes than its name says. It never leaves this module."""

    def __init__(self, digest: str, path: str, reason: str) -> None:
        super().__init__(f"{blob_key(digest)} ({path!r}): {reason}")
        self.digest = digest


def unpack(store: Store, digest: str, target: Path, *, cache: Path | None = None) -> None:
    """Make `target` the tree `digest`, all of it or nothing. Do nothing if it is that tree already.

    Files are copies, which a test may overwrite. `cache` is a directory of blobs for later calls on
    this node; its content is verified as well. Raises StoreError naming the tree or blob that is
    missing or wrong.
    """
    mark = target.with_name(f"{target.name}.tree")
    if _is_complete(target, mark, digest):
        return
    tree = _read_tree(store, digest)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    fresh.mkdir()
    try:
        _write_tree(store, tree, fresh, None if store.is_local else cache)
        new_mark = fresh.with_name(f"{fresh.name}.tree")
        new_mark.write_text(digest)
        os.replace(new_mark, mark)  # atomic: another process may be reading it
        os.rename(fresh, target)  # onto an empty directory or nothing
    except _BrokenBlobError as broken:
        with contextlib.suppress(StoreError):  # without its tree, the next client sends it anew
            store.delete([tree_key(digest), blob_key(broken.digest)])
        raise StoreError(
            f"{store.url} has lost a file of the tree: {broken}",
            remedy="run again: it is sent anew",
        ) from broken
    except OSError as error:
        if not _is_complete(target, mark, digest):  # else another process was faster
            raise StoreError(
                f"tree {digest[:12]} cannot be unpacked into {target}: {error}",
                remedy="look at the disk of the node",
            ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _is_complete(target: Path, mark: Path, digest: str) -> bool:
    if not target.is_dir() or not any(target.iterdir()):
        return False
    content = mark.read_text() if mark.is_file() else "other files"
    if content != digest:
        raise StoreError(
            f"{target} already holds {content[:12]}, not tree {digest[:12]}",
            remedy="use an empty directory",
        )
    return True


def _read_tree(store: Store, digest: str) -> StoredTree:
    content = store.get(tree_key(digest))
    try:
        if content is None:
            raise ValueError("it is missing")
        return StoredTree.from_bytes(content, digest)
    except ValueError as error:
        raise StoreError(
            f"{tree_key(digest)} in {store.url} cannot be used: {error}",
            remedy="run again: the tree is sent anew",
        ) from error


def _write_tree(store: Store, tree: StoredTree, top: Path, cache: Path | None) -> None:
    """Write files before links, so that no file is written through a link."""
    files_of: dict[str, list[FileEntry]] = {}
    for file in tree.files:
        files_of.setdefault(file.blob, []).append(file)
    folders = {file.path.rpartition("/")[0] for file in tree.files}
    folders |= {link.path.rpartition("/")[0] for link in tree.links}
    for folder in sorted(folders):
        os.makedirs(top / folder, exist_ok=True)

    def write_files(batch: Sequence[str]) -> None:
        for blob in batch:
            content = _content(store, blob, files_of[blob][0].path, cache)
            for file in files_of[blob]:
                _write_file(f"{top}/{file.path}", content, file.mode)

    blobs, absent = list(files_of), set(files_of)
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        absent -= set(os.listdir(cache))
    few = store.is_local or len(absent) < REMOTE_THREADS
    threads = DISK_THREADS if few else REMOTE_THREADS
    # A task for each of 5,000 small files would cost more than the files.
    share = max(1, len(blobs) // (threads * 4))
    batches = [blobs[start : start + share] for start in range(0, len(blobs), share)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write_files, batches))
    for link in tree.links:
        os.symlink(link.link, f"{top}/{link.path}")


def _write_file(path: str, content: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(path, flags, mode), "wb", buffering=0) as file:
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]


def _content(store: Store, blob: str, path: str, cache: Path | None) -> bytes:
    """Return the bytes of a blob, from the cache if it has them; `path` is for the message."""
    if cache is None:
        return _fetch(store, blob, path)
    cached = cache / blob
    with contextlib.suppress(OSError):
        content = cached.read_bytes()
        if hashlib.sha256(content).hexdigest() == blob:
            return content
    content = _fetch(store, blob, path)
    temporary = cache / f".{blob}.{secrets.token_hex(4)}"
    temporary.write_bytes(content)
    os.replace(temporary, cached)
    return content


def _fetch(store: Store, blob: str, path: str) -> bytes:
    packed = store.get(blob_key(blob))
    try:
        if packed is None:
            raise ValueError("it is missing")
        return unpack_blob(packed, blob)
    except ValueError as error:
        raise _BrokenBlobError(blob, path, str(error)) from error
