"""The form of a working tree in the store, as the client writes it and a node reads it.

`trees/<digest>.json` is canonical JSON whose sha256 is `digest`: the name of the root, and an entry
for each file and each link. `blobs/<sha256 of a file's bytes>` is one byte that names the packing,
and the packed bytes. Every digest is verified on reading, since whoever can write to the store
could otherwise run code on a node.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

from pytest_gpu_cluster.contract.bounded import (
    DOCUMENT_BYTES,
    FILE_BYTES,
    inflate_exactly,
    parse_json,
)
from pytest_gpu_cluster.contract.errors import UnreadableRecordError
from pytest_gpu_cluster.contract.fields import JsonObject, shown
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.tree_paths import clash, folders_of, refusal

TREES, BLOBS = "trees/", "blobs/"
PLAIN, ZLIB = b"\0", b"\1"  # the first byte of a blob
_VERSION = 1
_MODES = {"644": 0o644, "755": 0o755}
_SAMPLE_BYTES = 1 << 16  # enough to tell if a file can be compressed
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BLOB = re.compile(rb'"blob":"([0-9a-f]{64})"')
_FILE_KEYS, _LINK_KEYS = {"path", "mode", "blob", "size"}, {"path", "link"}


class FileEntry(NamedTuple):
    """A file of a stored tree. A NamedTuple, because 5,000 of them are made at every start."""

    path: str  # relative to the root, with "/" between parts
    mode: int  # 0o644 or 0o755
    blob: str  # sha256 of its bytes
    size: int  # in bytes

    def to_json(self) -> dict[str, str | int]:
        """Return the entry as the tree holds it."""
        return {
            "path": self.path,
            "mode": f"{self.mode:o}",
            "blob": self.blob,
            "size": self.size,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, object]) -> FileEntry:
        """Read an entry. Raises ValueError naming a key that is missing or wrong."""
        path, blob, size = _path(entry), entry.get("blob"), entry.get("size")
        bits = entry.get("mode")
        mode = _MODES.get(bits) if isinstance(bits, str) else None
        if mode is None:
            raise _wrong(entry, "mode")
        if not isinstance(blob, str) or not is_digest(blob):
            raise _wrong(entry, "blob")
        if type(size) is not int or not 0 <= size <= FILE_BYTES:
            raise _wrong(entry, "size")
        if len(entry) > len(_FILE_KEYS):
            raise _unknown(entry, _FILE_KEYS)
        return cls(path, mode, blob, size)


class LinkEntry(NamedTuple):
    """A symbolic link of a stored tree."""

    path: str  # relative to the root, with "/" between parts
    link: str  # its target, as `os.readlink` returns it

    def to_json(self) -> dict[str, str | int]:
        """Return the entry as the tree holds it."""
        return {"path": self.path, "link": self.link}

    @classmethod
    def from_json(cls, entry: Mapping[str, object]) -> LinkEntry:
        """Read an entry. Raises ValueError naming a key that is missing or wrong."""
        path, link = _path(entry), entry.get("link")
        if not isinstance(link, str) or not link or not _is_target(link):
            raise _wrong(entry, "link")
        if len(entry) > len(_LINK_KEYS):
            raise _unknown(entry, _LINK_KEYS)
        return cls(path, link)


@dataclass(frozen=True, kw_only=True)
class StoredTree:
    """The content of `trees/<digest>.json`."""

    root: str  # the name of the root's directory
    files: tuple[FileEntry, ...]
    links: tuple[LinkEntry, ...] = ()

    @property
    def entries(self) -> list[FileEntry | LinkEntry]:
        """The files, then the links."""
        return [*self.files, *self.links]

    def to_bytes(self) -> bytes:
        """Return the canonical JSON: equal trees have equal bytes."""
        entries = sorted(self.entries, key=lambda entry: entry.path)
        tree = {"v": _VERSION, "root": self.root, "entries": [entry.to_json() for entry in entries]}
        return json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, content: bytes, digest: str) -> StoredTree:
        """Read the tree that `digest` names. Raises ValueError when `content` is another.

        No two entries have one path, and nothing lies below a file or a link.
        """
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError("its content has another digest")
        tree = parse_json(content)
        if not isinstance(tree, dict) or tree.get("v") != _VERSION:
            version = tree.get("v") if isinstance(tree, dict) else None
            raise ValueError(f"version {shown(version)} is unknown")
        root, entries = tree.get("root"), tree.get("entries")
        if not isinstance(root, str):
            raise _wrong(tree, "root")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise _wrong(tree, "entries")
        objects = cast(list[JsonObject], entries)
        files = [FileEntry.from_json(each) for each in objects if "link" not in each]
        links = [LinkEntry.from_json(each) for each in objects if "link" in each]
        if (total := sum(file.size for file in files)) > FILE_BYTES:
            raise ValueError(f"its files have {total:,} bytes, over the limit of {FILE_BYTES:,}")
        paths = [*(file.path for file in files), *(link.path for link in links)]
        if problem := clash(paths, folders_of(paths)):
            raise ValueError(problem)
        return cls(root=root, files=tuple(files), links=tuple(links))


def get_tree(store: Store, digest: str) -> StoredTree | None:
    """Return a tree of the store; None where it is missing. Raises StoreError."""
    content = store.get(tree_key(digest), limit_bytes=DOCUMENT_BYTES)
    try:
        return None if content is None else StoredTree.from_bytes(content, digest)
    except ValueError as problem:
        raise UnreadableRecordError(
            f"{tree_key(digest)} in {store.url} cannot be used: {problem}",
            remedy="run again: the tree is sent anew",
        ) from problem


def is_digest(text: str) -> bool:
    """Return True for a sha256 in the form that keys have."""
    return _DIGEST.fullmatch(text) is not None


def blobs_in(tree: bytes) -> set[str]:
    """Return the digests of the blobs of a stored tree, without the seconds of parsing it."""
    return {blob.decode() for blob in _BLOB.findall(tree)}  # within a text, quotes are escaped


def tree_key(digest: str) -> str:
    """Return the key of a tree in the store."""
    return f"{TREES}{digest}.json"


def blob_key(digest: str) -> str:
    """Return the key of a blob in the store."""
    return f"{BLOBS}{digest}"


def pack_blob(content: bytes) -> bytes:
    """Return a file's bytes as a blob holds them: compressed where a sample of them gains by it."""
    sample = content[:_SAMPLE_BYTES]
    packed = zlib.compress(sample, 1)
    if len(packed) > 0.95 * len(sample):
        return PLAIN + content
    return ZLIB + (packed if len(sample) == len(content) else zlib.compress(content, 1))


