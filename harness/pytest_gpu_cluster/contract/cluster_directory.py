"""The directory of a cluster on a machine: private, marked as ours, and removed only as such.

It lies directly in the private directory of this user's clusters, and its mark holds the cluster's
id. A record in a store can name any cluster; what has no such mark is not one, and is left alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from pytest_gpu_cluster.contract.ids import check_id, is_id

MARK = "gpu-cluster.mark"


def make_directory(base: Path, cluster: str, mode: int = 0o700) -> Path:
    """Make the directory of a cluster. Raises FileExistsError, and OSError where it cannot."""
    directory = base / check_id(cluster, "cluster")
    directory.mkdir(mode=mode)
    try:
        (directory / MARK).write_text(cluster)
    except OSError:
        (directory / MARK).unlink(missing_ok=True)
        directory.rmdir()
        raise
    return directory


def is_private(path: Path) -> bool:
    """Return True for a directory of this user, and no link, that is closed to others.

    They may pass through it to a path that they know, as tests do that run as another user.
    """
    try:
        status = path.lstat()
    except OSError:
        return False
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    return is_ours and not status.st_mode & 0o066


def is_own(directory: Path) -> bool:
    """Return True for a directory that `make_directory` has made for this user."""
    if not (is_id(directory.name) and is_private(directory.parent) and is_private(directory)):
        return False
    try:
        descriptor = os.open(directory / MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as mark:
            return mark.read() == directory.name.encode()
    except OSError:
        return False


def is_foreign(directory: Path) -> bool:
    """Return True where something else than a cluster is in its place.

    An empty directory is none: another process is about to remove it.
    """
    if is_own(directory):
        return False
    try:
        return bool(os.listdir(directory))
    except FileNotFoundError:
        return directory.is_symlink()
    except OSError:
        return True


def own_directories(base: Path) -> Iterator[Path]:
    """Yield the directory of each cluster of this user, in the order of their names."""
    with contextlib.suppress(OSError):
        yield from filter(is_own, sorted(base.iterdir()))


def remove_directory(directory: Path) -> None:
    """Remove the directory of a cluster, its mark last; do nothing to any other.

    What cannot be removed keeps the mark, so that a sweep finds it again.
    """
    if not is_own(directory):
        return
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != MARK:
            with contextlib.suppress(OSError):
                path.unlink()
    with contextlib.suppress(OSError):
        if [*directory.iterdir()] == [directory / MARK]:
            (directory / MARK).unlink()
            directory.rmdir()
