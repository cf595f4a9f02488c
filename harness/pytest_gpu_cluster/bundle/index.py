"""Files of a working tree by their stat, and the index that remembers their digests.

The index lies outside the tree. An unchanged file is not read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from pytest_gpu_cluster.bundle import secret_scan
from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.store import DISK_THREADS, Store

# A younger file may change again under the same timestamp (git's racy-git). FAT ticks in 2 s.
RACY_NS = 2_000_000_000
_VERSION = 2  # of the index, and of the rules in secret_scan


class SourceFile(NamedTuple):
    """A regular file of the tree, as its stat was read."""

    path: str  # relative to the root, with "/" between parts
    source: str  # absolute; for a link that leads outside the tree, its target is read
    executable: bool
    stamp: tuple[int, int, int, int]  # size, mtime, inode, ctime: differs whenever the content may


class Scan(NamedTuple):
    """The result of reading a file."""

    digest: str
    suspicion: str  # the reason why it looks like a credential, or ""


class FileChangedError(Exception):
    """A file differs from its stat of a moment ago. `ship` reads the tree again."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def stamp_of(status: os.stat_result) -> tuple[int, int, int, int]:
    """Return the fields of a stat by which a changed file is recognised."""
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns


def unreadable(path: str, error: OSError) -> RequestError:
    """Return the error for a file or link of the tree that cannot be read."""
    return RequestError(
        f"{path!r} cannot be read: {error.strerror}",
        remedy="mend its permissions, or name it in exclude = [...] in [tool.gpu-cluster]",
    )


class StatIndex:
    """The scan of each file by its stamp, and the tree last shipped. Losing it costs time only."""

    def __init__(self, store: Store, root: Path) -> None:
        self.tree = ""
        self._path = _index_path(store, root)
        self._began_ns = time.time_ns()
        self._rows: dict[str, list[object]] = {}  # by path: the stamp, the digest, the suspicion
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            index = json.loads(self._path.read_bytes())
            if index["v"] == _VERSION:
                self._rows, self.tree = index["files"], index["tree"]

    def scan(self, files: Iterable[SourceFile]) -> dict[SourceFile, Scan]:
        """Return the scan of each file that still exists. Raises FileChangedError, RequestError."""
        scans: dict[SourceFile, Scan] = {}
        unread: list[SourceFile] = []
        for file in files:
            row = self._rows.get(file.path)
            if row is not None and row[:4] == [*file.stamp]:
                scans[file] = Scan(str(row[4]), str(row[5]))
            else:
                unread.append(file)
        with ThreadPoolExecutor(DISK_THREADS) as pool:
            for file, scan in zip(unread, pool.map(_scan, unread), strict=True):
                if scan is not None:
                    scans[file] = scan
                    self._rows[file.path] = [*file.stamp, *scan]
        return scans

    def forget(self, path: str) -> None:
        """Have the file read again by the next scan."""
        self._rows.pop(path, None)

    def save(self, scans: Mapping[SourceFile, Scan], tree: str) -> None:
        """Write the index: files that may still change under their stamp are left out."""
        racy_from = self._began_ns - RACY_NS
        rows = {
            file.path: [*file.stamp, *scan]
            for file, scan in scans.items()
            if max(file.stamp[1], file.stamp[3]) < racy_from
        }
        content = json.dumps({"v": _VERSION, "tree": tree, "files": rows})
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(content)
            temporary.replace(self._path)


def _index_path(store: Store, root: Path) -> Path:
    """Return a path in a local store, else in the user's cache directory."""
    name = hashlib.sha256(f"{store.url}\n".encode() + os.fsencode(root)).hexdigest()[:16]
    if store.root is not None:
        return store.root / "index" / f"{name}.json"
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(cache):
        cache = os.devnull  # a user without a home: nothing can be written below it
    return Path(cache, "gpu-cluster", f"index-{name}.json")


def _scan(file: SourceFile) -> Scan | None:
    """Read a file. Return None when it has vanished."""
    try:
        with open(file.source, "rb") as stream:
            if file.stamp[0] <= secret_scan.SCANNED_BYTES:
                content = stream.read()
                digest = hashlib.sha256(content).hexdigest()
                text = None if b"\0" in content else content
            else:
                digest, text = hashlib.file_digest(stream, "sha256").hexdigest(), None
            if stamp_of(os.fstat(stream.fileno())) != file.stamp:
                raise FileChangedError(file.path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(file.path, error) from error
    target = os.path.realpath(file.source) if os.path.islink(file.source) else ""
    suspicion = secret_scan.suspicion(file.path, text)
    return Scan(digest, suspicion or (target and secret_scan.suspicion(target, text)))
