"""A working tree -> content-addressed blobs in the store; only what the store lacks is sent.

`contract.trees` has the form of what is sent. A tree is put after its blobs and pruned before them,
so a store that holds a tree holds its blobs too. Where something else deleted a blob, `node.unpack`
deletes the tree as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType

from pytest_gpu_cluster.bundle import listing
from pytest_gpu_cluster.bundle.index import (
    FileChangedError,
    LastTree,
    Scan,
    SourceFile,
    StatIndex,
    stamp_of,
    survey_of,
    unreadable,
)
from pytest_gpu_cluster.contract.background import Background
from pytest_gpu_cluster.contract.bounded import DOCUMENT_BYTES
from pytest_gpu_cluster.contract.errors import RequestError, UnreadableRecordError
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.globs import matcher
from pytest_gpu_cluster.contract.store import DISK_THREADS, REMOTE_THREADS, Store
from pytest_gpu_cluster.contract.trees import (
    BLOBS,
    FileEntry,
    LinkEntry,
    StoredTree,
    blob_key,
    blobs_in,
    pack_blob,
    tree_key,
)

LIMIT_BYTES = 1 << 30
ATTEMPTS = 3  # for a tree that changes while it is read
ASK_ABOVE = 100  # blobs; fewer are sent without asking whether the store has them

Contents = Mapping[str, Callable[[], bytes]]  # by digest: reads the file


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A working tree in the store. `digest` names the listing that `tree_key` places."""

    digest: str
    files: int
    bytes: int
    sent_blobs: int
    sent_bytes: int

    @property
    def detail(self) -> str:
        """The numbers of files, and of contents that the store did not have."""
        return (
            f"{self.files} file{'' if self.files == 1 else 's'}, {self.sent_blobs or 'nothing'} new"
        )


def tree_name(root: Path, invocation_dir: Path) -> str:
    """Return the path of a tree on a node, relative to the directory that holds it.

    The tree's place relative to the invocation directory stays the same.

    >>> tree_name(Path("/a/project"), Path("/a/project/tests"))
    'project'
    >>> tree_name(Path("/a/b/c"), Path("/a"))
    'a/b/c'
    """
    common = Path(os.path.commonpath([root, invocation_dir]))
    return str(Path(common.name, root.relative_to(common)))


def ship(
    store: Store,
    root: Path,
    *,
    start: str = "",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow_files: Sequence[str] = (),
    extra: Mapping[str, bytes] = MappingProxyType({}),
    limit_bytes: int = LIMIT_BYTES,
) -> Tree:
    """Put the working tree at `root` into the store.

    The tree is what git tracks or would add below its directory `start`, and `include`, without
    `exclude`; and the files `extra` by their paths. Links that lead inside the tree stay links.
    Raises RequestError, before anything is sent, for a tree over `limit_bytes`, for a file that
    looks like a credential and is not in `allow_files`, and for what cannot be read or shipped.
    """
    index = StatIndex(store, root)
    is_allowed = matcher(allow_files)
    made, made_contents = _made(extra)
    unsettled = ""
    for _ in range(ATTEMPTS):
        paths = listing.listing(root, start=start, include=include, exclude=exclude)
        files, links = _survey(root, _outside(store.root, root, paths))
        _refuse_size(files, limit_bytes)
        survey = survey_of(files, links, made, allow_files)
        if survey == index.last.survey and _renew(store, index.last.tree):
            last = index.last
            return Tree(
                digest=last.tree, files=last.files, bytes=last.bytes, sent_blobs=0, sent_bytes=0
            )
        try:
            scans = index.scan(files)
            _refuse_credentials(
                [(f.path, s.suspicion) for f, s in scans.items() if s.suspicion], is_allowed
            )
            stored = StoredTree(root=root.name, files=(*_entries(scans), *made), links=tuple(links))
            contents = made_contents | {
                scan.digest: partial(_read, file, scan.digest) for file, scan in scans.items()
            }
            tree = _send(store, stored, contents, previous=index.last.tree)
        except FileChangedError as change:
            unsettled = change.path
            index.forget(unsettled)
        else:
            last = LastTree(survey=survey, tree=tree.digest, files=tree.files, bytes=tree.bytes)
            index.save(scans, last)
            return tree
    raise RequestError(
        f"{unsettled!r} keeps changing while it is read",
        remedy="stop what writes to it, git-ignore it, or name it in exclude = [...]"
        " in [tool.gpu-cluster]",
    )


