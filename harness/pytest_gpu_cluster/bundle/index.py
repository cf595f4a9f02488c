"""Files of a working tree by their stat, and the index that remembers their digests.

The index lies outside the tree. An unchanged file is not read again, and of an unchanged tree no
more than the first line of the index.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeAlias, cast

from pytest_gpu_cluster.bundle import secret_scan
from pytest_gpu_cluster.contract.bounded import parse_json, read_file
from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.fields import Noun, value_of
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.store import DISK_THREADS, Store
from pytest_gpu_cluster.contract.trees import FileEntry, LinkEntry

_Row: TypeAlias = tuple[int, int, int, int, str, str]  # a stamp, and the scan of it
# A younger file may change again under the same timestamp (git's racy-git). FAT ticks in 2 s.
RACY_NS = 2_000_000_000
_VERSION = 3  # of the index, and of the rules in secret_scan


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


@dataclass(frozen=True, kw_only=True)
class LastTree(Noun):
    """The tree last shipped. Equal surveys are of equal trees."""

    v: int = 0
    survey: str = ""  # "" where a file may still change under its stamp
    tree: str = ""  # digest
    files: int = 0  # with links
    bytes: int = 0


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
        self.last = LastTree()
        self._path = index_path(store, root)
        self._began_ns = time.time_ns()
        self._content = b"{}"
        with contextlib.suppress(OSError, ValueError):
            line, _, content = read_file(self._path).partition(b"\n")
            last = LastTree.from_json(parse_json(line))
            if last.v == _VERSION:
                self.last, self._content = last, content

    @cached_property
    def _rows(self) -> dict[str, _Row]:
        """By path: the stamp, the digest, the suspicion."""
        with contextlib.suppress(ValueError):
            rows = value_of(Mapping[str, _Row], parse_json(self._content))
            return dict(cast(Mapping[str, _Row], rows))
        return {}

    def scan(self, files: Iterable[SourceFile]) -> dict[SourceFile, Scan]:
        """Return the scan of each file that still exists. Raises FileChangedError, RequestError."""
        scans: dict[SourceFile, Scan] = {}
        unread: list[SourceFile] = []
        for file in files:
            row = self._rows.get(file.path)
            if row is not None and row[:4] == file.stamp:
                scans[file] = Scan(row[4], row[5])
            else:
                unread.append(file)
        with ThreadPoolExecutor(DISK_THREADS) as pool:
            for file, scan in zip(unread, pool.map(_scan, unread), strict=True):
                if scan is not None:
                    scans[file] = scan
                    self._rows[file.path] = (*file.stamp, *scan)
        return scans

    def forget(self, path: str) -> None:
        """Have the file read again by the next scan."""
        self._rows.pop(path, None)

    def save(self, scans: Mapping[SourceFile, Scan], last: LastTree) -> None:
        """Write the index: files that may still change under their stamp are left out."""
        racy_from = self._began_ns - RACY_NS
        rows = {
            file.path: [*file.stamp, *scan]
            for file, scan in scans.items()
            if max(file.stamp[1], file.stamp[3]) < racy_from
        }
        settled = len(rows) == len(scans)
        last = replace(last, v=_VERSION, survey=last.survey if settled else "")
        content = f"{json.dumps(last.to_json())}\n{json.dumps(rows)}"
        temporary = self._path.with_name(f"{self._path.name}.{secrets.token_hex(8)}")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.touch(mode=0o600)
            temporary.write_text(content)
            temporary.replace(self._path)


def survey_of(
    files: Sequence[SourceFile],
    links: Sequence[LinkEntry],
    made: Sequence[FileEntry],
    allow_files: Sequence[str],
) -> str:
    """Return a digest of all that a tree is made of; `allow_files` decides if it may be shipped."""
    lines = [f"{file.path}\0{file.stamp}" for file in files]
    lines += [f"{link.path}\0{link.link}" for link in links]
    lines += [f"{entry.path}\0{entry.blob}" for entry in made]
    text = "\n".join((repr(allow_files), str(len(links)), str(len(made)), *lines))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def index_path(store: Store, root: Path, kind: str = "index") -> Path:
    """Return a path for what is remembered of a tree: in a local store, else in the user's cache.

    `kind` sets apart what is remembered for another purpose. Raises StoreError.
    """
    name = hashlib.sha256(f"{store.url}\n".encode() + os.fsencode(root)).hexdigest()[:16]
    if (path := store.local_file(f"{kind}/{name}.json")) is not None:
        return path
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(cache):
        cache = os.devnull  # a user without a home: nothing can be written below it
    return Path(cache, "gpu-cluster", f"{kind}-{name}.json")


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
