"""A tree of the store -> files on this node."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pytest_gpu_cluster.contract.errors import StoreError, UnreadableRecordError
from pytest_gpu_cluster.contract.store import DISK_THREADS, REMOTE_THREADS, Store
from pytest_gpu_cluster.contract.tree_paths import folders_of
from pytest_gpu_cluster.contract.trees import (
    FileEntry,
    LinkEntry,
    StoredTree,
    blob_key,
    get_tree,
    packed_limit,
    tree_key,
    unpack_blob,
)
from pytest_gpu_cluster.node.guest import Guest

T = TypeVar("T")


class _BrokenBlobError(Exception):
    """A blob is missing, or holds other bytes than its name says. It never leaves this module."""

    def __init__(self, digest: str, path: str, problem: ValueError | UnreadableRecordError) -> None:
        reason = problem.what if isinstance(problem, UnreadableRecordError) else str(problem)
        super().__init__(f"{blob_key(digest)} ({path!r}): {reason}")
        self.digest = digest


def unpack(store: Store, digest: str, target: Path, *, cache: Path | None = None) -> None:
    """Make `target` the tree `digest`, all of it or nothing. Do nothing if it is that tree already.

    Files are copies, which a test may overwrite. `cache` is a directory of blobs for later calls on
    this node; its content is verified as well. Raises StoreError naming the tree or blob that is
    missing or wrong.
    """

    def make(fresh: Path) -> None:
        tree = read_tree(store, digest)
        write_entries(store, tree.entries, fresh, cache)

    install(store, digest, target, make)


def install(store: Store, digest: str, target: Path, make: Callable[[Path], T]) -> T | None:
    """Have `make` turn an empty directory into the tree `digest`, which then becomes `target`.

    Return its result, or None where `target` is that tree already. Raises StoreError.
    """
    mark = target.with_name(f"{target.name}.tree")
    if _is_complete(target, mark, digest):
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    fresh.mkdir()
    try:
        made = make(fresh)
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
        return None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return made


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


def read_tree(store: Store, digest: str) -> StoredTree:
    """Return a tree of the store. Raises StoreError when it is missing or wrong."""
    tree = get_tree(store, digest)
    if tree is None:
        raise StoreError(
            f"{tree_key(digest)} in {store.url} cannot be used: it is missing",
            remedy="run again: the tree is sent anew",
        )
    return tree


def write_entries(
    store: Store,
    entries: Sequence[FileEntry | LinkEntry],
    top: Path,
    cache: Path | None,
    guest: Guest | None = None,
) -> None:
    """Write files and links, none of which is there, below `top`. Raises StoreError, OSError.

    They belong to `guest`, where one is given.

    Files come before links, so that no file is written through a link.
    """
    cache = None if store.is_local else cache
    files_of: dict[str, list[FileEntry]] = {}
    for entry in entries:
        if isinstance(entry, FileEntry):
            files_of.setdefault(entry.blob, []).append(entry)
    for folder in sorted(folders_of(entry.path for entry in entries)):
        os.makedirs(top / folder, exist_ok=True)
        if guest is not None:
            guest.own(top / folder)

    def write_files(batch: Sequence[str]) -> None:
        for blob in batch:
            content = _content(store, files_of[blob][0], cache)
            for file in files_of[blob]:
                _write_file(f"{top}/{file.path}", content, file.mode, guest)

    blobs, absent = list(files_of), set(files_of)
    if cache is not None:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        absent -= set(os.listdir(cache))
    few = store.is_local or len(absent) < REMOTE_THREADS
    threads = DISK_THREADS if few else REMOTE_THREADS
    # A task for each of 5,000 small files would cost more than the files.
    share = max(1, len(blobs) // (threads * 4))
    batches = [blobs[start : start + share] for start in range(0, len(blobs), share)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write_files, batches))
    for entry in entries:
        if isinstance(entry, LinkEntry):
            os.symlink(entry.link, f"{top}/{entry.path}")
            if guest is not None:
                guest.own(f"{top}/{entry.path}")


def _write_file(path: str, content: bytes, mode: int, guest: Guest | None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(path, flags, mode), "wb", buffering=0) as file:
        if guest is not None:
            os.fchown(file.fileno(), guest.uid, guest.gid)
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]


def _content(store: Store, file: FileEntry, cache: Path | None) -> bytes:
    """Return the bytes of a file, from the cache if it has them."""
    if cache is None:
        return _fetch(store, file)
    cached = cache / file.blob
    with contextlib.suppress(OSError):
        content = cached.read_bytes()
        if hashlib.sha256(content).hexdigest() == file.blob:
            return content
    content = _fetch(store, file)
    temporary = cache / f".{file.blob}.{secrets.token_hex(4)}"
    temporary.write_bytes(content)
    os.replace(temporary, cached)
    return content


def _fetch(store: Store, file: FileEntry) -> bytes:
    try:
        packed = store.get(blob_key(file.blob), limit_bytes=packed_limit(file.size))
        if packed is None:
            raise ValueError("it is missing")
        return unpack_blob(packed, file.blob, file.size)
    except (ValueError, UnreadableRecordError) as error:
        raise _BrokenBlobError(file.blob, file.path, error) from error
