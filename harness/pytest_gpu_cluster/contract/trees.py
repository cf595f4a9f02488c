"""The form of a working tree in the store, as the client writes it and a node reads it.

`trees/<digest>.json` is canonical JSON whose sha256 is `digest`: the name of the root, and an entry
for each file and each link. `blobs/<sha256 of a file's bytes>` is one byte that names the packing,
and the packed bytes. Every digest is verified on reading, since whoever can write to the store
could otherwise run code on a node.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pytest_gpu_cluster.contract.frozen import dataclass

TREES, BLOBS = "trees/", "blobs/"
PLAIN, ZLIB = b"\0", b"\1"  # the first byte of a blob
_VERSION = 1
_MODES = {"644": 0o644, "755": 0o755}
_SAMPLE_BYTES = 1 << 16  # enough to tell if a file can be compressed
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BLOB = re.compile(rb'"blob":"([0-9a-f]{64})"')
_UNSAFE_PATH = re.compile(r"(?:\A|/)\.{0,2}(?:/|\Z)|\0")  # an empty part, "." or "..", or a NUL


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
        mode = _MODES.get(str(entry.get("mode")))
        if mode is None:
            raise _wrong(entry, "mode")
        if not isinstance(blob, str) or not _DIGEST.fullmatch(blob):
            raise _wrong(entry, "blob")
        if not isinstance(size, int):
            raise _wrong(entry, "size")
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
        if not isinstance(link, str):
            raise _wrong(entry, "link")
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
        """Read the tree that `digest` names. Raises ValueError when `content` is another."""
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError("its content has another digest")
        tree = json.loads(content)
        if not isinstance(tree, dict) or tree.get("v") != _VERSION:
            version = tree.get("v") if isinstance(tree, dict) else None
            raise ValueError(f"version {version} is unknown")
        root, entries = tree.get("root"), tree.get("entries")
        if not isinstance(root, str):
            raise _wrong(tree, "root")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise _wrong(tree, "entries")
        return cls(
            root=root,
            files=tuple(FileEntry.from_json(entry) for entry in entries if "link" not in entry),
            links=tuple(LinkEntry.from_json(entry) for entry in entries if "link" in entry),
        )


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


def unpack_blob(blob: bytes, digest: str) -> bytes:
    """Return the bytes of a file. Raises ValueError when their sha256 is not `digest`."""
    packing = blob[:1]
    try:
        content = zlib.decompress(memoryview(blob)[1:]) if packing == ZLIB else blob[1:]
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if packing not in (PLAIN, ZLIB) or hashlib.sha256(content).hexdigest() != digest:
        raise ValueError("its content has another digest")
    return content


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
    if _UNSAFE_PATH.search(path):
        raise ValueError(f"the path {path!r} leads out of the tree")
    return path


def _wrong(value: Mapping[str, object], key: str) -> ValueError:
    place = f" of {value['path']!r}" if "path" in value and key != "path" else ""
    fault = f"is {value[key]!r}" if key in value else "is missing"
    return ValueError(f"the key {key!r}{place} {fault}")