def ship_files(store: Store, files: Mapping[str, bytes | Path], *, name: str = "files") -> Tree:
    """Put a tree of just `files`, by their path in it. Nothing is refused: they are our own."""
    entries, contents = _made(files)
    return _send(store, StoredTree(root=name, files=tuple(entries)), contents, previous="")


def _made(
    files: Mapping[str, bytes | Path] | Mapping[str, bytes],
) -> tuple[list[FileEntry], dict[str, Callable[[], bytes]]]:
    """Return the entries of files by their path, and their contents by digest."""
    entries: list[FileEntry] = []
    contents: dict[str, Callable[[], bytes]] = {}
    for path, source in files.items():
        content = source.read_bytes() if isinstance(source, Path) else source
        executable = isinstance(source, Path) and bool(source.stat().st_mode & stat.S_IXUSR)
        digest = hashlib.sha256(content).hexdigest()
        entries.append(FileEntry(path, _mode(executable), digest, len(content)))
        contents[digest] = partial(bytes, content)
    return entries, contents


# --- the files and links of the tree -------------------------------------------------------------


def _outside(directory: Path | None, root: Path, paths: Iterable[str]) -> Iterable[str]:
    """Return the paths that are not below `directory`: a store does not ship itself."""
    top = next(
        (top for top in (root, root.resolve()) if directory and directory.is_relative_to(top)), None
    )
    if directory is None or top is None:
        return paths
    inside = f"{directory.relative_to(top).as_posix()}/"
    return (path for path in paths if not path.startswith(inside))


def _survey(root: Path, paths: Iterable[str]) -> tuple[list[SourceFile], list[LinkEntry]]:
    """Return the files and the links. What has vanished, and pipes and sockets, are left out."""
    files: list[SourceFile] = []
    links: list[LinkEntry] = []
    top = str(root)
    for path in paths:
        source = f"{top}/{path}"
        try:
            status = os.lstat(source)
            if stat.S_ISLNK(status.st_mode):
                target = _link_target(root, path)
                if target is not None:
                    links.append(LinkEntry(path, target))
                    continue
                status = os.stat(source)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise unreadable(path, error) from error
        if stat.S_ISREG(status.st_mode):
            executable = bool(status.st_mode & stat.S_IXUSR)
            files.append(SourceFile(path, source, executable, stamp_of(status)))
    if links:  # git's index may still have files below a directory that has become a link
        link_paths = {link.path for link in links}
        files = [file for file in files if link_paths.isdisjoint(_parents(file.path))]
    return files, links


def _parents(path: str) -> Iterable[str]:
    parts = path.split("/")
    return ("/".join(parts[:length]) for length in range(1, len(parts)))


def _link_target(root: Path, path: str) -> str | None:
    """Return the target of a link on a node, or None when the file that it leads to is shipped."""
    folder = os.path.dirname(f"{root}/{path}")
    target = os.readlink(f"{root}/{path}")
    leads_to = Path(os.path.normpath(os.path.join(folder, target)))
    for top in (root, Path(os.path.realpath(root))):
        if leads_to.is_relative_to(top):
            inside = os.path.relpath(root / leads_to.relative_to(top), folder)
            return inside if os.path.isabs(target) else target
    if leads_to.is_dir():
        raise RequestError(
            f"{path!r} is a link to the directory {str(leads_to)!r} outside {root},"
            " which is not shipped",
            remedy=f"have the tests fetch what they need, or add {path!r} to exclude"
            " in [tool.gpu-cluster]",
        )
    return None if leads_to.exists() else target


def _entries(scans: Mapping[SourceFile, Scan]) -> tuple[FileEntry, ...]:
    return tuple(
        FileEntry(file.path, _mode(file.executable), scan.digest, file.stamp[0])
        for file, scan in scans.items()
    )


def _mode(executable: bool) -> int:
    return 0o755 if executable else 0o644


# --- what is refused -----------------------------------------------------------------------------


