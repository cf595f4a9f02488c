"""A working tree -> content-addressed blobs in the store; only what the store lacks goes up.

An index outside the tree remembers the digest of every file by its stat, so that an unchanged tree is not read again.
What the store holds is not remembered but asked: a tree is put after its blobs and pruned before them, so where
`trees/<digest>.json` is, its blobs are too. Where something else deleted a blob, `unpack` deletes the tree as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from pytest_gpu_cluster.bundle import listing, secret_scan
from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.model import Tree
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.node.unpack import PLAIN, ZLIB, blob_key, parse_tree, tree_key

LIMIT_BYTES = 1 << 30
TRIES = 3  # for a tree that changes while it is read
THREADS = 4  # on a disk; more only wait for each other
THREADS_REMOTE = 32  # where nearly all of a request's time is waiting
ASK_ABOVE = 100  # blobs; fewer are sent without asking for the list of all that the store holds
RACY_NS = 2_000_000_000  # a file this young may change again under the same timestamp (git's racy-git; FAT ticks in 2 s)
_SAMPLE_BYTES = 1 << 16  # that tell whether a file can be compressed
_INDEX_VERSION = 1  # also of the rules in credentials


class _File(NamedTuple):
    """A file of the tree as it was seen. `source` is where its bytes are: for a link that leads outside, its target."""

    path: str
    source: str
    executable: bool
    stamp: tuple[int, int, int, int]  # size, mtime, inode, ctime: differs whenever the content may


class _Changed(Exception):  # noqa: N818  # never leaves this module, and is no error: the tree is read again
    """The file at `path` is not what it was a moment ago."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def ship(
    store: Store,
    root: Path,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow_files: Sequence[str] = (),
    limit_bytes: int = LIMIT_BYTES,
) -> Tree:
    """Put the working tree at `root` into the store: what git tracks or would add, and `include`, without `exclude`.

    Links stay links as long as they lead inside the tree. Raises RequestError, before anything is sent, for a tree over
    `limit_bytes`, a file that looks like a credential and is not in `allow_files`, and what cannot be read or kept.
    """
    index = _Index(store, root)
    allowed = listing.matcher(allow_files)
    unsettled = ""
    for _ in range(TRIES):
        paths = listing.listing(root, include=include, exclude=exclude)
        files, links = _survey(root, _without(store.root, root, paths))
        _refuse_size(files, limit_bytes)
        try:
            digests = index.digests(files)
            _refuse_credentials(
                {file: why for file, (_, why) in digests.items() if why and not allowed(file.path)}
            )
            entries = [_entry(file, digest) for file, (digest, _) in digests.items()]
            entries += [{"path": path, "link": target} for path, target in links.items()]
            contents = {digest: _reader(file, digest) for file, (digest, _) in digests.items()}
            tree = _send(store, root.name, entries, contents, before=index.tree)
        except _Changed as changed:
            unsettled = changed.path
            index.forget(unsettled)
        else:
            index.save(digests, tree.digest)
            return tree
    raise RequestError(
        f"{unsettled!r} keeps changing while it is read",
        remedy="stop what writes to it, git-ignore it, or name it in exclude = [...] in [tool.gpu-cluster]",
    )


def ship_files(store: Store, files: Mapping[str, bytes | Path], *, name: str = "files") -> Tree:
    """Put a tree of just these files, by their path in it. For code and data of our own: nothing is refused."""
    entries: list[dict[str, Any]] = []
    contents: dict[str, Callable[[], bytes]] = {}
    for path, source in files.items():
        data = source.read_bytes() if isinstance(source, Path) else source
        executable = isinstance(source, Path) and bool(source.stat().st_mode & stat.S_IXUSR)
        digest = hashlib.sha256(data).hexdigest()
        entries.append(_entry(_File(path, path, executable, (len(data), 0, 0, 0)), digest))
        contents[digest] = lambda data=data: data  # type: ignore[misc]  # mypy infers no type for a default
    return _send(store, name, entries, contents, before="")


# --- what is there --------------------------------------------------------------------------------------------------


def _without(directory: Path | None, root: Path, paths: Iterable[str]) -> Iterable[str]:
    """Without what is below `directory`: a store inside the tree does not ship itself."""
    if directory is None or not directory.is_relative_to(root):
        return paths
    inside = f"{directory.relative_to(root).as_posix()}/"
    return (path for path in paths if not path.startswith(inside))


