"""The files that tests wrote on the cluster: home into the working tree, or into a directory.

Nothing is ever written outside the directory that was named, nor through a link in it, whatever the
record says.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import cast

from pytest_gpu_cluster.bundle.index import index_path
from pytest_gpu_cluster.contract.bounded import parse_json, read_file
from pytest_gpu_cluster.contract.fields import value_of
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.globs import matcher
from pytest_gpu_cluster.contract.outputs import NodeOutputs, WrittenFile
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.tree_paths import GIT, names_git, refusal
from pytest_gpu_cluster.contract.trees import FileEntry, get_tree

NAMED = 3  # files, or directories, that a line names


class UnsafePathError(Exception):
    """A path leads out of its directory or through a link, or something else is in its place."""


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Two nodes wrote different contents to one path; the later one counts."""

    path: str
    nodes: tuple[str, str]  # the earlier, the later


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The outputs of all nodes as one tree."""

    files: Mapping[str, WrittenFile]  # by path
    conflicts: tuple[Conflict, ...]
    earlier: tuple[tuple[str, WrittenFile], ...]  # node and file of those that were overtaken
    left: int  # files that the record does not have


@dataclass(frozen=True, kw_only=True)
class Homecoming:
    """What has become of the outputs of a session."""

    written: tuple[str, ...] = ()  # paths
    kept: Mapping[str, str] = field(
        default_factory=dict
    )  # the reason why the file here stands, by path
    rest: tuple[str, ...] = ()  # what no glob names
    merged: Merged = Merged(files={}, conflicts=(), earlier=(), left=0)


def files_line(record: SessionRecord) -> str:
    """Return a line that counts the files of a record and says how to fetch them; "" without any.

    Raises StoreError.
    """
    counts = {"artifacts": len(record.artifacts()), "outputs": len(merge(record.outputs()).files)}
    texts = [f"{count:,} {name}" for name, count in counts.items() if count]
    fetch = f"gpu-cluster artifacts {record.session}"
    return f"files: {', '.join(texts)}; {fetch}" if texts else ""


def merge(listings: Iterable[NodeOutputs]) -> Merged:
    """Return the files of all nodes: of those with one path the one that was written last."""
    files: dict[str, tuple[str, WrittenFile]] = {}
    conflicts: list[Conflict] = []
    earlier: list[tuple[str, WrittenFile]] = []
    left = 0
    for listing in listings:
        left += listing.left
        for file in listing.files:
            new = (listing.node, file)
            old = files.setdefault(file.path, new)
            if old is new:
                continue
            first, last = sorted((old, new), key=lambda each: (each[1].mtime_ns, each[0]))
            files[file.path] = last
            if first[1].blob != last[1].blob:
                conflicts.append(Conflict(path=file.path, nodes=(first[0], last[0])))
                earlier.append(first)
    return Merged(
        files={path: files[path][1] for path in sorted(files)},
        conflicts=tuple(conflicts),
        earlier=tuple(earlier),
        left=left,
    )


# --- home into the tree --------------------------------------------------------------------------


def bring_home(
    record: SessionRecord,
    root: Path,
    *,
    tree: str,
    outputs: Sequence[str],
    of_options: Sequence[str],
    began: float,
) -> Homecoming:
    """Write what the run wrote below the globs into the working tree, over nothing of the user's.

    `tree` is the digest of what was sent, `outputs` are the globs of the settings, `of_options`
    those of known plugins, and `began` is when the run began, in unix seconds. A file that was sent
    is overwritten while it is still as it was sent; one that was not, while it is as it came home
    the last time, or where an option names it and it has not changed since the run began: there
    pytest would write over it here as well. Raises StoreError.
    """
    merged = merge(record.outputs())
    if not merged.files:
        return Homecoming(merged=merged)
    is_wanted, of_option = matcher([*outputs, *of_options]), matcher(of_options)
    memory = HomeMemory(record, root)
    sent = _sent(record, tree)
    written: list[str] = []
    kept: dict[str, str] = {}
    for path, file in merged.files.items():
        if not is_wanted(path):
            continue
        try:
            with Directory(root, path, create=False) as here:
                reason = _kept_because(
                    here,
                    file,
                    sent.get(path),
                    last=memory.digests.get(path),
                    replaceable_before=began if of_option(path) else 0.0,
                )
            if reason is None:
                _refuse_store(record, root, path)
                write_file(root, path, record.output(file), executable=file.executable)
        except UnsafePathError as problem:
            reason = str(problem)
        if reason is None:
            written.append(path)
        elif reason:
            kept[path] = reason
        if not reason:
            memory.digests[path] = file.blob
    memory.save()
    return Homecoming(
        written=tuple(written),
        kept=kept,
        rest=tuple(path for path in merged.files if not is_wanted(path)),
        merged=merged,
    )


def _kept_because(
    here: Directory,
    file: WrittenFile,
    sent: FileEntry | None,
    *,
    last: str | None,
    replaceable_before: float,
) -> str | None:
    """Return why the file here stays; None: it may be overwritten; "": it is the same already."""
    content = here.digest()
    if content is None:
        return None if sent is None else "was removed here during the run"
    status, digest = content
    if digest == file.blob and bool(status.st_mode & stat.S_IXUSR) == file.executable:
        return ""
    if sent is not None:
        return None if digest == sent.blob else "changed here during the run"
    if digest == last:
        return None
    if max(status.st_mtime, status.st_ctime) < replaceable_before:
        return None
    return "is here too and was not sent"


def _refuse_store(record: SessionRecord, root: Path, path: str) -> None:
    store = record.store.root
    if store is not None and (root / path).is_relative_to(store):
        raise UnsafePathError("is a place in the store")


def _sent(record: SessionRecord, tree: str) -> dict[str, FileEntry]:
    stored = get_tree(record.store, tree) if tree else None
    # Pruned meanwhile: then each file that is here counts as not sent.
    return {} if stored is None else {file.path: file for file in stored.files}


class HomeMemory:
    """The digests of what has come home, by path. Losing it costs no file that is here."""

    def __init__(self, record: SessionRecord, root: Path) -> None:
        self._path = index_path(record.store, root, "home")
        self.digests: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            value = value_of(Mapping[str, str], parse_json(read_file(self._path)))
            self.digests = dict(cast(Mapping[str, str], value))
        self._before = dict(self.digests)

    def save(self) -> None:
        if self.digests == self._before:
            return
        temporary = self._path.with_name(f"{self._path.name}.{secrets.token_hex(8)}")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(self.digests))
            temporary.replace(self._path)


# --- writing -------------------------------------------------------------------------------------


class Directory:
    """The directory of a path below `root`, opened part by part without following a link."""

    def __init__(self, root: Path, path: str, *, create: bool) -> None:
        *folders, self.name = parts = path.split("/")
        if reason := refusal(path):
            raise UnsafePathError(reason)
        if any(map(names_git, parts)):
            raise UnsafePathError(f"is a place in {GIT}")  # a hook in it would run here
        self._folders, self._create = folders, create
        self._root = root
        self.fd = -1  # until it is entered; -1 too where the directory is not there

    def __enter__(self) -> Directory:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            self.fd = os.open(self._root, flags)
        except OSError as problem:
            raise UnsafePathError(f"cannot be written: {problem.strerror}") from problem
        for folder in self._folders:
            try:
                if self._create:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(folder, dir_fd=self.fd)
                deeper = os.open(folder, flags | os.O_NOFOLLOW, dir_fd=self.fd)
            except OSError as problem:
                self.__exit__()
                if problem.errno == errno.ENOENT and not self._create:
                    return self
                if problem.errno in (errno.ELOOP, errno.ENOTDIR):
                    text = f"lies behind {folder!r}, which is no directory here"
                    raise UnsafePathError(text) from problem
                raise UnsafePathError(f"cannot be written: {problem.strerror}") from problem
            self.__exit__()
            self.fd = deeper
        return self

    def __exit__(self, *_: object) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def status(self) -> os.stat_result | None:
        """Return the stat of the file; None where there is none.

        Raises UnsafePathError for anything but a regular file.
        """
        if self.fd < 0:
            return None
        try:
            status = os.stat(self.name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise UnsafePathError(f"cannot be read: {problem.strerror}") from problem
        if not stat.S_ISREG(status.st_mode):
            raise UnsafePathError("is no regular file here")
        return status

    def digest(self) -> tuple[os.stat_result, str] | None:
        """Return the stat of the file and the sha256 of its bytes; None where there is none."""
        status = self.status()
        if status is None:
            return None
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(self.name, flags, dir_fd=self.fd), "rb") as stream:
                return status, hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as problem:
            raise UnsafePathError(f"cannot be read: {problem.strerror}") from problem


def write_file(root: Path, path: str, content: bytes, *, executable: bool) -> None:
    """Write a file below `root`, all of it or nothing; one that is there keeps its other bits.

    Raises UnsafePathError for a path that leads out or through a link, or cannot be written.
    """
    with Directory(root, path, create=True) as folder:
        existing = folder.status()
        temporary = f".{secrets.token_hex(8)}.gpu-cluster"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(temporary, flags, 0o777 if executable else 0o666, dir_fd=folder.fd)
            try:
                with open(descriptor, "wb") as file:
                    file.write(content)
                    if existing is not None:
                        os.fchmod(file.fileno(), _mode(existing.st_mode, executable=executable))
                os.rename(temporary, folder.name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
            except BaseException:
                os.unlink(temporary, dir_fd=folder.fd)
                raise
        except OSError as problem:
            raise UnsafePathError(f"cannot be written: {problem.strerror}") from problem


def _mode(existing: int, *, executable: bool) -> int:
    """Return the bits of a file that is there, executable by whoever may read it, or by nobody."""
    bits = stat.S_IMODE(existing) & ~0o111
    return bits | ((bits & 0o444) >> 2) if executable else bits