def _refuse_size(files: Sequence[SourceFile], limit_bytes: int) -> None:
    total = sum(file.stamp[0] for file in files)
    if total > limit_bytes:
        biggest = sorted(files, key=lambda file: file.stamp[0], reverse=True)[:5]
        named = "".join(
            f"\n  {file.stamp[0] / (1 << 20):9.1f} MiB  {file.path!r}" for file in biggest
        )
        raise RequestError(
            f"the working tree is {total / (1 << 20):.1f} MiB,"
            f" over the limit of {limit_bytes / (1 << 20):.1f} MiB; the biggest files:{named}",
            remedy="git-ignore what the tests do not need, or name it in exclude = [...]"
            " in [tool.gpu-cluster]",
        )


def _refuse_credentials(
    suspects: Iterable[tuple[str, str]], is_allowed: Callable[[str], bool]
) -> None:
    """Refuse files that look like credentials, each a path and a reason."""
    refused = [(path, reason) for path, reason in suspects if not is_allowed(path)]
    if refused:
        named = "".join(f"\n  {path!r}: {reason}" for path, reason in refused[:10])
        more = f"\n  and {len(refused) - 10} more" if len(refused) > 10 else ""
        raise RequestError(
            f"what looks like a credential would leave this machine:{named}{more}",
            remedy="git-ignore it, or name it in exclude = [...] in [tool.gpu-cluster];"
            f" what is meant to travel: allow-files = {json.dumps([path for path, _ in refused])}",
        )


# --- what is sent --------------------------------------------------------------------------------


def _read(file: SourceFile, digest: str) -> bytes:
    """Return the bytes of a file that were scanned. Raises FileChangedError."""
    with contextlib.suppress(OSError):
        content = Path(file.source).read_bytes()
        if hashlib.sha256(content).hexdigest() == digest:
            return content
    raise FileChangedError(file.path)


def _send(store: Store, tree: StoredTree, contents: Contents, *, previous: str) -> Tree:
    """Put the blobs that the store lacks, then the tree. The store probably has tree `previous`."""
    document = tree.to_bytes()
    digest = hashlib.sha256(document).hexdigest()
    sent: list[int] = []
    last = Background(lambda: _stored(store, previous))
    is_stored = _stored(store, digest) is not None
    if not is_stored:
        missing = contents.keys() - blobs_in(last.result() or b"")
        if len(missing) > ASK_ABOVE:
            missing -= _held(store, missing)

        def put(blob: str) -> int:
            packed = pack_blob(contents[blob]())
            store.put(blob_key(blob), packed)
            return len(packed)

        with ThreadPoolExecutor(DISK_THREADS if store.is_local else REMOTE_THREADS) as pool:
            sent = list(pool.map(put, sorted(missing)))
    if not is_stored or store.is_local:  # pruning a local store spares what was put lately
        store.put(tree_key(digest), document)
    return Tree(
        digest=digest,
        files=len(tree.files) + len(tree.links),
        bytes=sum(file.size for file in tree.files),
        sent_blobs=len(sent),
        sent_bytes=sum(sent),
    )


def _held(store: Store, blobs: Set[str]) -> set[str]:
    """Return the blobs that the store has. A bucket, of any size, is asked for each, not listed.

    Digests are random: where it has none of the first 100, it is taken to have none.
    """
    if store.is_local:
        return {key.rpartition("/")[2] for key in store.list(BLOBS)}

    def having(some: Sequence[str]) -> set[str]:
        answers = pool.map(store.holds, map(blob_key, some))
        return {*itertools.compress(some, answers)}

    with ThreadPoolExecutor(REMOTE_THREADS) as pool:
        first = having(sorted(blobs)[:ASK_ABOVE])
        return first | having(sorted(blobs)[ASK_ABOVE:]) if first else first


def _renew(store: Store, tree: str) -> bool:
    """Return True when the store holds this tree. Pruning a local store spares what is new."""
    document = _stored(store, tree)
    if document is not None and store.is_local:
        store.put(tree_key(tree), document)
    return document is not None


def _stored(store: Store, tree: str) -> bytes | None:
    """Return a tree as the store holds it, or None when it does not hold just this tree."""
    content = None
    with contextlib.suppress(UnreadableRecordError):  # more than a tree: it is sent anew
        content = store.get(tree_key(tree), limit_bytes=DOCUMENT_BYTES) if tree else None
    if content is None or hashlib.sha256(content).hexdigest() != tree:
        return None
    return content
