"""Processes of this machine, as Linux shows them in /proc.

Every function is quiet about a process that is gone or belongs to another user: it looks like none.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from pytest_gpu_cluster.contract.frozen import dataclass

PR_SET_DUMPABLE = 4


def forbid_inspection() -> None:
    """Keep other processes of this user out of this one: out of its memory and of its descriptors.

    Root may look all the same, and a program that it starts can be looked at again. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE, 0)")


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process at one moment; pid and start time name it for ever, because pids are reused."""

    pid: int
    parent: int
    zombie: bool  # it has ended, and its parent has not asked for its exit code
    stopped: bool  # by a signal, as SIGSTOP; a debugger's hold is none
    start_time: str  # in the kernel's ticks since boot


def process(pid: int) -> Process | None:
    """Return the process with this pid; None where there is none."""
    with contextlib.suppress(OSError):
        # The name, in parentheses, may hold spaces and parentheses: fields are counted behind it.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return Process(
            pid=pid,
            parent=int(fields[1]),
            zombie=fields[0] == b"Z",
            stopped=fields[0] == b"T",
            start_time=fields[19].decode(),
        )
    return None


def processes() -> Iterator[Process]:
    """Return every process of this machine, zombies included."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (entry := process(int(name))) is not None:
            yield entry


def start_time(pid: int) -> str | None:
    """Return when a process began, in the kernel's ticks; None where none lives."""
    entry = process(pid)
    return None if entry is None or entry.zombie else entry.start_time


def is_stopped(pid: int) -> bool:
    """Return True for a process that is stopped, as by SIGSTOP: it is there and does nothing."""
    entry = process(pid)
    return entry is not None and entry.stopped


def children(parent: int) -> list[int]:
    """Return the pids of the living children of a process, zombies left out."""
    return [each.pid for each in processes() if each.parent == parent and not each.zombie]


def kernel_name(pid: int) -> str:
    """Return the name of a process, of at most 15 bytes (see prctl(2)); "" where there is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def command_line(pid: int) -> bytes:
    """Return the arguments of a process, each ended by a zero byte; b"" where there is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def with_environment(text: bytes) -> list[int]:
    """Return the pids of other living processes whose initial environment contains `text`.

    Of one of this user that forbids its inspection, the command line has to contain it.
    """
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and _names(pid, text) and start_time(pid)]


def _names(pid: int, text: bytes) -> bool:
    with contextlib.suppress(OSError):
        try:
            return text in Path(f"/proc/{pid}/environ").read_bytes()
        except PermissionError:
            status = Path(f"/proc/{pid}/status").read_text()
            is_mine = f"\nUid:\t{os.getuid()}\t" in status
            return is_mine and text in command_line(pid)
    return False
