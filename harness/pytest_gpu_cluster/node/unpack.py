"""A tree of the store -> files on this node.

The form of a stored tree is defined here, as the side that must be able to read it: `trees/<digest>.json` is canonical
JSON whose sha256 is `digest`; `blobs/<sha256 of a file's bytes>` is one byte that names the packing, and the packed
bytes. Every digest is verified on reading, since whoever can write to the store could otherwise run code here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pytest_gpu_cluster.contract.errors import StoreError
from pytest_gpu_cluster.contract.store import Store

PLAIN, ZLIB = b"\0", b"\1"  # the first byte of a blob
THREADS = 4  # on a disk; more only wait for each other
THREADS_REMOTE = 32  # where nearly all of a request's time is waiting


class _Broken(Exception):  # noqa: N818  # never leaves this module
    """The blob `digest` is missing, or other bytes than its name says."""

    def __init__(self, digest: str, path: str, why: str) -> None:
        super().__init__(f"blobs/{digest} ({path!r}): {why}")
        self.digest = digest


def tree_key(digest: str) -> str:
    return f"trees/{digest}.json"


def blob_key(digest: str) -> str:
    return f"blobs/{digest}"


def unpack(store: Store, digest: str, target: Path, *, cache: Path | None = None) -> None:
    """Make `target` the tree `digest`: all of it or nothing, and nothing to do where it already is that tree.

    Files are copies, which a test may overwrite. `cache` is a directory of blobs for later calls on this node; its
    content is verified as well. Raises StoreError naming the tree or blob that is missing or not what it should be.
    """
    mark = target.with_name(f"{target.name}.tree")
    if _is_there(target, mark, digest):
        return
    entries = _read_tree(store, digest)["entries"]
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    fresh.mkdir()
    try:
        _fill(store, entries, fresh, None if store.is_local else cache)
        new_mark = fresh.with_name(f"{fresh.name}.tree")
        new_mark.write_text(digest)
        os.replace(new_mark, mark)  # whole at once: another may be reading it
        os.rename(fresh, target)  # onto an empty directory or nothing
    except _Broken as broken:
        with contextlib.suppress(
            StoreError
        ):  # so that the next client sees that it has to be sent anew
            store.delete([tree_key(digest), blob_key(broken.digest)])
        raise StoreError(
            f"{store.url} has lost a file of the tree: {broken}",
            remedy="run again: it is sent anew",
        ) from broken
    except OSError as error:
        if not _is_there(target, mark, digest):  # else somebody was faster
            raise StoreError(
                f"tree {digest[:12]} cannot be unpacked into {target}: {error}",
                remedy="look at the disk of the node",
            ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _is_there(target: Path, mark: Path, digest: str) -> bool:
    if not target.is_dir() or not any(target.iterdir()):
        return False
    holds = mark.read_text() if mark.is_file() else "other files"
    if holds != digest:
        raise StoreError(
            f"{target} already holds {holds[:12]}, not tree {digest[:12]}",
            remedy="use an empty directory",
        )
    return True


def parse_tree(raw: bytes, digest: str) -> dict[str, Any]:
    """The tree in `raw`. Raises ValueError when it is not the one that `digest` names."""
    if hashlib.sha256(raw).hexdigest() != digest:
        raise ValueError("its content has another digest")
    tree = json.loads(raw)
    if tree["v"] != 1:
        raise ValueError(f"version {tree['v']} is unknown")
    checked: dict[str, Any] = tree
    return checked


def _read_tree(store: Store, digest: str) -> dict[str, Any]:
    raw = store.get(tree_key(digest))
    try:
        if raw is None:
            raise ValueError("it is missing")
        tree = parse_tree(raw, digest)
        for entry in tree["entries"]:
            _check_path(entry["path"])
    except ValueError as error:
        raise StoreError(
            f"{tree_key(digest)} in {store.url} cannot be used: {error}",
            remedy="run again: the tree is sent anew",
        ) from error
    return tree


def _check_path(path: str) -> None:
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"the path {path!r} leads out of the tree")


def _fill(store: Store, entries: Sequence[dict[str, Any]], top: Path, cache: Path | None) -> None:
    """Links last, so that no file is written through one."""
    blobs: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        if "blob" in entry:
            blobs.setdefault(entry["blob"], []).append(entry)
    for folder in sorted({entry["path"].rpartition("/")[0] for entry in entries}):
        os.makedirs(top / folder, exist_ok=True)

    def make(batch: Sequence[str]) -> None:
        for blob in batch:
            data = _content(store, blob, blobs[blob][0]["path"], cache)
            for entry in blobs[blob]:
                _write(f"{top}/{entry['path']}", data, int(entry["mode"], 8))

    names, absent = list(blobs), set(blobs)
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        absent -= set(os.listdir(cache))
    threads = THREADS if store.is_local or len(absent) < THREADS_REMOTE else THREADS_REMOTE
    share = max(
        1, len(names) // (threads * 4)
    )  # a task for each of 5,000 small files would cost more than the file
    with ThreadPoolExecutor(threads) as pool:
        list(
            pool.map(make, [names[start : start + share] for start in range(0, len(names), share)])
        )
    for entry in entries:
        if "link" in entry:
            os.symlink(entry["link"], f"{top}/{entry['path']}")


def _write(path: str, data: bytes, mode: int) -> None:
    with open(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb", buffering=0
    ) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]


def _content(store: Store, blob: str, path: str, cache: Path | None) -> bytes:
    """The bytes of a blob, from the cache if they are there and right; `path` is for the message."""
    if cache is None:
        return _fetch(store, blob, path)
    cached = cache / blob
    with contextlib.suppress(OSError):
        data = cached.read_bytes()
        if hashlib.sha256(data).hexdigest() == blob:
            return data
    data = _fetch(store, blob, path)
    temporary = cache / f".{blob}.{secrets.token_hex(4)}"
    temporary.write_bytes(data)
    os.replace(temporary, cached)
    return data


def _fetch(store: Store, blob: str, path: str) -> bytes:
    packed = store.get(blob_key(blob))
    try:
        if packed is None:
            raise ValueError("it is missing")
        data = zlib.decompress(memoryview(packed)[1:]) if packed[:1] == ZLIB else packed[1:]
        if packed[:1] not in (PLAIN, ZLIB) or hashlib.sha256(data).hexdigest() != blob:
            raise ValueError("its content has another digest")
    except (ValueError, zlib.error) as error:
        raise _Broken(blob, path, str(error)) from error
    return data