def _survey(root: Path, paths: Iterable[str]) -> tuple[list[_File], dict[str, str]]:
    """The files, and the links by path. What has vanished, and what is neither file nor link, is left out."""
    files: list[_File] = []
    links: dict[str, str] = {}
    for path in paths:
        source = f"{root}/{path}"
        try:
            seen = os.lstat(source)
            if stat.S_ISLNK(seen.st_mode):
                link = _link(root, path)
                if link is not None:
                    links[path] = link
                    continue
                seen = os.stat(source)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise _unreadable(path, error) from error
        if stat.S_ISREG(seen.st_mode):
            files.append(_File(path, source, bool(seen.st_mode & stat.S_IXUSR), _stamp(seen)))
    if links:  # the index may still have files below what has become a link
        files = [file for file in files if links.keys().isdisjoint(_above(file.path))]
    return files, links


def _stamp(seen: os.stat_result) -> tuple[int, int, int, int]:
    return seen.st_size, seen.st_mtime_ns, seen.st_ino, seen.st_ctime_ns


def _above(path: str) -> Iterable[str]:
    parts = path.split("/")
    return ("/".join(parts[:length]) for length in range(1, len(parts)))


def _link(root: Path, path: str) -> str | None:
    """What the link shall say over there, or None when the file it leads to is to be shipped in its place."""
    here = os.path.dirname(f"{root}/{path}")
    target = os.readlink(f"{root}/{path}")
    leads_to = Path(os.path.normpath(os.path.join(here, target)))
    for top in (root, Path(os.path.realpath(root))):
        if leads_to.is_relative_to(top):
            return (
                os.path.relpath(root / leads_to.relative_to(top), here)
                if os.path.isabs(target)
                else target
            )
    if leads_to.is_dir():
        raise RequestError(
            f"{path!r} is a link to the directory {str(leads_to)!r} outside {root}, which is not shipped",
            remedy=f"have the tests fetch what they need, or add {path!r} to exclude in [tool.gpu-cluster]",
        )
    return None if leads_to.exists() else target


def _entry(file: _File, digest: str) -> dict[str, Any]:
    return {
        "path": file.path,
        "mode": "755" if file.executable else "644",
        "blob": digest,
        "size": file.stamp[0],
    }


# --- what is refused ------------------------------------------------------------------------------------------------


def _refuse_size(files: Sequence[_File], limit_bytes: int) -> None:
    total = sum(file.stamp[0] for file in files)
    if total > limit_bytes:
        biggest = sorted(files, key=lambda file: file.stamp[0], reverse=True)[:5]
        named = "".join(
            f"\n  {file.stamp[0] / (1 << 20):9.1f} MiB  {file.path!r}" for file in biggest
        )
        raise RequestError(
            f"the working tree is {total / (1 << 20):.1f} MiB, over the limit of {limit_bytes / (1 << 20):.1f} MiB;"
            f" the biggest files:{named}",
            remedy="git-ignore what the tests do not need, or name it in exclude = [...] in [tool.gpu-cluster]",
        )


def _refuse_credentials(suspects: Mapping[_File, str]) -> None:
    if suspects:
        named = "".join(f"\n  {file.path!r}: {why}" for file, why in list(suspects.items())[:10])
        more = f"\n  and {len(suspects) - 10} more" if len(suspects) > 10 else ""
        first = json.dumps(next(iter(suspects)).path)
        raise RequestError(
            f"what looks like a credential would leave this machine:{named}{more}",
            remedy=f"git-ignore it, or name it in exclude = [...] in [tool.gpu-cluster]; if it is meant to travel: allow-files = [{first}]",
        )


def _unreadable(path: str, error: OSError) -> RequestError:
    return RequestError(
        f"{path!r} cannot be read: {error.strerror}",
        remedy="mend its permissions, or name it in exclude = [...] in [tool.gpu-cluster]",
    )


# --- what is known --------------------------------------------------------------------------------------------------