def unpack_blob(blob: bytes, digest: str, size: int) -> bytes:
    """Return the bytes of a file. Raises ValueError when their sha256 is not `digest`.

    No more memory is taken than for `size` bytes, which the file has by its listing.
    """
    packing = blob[:1]
    content = inflate_exactly(memoryview(blob)[1:], size) if packing == ZLIB else blob[1:]
    if packing not in (PLAIN, ZLIB) or hashlib.sha256(content).hexdigest() != digest:
        raise ValueError("its content has another digest")
    return content


def packed_limit(size: int) -> int:
    """Return the most bytes that the blob of a file of `size` bytes can have."""
    return size + size // 100 + 4096  # zlib adds 1 in 1,000 to what it cannot compress


def tree_directory(scratch: Path, root_name: str) -> Path:
    """Return the place of a session's tree on every node, by the directory of the session there."""
    return scratch / "tree" / root_name


def code_directory(digest: str) -> str:
    """Return the name of the directory of this package's code on a node, by its tree's digest."""
    return digest[:16]


def _path(entry: Mapping[str, object]) -> str:
    path = entry.get("path")
    if not isinstance(path, str):
        raise _wrong(entry, "path")
    if problem := refusal(path):
        raise ValueError(f"the path {shown(path)} {problem}")
    return path


def _is_target(link: str) -> bool:
    """Return True for what a link can lead to. It may lead out of the tree, as one of git may."""
    try:
        return b"\0" not in os.fsencode(link)
    except UnicodeEncodeError:
        return False


def _unknown(entry: Mapping[str, object], known: set[str]) -> ValueError:
    keys = ", ".join(shown(key) for key in sorted(entry.keys() - known)[:3])
    return ValueError(f"the entry {shown(entry['path'])} has unknown keys: {keys}")


def _wrong(value: Mapping[str, object], key: str) -> ValueError:
    place = f" of {shown(value['path'])}" if "path" in value and key != "path" else ""
    fault = f"is {shown(value[key])}" if key in value else "is missing"
    return ValueError(f"the key {key!r}{place} {fault}")
