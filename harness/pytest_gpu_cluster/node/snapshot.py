"""The stamps of everything in a directory: two snapshots differ where something was changed.

No content is read. A change of a file moves its ctime, which no program can set back, and a file
that was put in the place of another has another inode.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path

Attributes = tuple[tuple[str, bytes], ...]
# Of a file or a link: mode, inode, size, mtime and ctime in ns. Of a directory, whose times move
# with what is made in it: mode, inode, device, owner, group, and its extended attributes.
Stamp = tuple[int, int, int, int, int, Attributes]
Snapshot = dict[str, Stamp]  # by path, relative to the directory, which itself is ""

CLOCK_LIMIT_S = 3.0  # FAT ticks in 2 s


def snapshot(top: Path, *, known: Mapping[str, Stamp] | None = None) -> Snapshot:
    """Return the stamp of everything in the directory `top`. No link is followed. Raises OSError.

    With `known`, no directory is entered that has another stamp there.
    """
    stamps: Snapshot = {}
    unvisited = [("", str(top), os.lstat(top))]
    while unvisited:
        folder, place, status = unvisited.pop()
        stamps[folder] = stamp = folder_stamp(place, status)
        if known is not None and known.get(folder) != stamp:
            continue
        prefix = f"{folder}/" if folder else ""
        with os.scandir(place) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    unvisited.append((prefix + entry.name, entry.path, status))
                else:
                    stamps[prefix + entry.name] = (
                        status.st_mode,
                        status.st_ino,
                        status.st_size,
                        status.st_mtime_ns,
                        status.st_ctime_ns,
                        (),
                    )
    return stamps


def folder_stamp(place: str | Path, status: os.stat_result) -> Stamp:
    """Return the stamp of a directory from its `lstat`."""
    attributes: Attributes = ()
    with contextlib.suppress(OSError):  # a filesystem may have none
        names = sorted(os.listxattr(place, follow_symlinks=False))
        attributes = tuple(
            (each, os.getxattr(place, each, follow_symlinks=False)) for each in names
        )
    return (
        status.st_mode,
        status.st_ino,
        status.st_dev,
        status.st_uid,
        status.st_gid,
        attributes,
    )


def settle(stamps: Snapshot, probe: Path) -> bool:
    """Wait until the next change of a file gets a later ctime than every file of a snapshot.

    The clock of a filesystem ticks in some ms; a change within the same tick would not be seen.
    `probe` is a path for a file there. Return False where the clock does not tick.
    """
    newest = max((s[4] for s in stamps.values() if not stat.S_ISDIR(s[0])), default=0)
    return _ticks(probe, newest)


def stat_tells_all(probe: Path) -> bool:
    """Return True where a write through a memory map moves the ctime of the file at `probe`.

    On a tmpfs it does not, when the page was read before.
    """
    try:
        probe.write_bytes(b"a")
        before = os.lstat(probe).st_ctime_ns
        with open(probe, "r+b") as file, mmap.mmap(file.fileno(), 0) as content:
            value = content[0]
            ticks = _ticks(probe.with_name(f"{probe.name}.tick"), before)
            content[0] = value + 1
        return ticks and os.lstat(probe).st_ctime_ns > before
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def _ticks(probe: Path, after_ns: int) -> bool:
    """Wait until the filesystem's clock is later; return False where it stands still."""
    deadline = time.monotonic() + CLOCK_LIMIT_S
    try:
        while time.monotonic() < deadline:
            probe.write_bytes(b"")
            if os.lstat(probe).st_ctime_ns > after_ns:
                return True
            time.sleep(0.001)
        return False
    finally:
        probe.unlink(missing_ok=True)
