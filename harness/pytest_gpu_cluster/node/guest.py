"""The user that tests run as on this node, where it is another than the keeper's.

keeper's user   guard, keeper, Ray, fork server, supervisors, agents; the node's directory
tests' user     selecting processes and workers; the tree and all that tests write
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from pytest_gpu_cluster.contract.errors import InfrastructureError
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.specs import SPOOL

ENTERED = 0o711  # a directory whose entries can be reached by those who know their names
SHARED = 0o1777  # a directory where each user has entries of its own


@dataclass(frozen=True, kw_only=True)
class Guest:
    """The tests' user."""

    name: str
    uid: int
    gid: int
    home: Path

    @classmethod
    def named(cls, name: str) -> Guest | None:
        """Return the user of this name; None for "": tests run as the keeper does.

        Raises InfrastructureError: there is none, or this process cannot start processes of it.
        """
        if not name:
            return None
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise InfrastructureError(
                f"the node has no user {name!r}, which tests are to run as",
                remedy="have the boot script add it: useradd --create-home " + name,
            ) from None
        if os.geteuid() != 0 or entry.pw_uid == 0:
            raise InfrastructureError(
                f"tests are to run as {name!r}, and the keeper runs as uid {os.geteuid()}",
                remedy="start the guard as root, and tests as another user",
            )
        return cls(name=name, uid=entry.pw_uid, gid=entry.pw_gid, home=Path(entry.pw_dir))

    def enter(self, node: Path) -> None:
        """Let the user reach what it is given of a node's directory; what this process makes there
        can be read, and no group of this process's opens a file to the user.
        """
        os.umask(0o022)
        os.setgroups([])
        node.chmod(ENTERED)

    def settle(self, scratch: Path, temporary: Path) -> None:
        """Make the directories of a session such that the user can write there."""
        (scratch / SPOOL).mkdir(mode=0o700, exist_ok=True)  # before a test could make it a link
        for path in (scratch, scratch / "tree", temporary):
            path.mkdir(exist_ok=True)
            path.chmod(SHARED)

    def own(self, path: str | Path) -> None:
        """Make the user the owner of a file, a directory or a link itself."""
        os.chown(path, self.uid, self.gid, follow_symlinks=False)

    @contextlib.contextmanager
    def rights(self) -> Iterator[None]:
        """Give this thread the user's rights to files: a link of a test's leads no further.

        A thread that is started meanwhile keeps them.
        """
        libc = ctypes.CDLL(None)
        libc.setfsgid(self.gid)
        libc.setfsuid(self.uid)
        try:
            yield
        finally:
            libc.setfsuid(os.geteuid())
            libc.setfsgid(os.getegid())


def rights_of(guest: Guest | None) -> AbstractContextManager[None]:
    """Give this thread the rights of the tests' user, where that is another."""
    return nullcontext() if guest is None else guest.rights()
