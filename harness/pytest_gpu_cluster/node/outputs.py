"""Files of this node, such as those that tests wrote into the tree, on their way into the record.

All test processes of a node share one tree, so of two that wrote one file the later stands there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from pytest_gpu_cluster.contract.globs import matcher
from pytest_gpu_cluster.contract.masking import Masker
from pytest_gpu_cluster.contract.outputs import (
    REST_BYTES,
    REST_FILES,
    WANTED_BYTES,
    HeldBack,
    NodeOutputs,
    OutputsOrder,
    WrittenFile,
)
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.store import DISK_THREADS, REMOTE_THREADS, Store
from pytest_gpu_cluster.contract.trees import FileEntry
from pytest_gpu_cluster.node.guest import Guest, rights_of
from pytest_gpu_cluster.node.unpack import read_tree

# What tools leave in a tree and nobody asks for, but for a glob that names it.
LITTER = (
    *(".git", "__pycache__", "*.pyc", ".pytest_cache", ".hypothesis", ".coverage", ".coverage.*"),
    *(
        "*.ambr.lock",
        ".mypy_cache",
        ".ruff_cache",
        ".ipynb_checkpoints",
        "node_modules",
        ".gpu-cluster",
    ),
)
_VENV_MARK = "pyvenv.cfg"


class FoundFile(NamedTuple):
    """A regular file of the tree on this node."""

    path: str  # relative to the tree
    status: os.stat_result


def mark_begin(root: Path) -> None:
    """Remember, beside a tree that has just been unpacked, that no test has written to it yet."""
    with contextlib.suppress(FileExistsError):
        _mark(root).touch(exist_ok=False)


def collect(
    store: Store, order: OutputsOrder, *, guest: Guest | None = None
) -> tuple[HeldBack, ...]:
    """Store what is not as it was sent, and a listing of it; return what holds a secret.

    Raises StoreError.
    """
    found = list(touched(order.root, since_ns=_begin_ns(order.root), globs=order.globs))
    if not found:
        return ()
    gate = Gate(order.passed.masker())
    sent = _sent(store, order.tree)
    with rights_of(guest):
        files = written(order.root, found, sent)
    chosen, left = within_limits(files, matcher(order.globs))
    record = SessionRecord(store, order.session)

    def put(file: FoundFile) -> WrittenFile | None:
        content = _read(order.root / file.path, guest)
        if content is None or not gate.admits(file.path, content):
            return None
        return _stored(record, file, content)

    with ThreadPoolExecutor(DISK_THREADS if store.is_local else REMOTE_THREADS) as pool:
        stored = tuple(filter(None, pool.map(put, chosen)))
    if stored or left:
        record.put_outputs(NodeOutputs(node=order.node, files=stored, left=left))
    return tuple(gate.held)


def upload(
    store: Store, prefix: str, source: Path, gate: Gate, *, guest: Guest | None = None
) -> None:
    """Put a file at the key `prefix`, or a directory's files below it. Raises StoreError.

    What the tests could not read is left out.
    """
    with rights_of(guest):
        paths = [source] if os.path.isfile(source) else sorted(source.rglob("*"))
        files = [path for path in paths if os.path.isfile(path)]  # False where it may not look
    for path in files:
        key = prefix if path == source else f"{prefix}/{path.relative_to(source).as_posix()}"
        name = key.rpartition("/")[2] if path == source else key.removeprefix(f"{prefix}/")
        content = _read(path, guest)
        if content is not None and gate.admits(name, content):
            store.put(key, content)


def _read(path: Path, guest: Guest | None) -> bytes | None:
    """Return the content of a file, as far as tests could; None where it is gone or not theirs."""
    with contextlib.suppress(OSError), rights_of(guest):
        return path.read_bytes()
    return None


class Gate:
    """Holds files back whose content or name has a secret in it."""

    def __init__(self, mask: Masker) -> None:
        self._mask = mask
        self.held: list[HeldBack] = []

    def admits(self, path: str, content: bytes) -> bool:
        """Return True for a file that others may read."""
        name = os.fsencode(path)
        variable = self._mask.holder(name) or self._mask.holder(content)
        if variable:
            self.held.append(HeldBack(path=self._mask(path), variable=variable))
        return not variable


# --- the scan ------------------------------------------------------------------------------------


def touched(root: Path, *, since_ns: int, globs: Sequence[str] = ()) -> Iterator[FoundFile]:
    """Yield the regular files below `root` whose inode has changed since then, without litter.

    The time of change counts: nothing but a write, a rename or a chmod sets it. Links are not
    followed. `globs` may name litter that is wanted all the same.
    """
    named = {part for glob in globs for part in glob.split("/")}
    is_litter = matcher([name for name in LITTER if name not in named])
    return _walk(root, "", since_ns, is_litter)


def _walk(
    root: Path, folder: str, since_ns: int, is_litter: Callable[[str], bool]
) -> Iterator[FoundFile]:
    try:
        entries = list(os.scandir(root / folder))
    except OSError:  # a test has closed or removed it
        return
    if folder and any(entry.name == _VENV_MARK for entry in entries):
        return
    for entry in entries:
        path = f"{folder}/{entry.name}" if folder else entry.name
        try:
            if entry.is_dir(follow_symlinks=False):
                if not is_litter(entry.name):
                    yield from _walk(root, path, since_ns, is_litter)
                continue
            status = entry.stat(follow_symlinks=False)
        except OSError:  # it has gone meanwhile
            continue
        changed = status.st_ctime_ns >= since_ns and stat.S_ISREG(status.st_mode)
        if changed and not is_litter(entry.name):
            yield FoundFile(path, status)


def written(root: Path, found: Iterable[FoundFile], sent: dict[str, FileEntry]) -> list[FoundFile]:
    """Return those of the found files that are not as they were sent."""
    return [file for file in found if not _is_as_sent(root, file, sent.get(file.path))]


def _is_as_sent(root: Path, file: FoundFile, entry: FileEntry | None) -> bool:
    if entry is None or file.status.st_size != entry.size:
        return False
    if bool(file.status.st_mode & stat.S_IXUSR) != bool(entry.mode & stat.S_IXUSR):
        return False
    try:
        with open(root / file.path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == entry.blob
    except OSError:
        return False


def within_limits(
    files: Collection[FoundFile], is_wanted: Callable[[str], bool]
) -> tuple[list[FoundFile], int]:
    """Return the files to store, wanted ones first, and the number of those beyond the limits."""
    chosen: list[FoundFile] = []
    budgets = {True: [WANTED_BYTES, len(files)], False: [REST_BYTES, REST_FILES]}
    wanted = {file.path: is_wanted(file.path) for file in files}
    for file in sorted(files, key=lambda file: (not wanted[file.path], file.path)):
        budget = budgets[wanted[file.path]]
        if file.status.st_size <= budget[0] and budget[1]:
            budget[0] -= file.status.st_size
            budget[1] -= 1
            chosen.append(file)
    return chosen, len(files) - len(chosen)


# --- the store -----------------------------------------------------------------------------------


def _mark(root: Path) -> Path:
    return root.with_name(f"{root.name}.began")


def _begin_ns(root: Path) -> int:
    """Return when no test had run yet, by the clock of the tree's file system; 0: unknown."""
    try:
        return _mark(root).stat().st_ctime_ns
    except OSError:
        return 0


def _sent(store: Store, digest: str) -> dict[str, FileEntry]:
    return {entry.path: entry for entry in read_tree(store, digest).files}


def _stored(record: SessionRecord, file: FoundFile, content: bytes) -> WrittenFile:
    digest = hashlib.sha256(content).hexdigest()
    record.put_output(digest, content)
    return WrittenFile(
        path=file.path,
        executable=bool(file.status.st_mode & stat.S_IXUSR),
        blob=digest,
        size=len(content),
        mtime_ns=file.status.st_mtime_ns,
    )
