"""The files of a local store as keys: no link is followed, and what is no file is none.

Others may have filled the directory: it lies in a checkout, or comes out of a CI cache. A link in
it leads anywhere, a named pipe is waited for without end, and of a name that is no key the vendor
makes the failure of a whole listing.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from pytest_gpu_cluster.contract.errors import StoreError, UnreadableRecordError

MARK = ".gitignore"  # in a local store, from its opening on

# What no part of a key has: control characters, and bytes that are no UTF-8.
_NO_PART = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_STAGED = re.compile(r"#\d+\Z")  # at the end of a file's name: it is still being written


def make_root(path: Path) -> os.stat_result:
    """Make the directory of a store if absent, private; return its stat. Raises OSError."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path.stat()


def is_open_to_others(status: os.stat_result) -> bool:
    """Return True for a directory that another user may write to, root aside."""
    of_others = os.geteuid() != 0 and status.st_uid not in (0, os.geteuid())
    return bool(status.st_mode & 0o022) or of_others


def mark_root(path: Path) -> None:
    """Mark a directory as a store, which ignores itself in git. Raises OSError.

    An empty one becomes private, as if it had been made here.
    """
    if (path / MARK).exists():
        return
    if not any(path.iterdir()) and path.stat().st_uid == os.geteuid():
        path.chmod(0o700)
    with contextlib.suppress(FileExistsError), open(path / MARK, "x") as file:
        file.write("*\n")


def check_there(root: Path, action: str) -> None:
    """Raise StoreError where a local store has gone since it was opened.

    The vendor would make its directories again, for all to read, and write on into them.
    """
    try:
        os.stat(root / MARK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            f"{action}: the store is gone: it was deleted, moved or unmounted since it was opened",
            remedy="put it back, or run again: a new one is made there",
        ) from error
    except OSError:
        return  # the call itself says it better


def check_way(root: Path, key: str) -> bool:
    """Return False where nothing is at `key` below `root`; True: there is, or the vendor knows.

    Raises UnreadableRecordError where a link is on the way, or at its end what is no file.
    """
    path = str(root)
    for part in key.strip("/").split("/") if key else ():
        if part in ("", ".", ".."):
            return True  # no key
        path = f"{path}/{part}"
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (OSError, ValueError):
            return True  # of which the vendor says what is wrong
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            kind = "a link" if stat.S_ISLNK(mode) else "no file"
            raise UnreadableRecordError(
                f"{path} in the store is {kind}; it was left alone",
                remedy="look at who put it there, and remove it",
            )
    return True


def entries_of(root: Path, folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield the files and folders directly in `folder`; none where it is absent or a file.

    Those that are still being written are among them. Raises UnreadableRecordError, and OSError
    as the vendor words it.
    """
    folder = folder.strip("/")
    if not check_way(root, folder):
        return
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                plain = entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
                if plain and not _NO_PART.search(entry.name):
                    yield entry
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise OSError(f"{error.strerror} (os error {error.errno})") from error


def names_in(root: Path, folder: str) -> tuple[list[str], list[str]]:
    """Return the names of the folders and those of the files directly in `folder`."""
    folders: list[str] = []
    files: list[str] = []
    for entry in entries_of(root, folder):
        if entry.is_dir():
            folders.append(entry.name)
        elif not _STAGED.search(entry.name):
            files.append(entry.name)
    return folders, files


def keys_below(root: Path, folder: str) -> Iterator[str]:
    """Yield the keys of all files below `folder`; see `entries_of`."""
    waiting = [folder.strip("/")]
    while waiting:
        folder = waiting.pop()
        folders, files = names_in(root, folder)
        above = f"{folder}/" if folder else ""
        yield from (f"{above}{name}" for name in files)
        waiting += (f"{above}{name}" for name in folders)
