"""What killed processes leave in /dev/shm: the supervisor of a fork unlinks it.

Runs without this package, as a neighbour of the script `forkserver.py`: the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable


def mapped(pids: Iterable[int]) -> set[str]:
    """Return the files in /dev/shm that processes have mapped."""
    paths: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", errors="replace") as file:
            paths |= {
                line[line.index("/dev/shm/") :].strip() for line in file if "/dev/shm/" in line
            }
    return {path for path in paths if not path.endswith("(deleted)")}


def unlink(segments: set[str], pid: int, since: float) -> None:
    """Unlink what a killed tree could not: the segments that it had mapped, and torch's.

    The names of torch's segments carry the pid of the process. Files older than `since` (unix
    seconds) stay.
    """
    with contextlib.suppress(OSError):
        segments |= {
            f"/dev/shm/{name}"
            for name in os.listdir("/dev/shm")
            if name.startswith(f"torch_{pid}_")
        }
    for path in segments:
        with contextlib.suppress(OSError):
            if os.stat(path).st_ctime >= since:
                os.unlink(path)