class _Index:
    """The digest of each file by its stamp, and the tree last shipped. Losing it costs time, nothing else."""

    def __init__(self, store: Store, root: Path) -> None:
        self.path = _index_path(store, root)
        self.began_ns = time.time_ns()
        self.known: dict[str, list[Any]] = {}
        self.tree = ""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            saved = json.loads(self.path.read_bytes())
            if saved["v"] == _INDEX_VERSION:
                self.known, self.tree = saved["files"], saved["tree"]

    def digests(self, files: Iterable[_File]) -> dict[_File, tuple[str, str]]:
        """Digest and suspicion of each file that is still there. Raises _Changed, or RequestError if unreadable."""
        found: dict[_File, tuple[str, str]] = {}
        unknown: list[_File] = []
        for file in files:
            known = self.known.get(file.path)
            if known is not None and known[:4] == [*file.stamp]:
                found[file] = (known[4], known[5])
            else:
                unknown.append(file)
        with ThreadPoolExecutor(THREADS) as pool:
            for file, result in zip(unknown, pool.map(_digest, unknown), strict=True):
                if result is not None:
                    found[file] = result
                    self.known[file.path] = [*file.stamp, *result]
        return found

    def forget(self, path: str) -> None:
        self.known.pop(path, None)

    def save(self, digests: Mapping[_File, tuple[str, str]], tree: str) -> None:
        old = self.began_ns - RACY_NS
        files = {
            f.path: [*f.stamp, *result]
            for f, result in digests.items()
            if max(f.stamp[1], f.stamp[3]) < old
        }
        content = json.dumps({"v": _INDEX_VERSION, "tree": tree, "files": files})
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(content)
            temporary.replace(self.path)


def _index_path(store: Store, root: Path) -> Path:
    """In a local store, else in the user's cache directory."""
    name = hashlib.sha256(f"{store.url}\n".encode() + os.fsencode(root)).hexdigest()[:16]
    if store.root is not None:
        return store.root / "index" / f"{name}.json"
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(cache):
        cache = os.devnull  # a user without a home: nothing can be remembered below it
    return Path(cache, "gpu-cluster", f"index-{name}.json")


def _digest(file: _File) -> tuple[str, str] | None:
    """Digest and suspicion, or None when the file has vanished."""
    try:
        with open(file.source, "rb") as stream:
            if file.stamp[0] <= secret_scan.SCANNED_BYTES:
                data = stream.read()
                digest = hashlib.sha256(data).hexdigest()
                text = None if b"\0" in data else data
            else:
                digest, text = hashlib.file_digest(stream, "sha256").hexdigest(), None
            if _stamp(os.fstat(stream.fileno())) != file.stamp:
                raise _Changed(file.path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(file.path, error) from error
    target = os.path.realpath(file.source) if os.path.islink(file.source) else ""
    return digest, secret_scan.suspicion(file.path, text) or (
        target and secret_scan.suspicion(target, text)
    )


# --- what is sent ---------------------------------------------------------------------------------------------------


def _reader(file: _File, digest: str) -> Callable[[], bytes]:
    def read() -> bytes:
        with contextlib.suppress(OSError):
            data = Path(file.source).read_bytes()
            if hashlib.sha256(data).hexdigest() == digest:
                return data
        raise _Changed(file.path)

    return read


def _send(
    store: Store,
    name: str,
    entries: Sequence[dict[str, Any]],
    contents: Mapping[str, Callable[[], bytes]],
    *,
    before: str,
) -> Tree:
    """Put the blobs that the store lacks, then the tree. `before` is a tree that it probably has."""
    tree = {"v": 1, "root": name, "entries": sorted(entries, key=lambda entry: str(entry["path"]))}
    raw = json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(raw).hexdigest()
    sent: list[int] = []
    held = _blobs(store, digest) is not None
    if not held:
        missing = contents.keys() - (_blobs(store, before) or frozenset())
        if len(missing) > ASK_ABOVE:
            missing -= {key.rpartition("/")[2] for key in store.list("blobs/")}

        def put(blob: str) -> int:
            packed = _packed(contents[blob]())
            store.put(blob_key(blob), packed)
            return len(packed)

        with ThreadPoolExecutor(THREADS if store.is_local else THREADS_REMOTE) as pool:
            sent = list(pool.map(put, sorted(missing)))
    if not held or store.is_local:  # pruning a local store spares what was put lately
        store.put(tree_key(digest), raw)
    total = sum(entry.get("size", 0) for entry in entries)
    return Tree(
        digest=digest, files=len(entries), bytes=total, sent_blobs=len(sent), sent_bytes=sum(sent)
    )


def _blobs(store: Store, tree: str) -> frozenset[str] | None:
    """The blobs of a tree that the store holds; None when it does not, or holds something else in its place."""
    raw = store.get(tree_key(tree)) if tree else None
    try:
        return (
            None
            if raw is None
            else frozenset(e["blob"] for e in parse_tree(raw, tree)["entries"] if "blob" in e)
        )
    except ValueError:
        return None


def _packed(data: bytes) -> bytes:
    sample = data[:_SAMPLE_BYTES]
    packed = zlib.compress(sample, 1)
    if len(packed) > 0.95 * len(sample):
        return PLAIN + data
    return ZLIB + (packed if len(sample) == len(data) else zlib.compress(data, 1))
