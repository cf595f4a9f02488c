"""The working tree of one session after the other: the last one is mended for the next.

A session may change whatever is in its tree. What it has changed is written anew when it is over,
while the node waits; then what is different in the next session's tree; the rest stays. What the
tree was is in the keeper's memory alone, out of a test's reach, and ends with the node.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.tree_paths import folders_of
from pytest_gpu_cluster.contract.trees import FileEntry, LinkEntry, StoredTree
from pytest_gpu_cluster.node.guest import Guest
from pytest_gpu_cluster.node.snapshot import (
    Snapshot,
    folder_stamp,
    settle,
    snapshot,
    stat_tells_all,
)
from pytest_gpu_cluster.node.unpack import install, read_tree, write_entries

KEPT, DISCARDED, PROBE = "kept-tree", "discarded-tree", "probe"  # names in the node's directory


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """A working tree on this node, as it was before a session ran in it."""

    digest: str
    tree: StoredTree
    place: Path  # without links
    snapshot: Snapshot
    mended: bool = False  # no session has run in it since the snapshot was taken

    def is_there(self) -> bool:
        """Return True where its place still leads to its directory.

        A test may have put another there, or a link out of this node's directory above it.
        """
        try:
            if os.path.realpath(self.place) != str(self.place):
                return False
            return folder_stamp(self.place, os.lstat(self.place)) == self.snapshot.get("")
        except OSError:
            return False


class WorkingTrees:
    """Makes the trees of sessions on this node, of which it keeps the last one.

    A cluster serves one session at a time: who asks for the tree of another has seen the end of it.
    """

    def __init__(
        self, store: Store, directory: Path, *, cache: Path, guest: Guest | None = None
    ) -> None:
        self._store, self._cache, self._guest = store, cache, guest
        self._directory = Path(os.path.realpath(directory))
        self._lock = threading.Lock()  # guards the next
        self._last: Unpacked | None = None  # None also while it is mended: it may not succeed
        self._stat_tells_all: bool | None = None  # None: not tried yet
        self._begun: dict[Path, Future[None]] = {}  # by target; until it is asked for

    def begin(self, digest: str, target: Path) -> None:
        """Begin to make a tree in the background: whoever asks for it then waits less."""
        self._begun[target] = begun = Future[None]()

        def run() -> None:
            try:
                self._unpack(digest, target)
            except Exception as problem:  # noqa: BLE001 - raised where the tree is asked for
                begun.set_exception(problem)
            else:
                begun.set_result(None)

        threading.Thread(target=run, name="unpack", daemon=True).start()

    def unpack(self, digest: str, target: Path) -> None:
        """Make `target` the tree `digest`. Do nothing if it is that tree already.

        Raises StoreError as `node.unpack.unpack` does.
        """
        if (begun := self._begun.pop(target, None)) is not None:
            begun.result()
        else:
            self._unpack(digest, target)

    def _unpack(self, digest: str, target: Path) -> None:
        with self._lock:
            made = install(self._store, digest, target, lambda fresh: self._make(digest, fresh))
            if made is not None:
                self._last = replace(made, place=Path(os.path.realpath(target)))

    def keep(self) -> None:
        """Move the last tree out of the directory of its session, which is over and will go.

        It is mended in the background; the next tree waits for that.
        """
        if not self._lock.acquire(blocking=False):
            return  # the session has ended before its tree was made
        self._begun.clear()
        last, self._last = self._last, None
        if last is None or not last.is_there():
            self._lock.release()
            return
        kept = self._directory / KEPT
        try:
            os.rename(last.place, kept)
        except OSError:
            self._lock.release()
            return  # the next tree is made from nothing

        def run() -> None:
            try:
                self._last = self._mended(replace(last, place=kept))
            finally:
                self._lock.release()

        threading.Thread(target=run, name="mend", daemon=True).start()

    def _mended(self, last: Unpacked) -> Unpacked | None:
        """Return the tree as it was before the session; None where that cannot be."""
        try:
            stamps = self._mend(last, last.tree, last.place)
        except Exception as problem:  # noqa: BLE001 - the next session is told if it concerns it
            print(f"keeper: the tree {last.digest[:12]} is not kept: {problem}", flush=True)
            with contextlib.suppress(OSError):
                self._discard(last.place)
            return None
        return replace(last, snapshot=stamps, mended=True) if stamps is not None else None

    def _make(self, digest: str, fresh: Path) -> Unpacked:
        """Make the empty directory `fresh` the tree."""
        last, self._last = self._last, None
        tree = last.tree if last and last.digest == digest else read_tree(self._store, digest)
        stamps = None
        if last is not None and last.is_there():
            with contextlib.suppress(OSError):
                if _shares_most(last.tree, tree):
                    os.rename(last.place, fresh)
                    stamps = self._mend(last, tree, fresh)
                else:
                    self._discard(last.place)
        if stamps is None:
            write_entries(self._store, tree.entries, fresh, self._cache, self._guest)
            stamps = self._settled(fresh)
        return Unpacked(digest=digest, tree=tree, place=fresh, snapshot=stamps)

    def _mend(self, last: Unpacked, tree: StoredTree, place: Path) -> Snapshot | None:
        """Make the last tree, which is at `place` now, the next one.

        Leave an empty directory if it cannot be done. Raises StoreError.
        """
        if last.mended and tree is last.tree:
            return last.snapshot
        try:
            now = last.snapshot if last.mended else snapshot(place, known=last.snapshot)
            intact = {path for path, stamp in now.items() if last.snapshot.get(path) == stamp}
            if not last.mended and not self._can_trust_stat():
                intact -= _differing(place, [f for f in last.tree.files if f.path in intact])
            if tree is last.tree and len(intact) == len(now) == len(last.snapshot):
                return last.snapshot
            kept = _still_wanted(intact, last.tree, tree)
            for path in sorted(now.keys() - kept):  # a directory comes before what is in it
                _remove(place / path)
            missing = [entry for entry in tree.entries if entry.path not in kept]
            write_entries(self._store, missing, place, self._cache, self._guest)
            return self._settled(place)
        except OSError:  # such as a directory without permissions
            self._discard(place)
            place.mkdir(exist_ok=True)
            return None

    def _settled(self, top: Path) -> Snapshot:
        """Return the snapshot of a tree as soon as no change can go unnoticed; {} if one could."""
        stamps = snapshot(top)
        return stamps if settle(stamps, self._directory / PROBE) else {}

    def _can_trust_stat(self) -> bool:
        if self._stat_tells_all is None:
            self._stat_tells_all = stat_tells_all(self._directory / PROBE)
        return self._stat_tells_all

    def _discard(self, place: Path) -> None:
        """Remove a tree in the background: it may be big, and its successor small."""
        discarded = self._directory / f"{DISCARDED}-{secrets.token_hex(4)}"
        os.rename(place, discarded)
        threading.Thread(
            target=shutil.rmtree, args=(discarded, True), name="discard", daemon=True
        ).start()


def _shares_most(last: StoredTree, tree: StoredTree) -> bool:
    """Return True where less of the last tree must be removed than stays."""
    if last is tree:
        return True
    before = set(last.entries)
    return 2 * len(before.intersection(tree.entries)) >= len(before)


def _still_wanted(intact: set[str], last: StoredTree, tree: StoredTree) -> set[str]:
    """Return the paths of what is intact and has the same entry in the next tree.

    Directories have no entry of their own. Nothing that is to be a directory stays what it is
    otherwise: no file is written through a link.
    """
    before = _by_path(last)
    wanted = before if tree is last else _by_path(tree)
    folders = folders_of(wanted)

    def is_wanted(path: str) -> bool:
        if path in folders:
            return path not in before
        return path in before and wanted.get(path) == before[path]

    return set(filter(is_wanted, intact))


def _by_path(tree: StoredTree) -> dict[str, FileEntry | LinkEntry]:
    return {entry.path: entry for entry in tree.entries}


def _differing(top: Path, files: list[FileEntry]) -> set[str]:
    """Return the paths of files whose content is another."""
    paths = set()
    for file in files:
        with open(top / file.path, "rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != file.blob:
                paths.add(file.path)
    return paths


def _remove(path: Path) -> None:
    """Remove a file, a link, or a directory with everything in it; quiet when it is gone."""
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        shutil.rmtree(path)
