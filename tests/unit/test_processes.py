"""The process boundaries: a real template, real wardens, real kills. Everything else stands on them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_gpu_cluster.node.lease import Lease

SCRIPT = Path(__file__).parents[2] / "harness" / "pytest_gpu_cluster" / "node" / "forkserver.py"
# Stands where the keeper stands: a subreaper that starts the template and ends it, and everything left, when its stdin closes.
KEEPER = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[3])
from pytest_gpu_cluster.node.forkserver import end_descendants, prctl
prctl(36, 1)
subprocess.Popen([sys.executable, sys.argv[1], sys.argv[2], "json"])
sys.stdin.read()
end_descendants(os.getpid())
"""
ENTRY = """
import ctypes, os, subprocess, sys, time

def quick(spec, channel):
    channel.sendall(b'{"kind": "said", "value": %d}\\n' % spec["value"])
    print("to stdout")
    return 3

def segfault(spec, channel):
    import faulthandler
    faulthandler.enable()
    ctypes.string_at(0)

def orphans(spec, channel):
    subprocess.Popen("setsid sleep 4711 & setsid sleep 4711 &", shell=True).wait()
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(4711)
        os._exit(0)
    os.wait()
    return 0

def forever(spec, channel):
    subprocess.Popen(["sleep", "4711"], start_new_session=True)
    channel.sendall(b'{"kind": "said", "value": 1}\\n')
    time.sleep(4711)

def imports(spec, channel):
    return 7 if "pytest_gpu_cluster" in sys.modules else 0

def shared(spec, channel):
    from multiprocessing import shared_memory
    block = shared_memory.SharedMemory(create=True, size=4096)
    channel.sendall(b'{"kind": "said", "name": "%s"}\\n' % block.name.encode())
    time.sleep(4711)

def random_number(spec, channel):
    import random
    channel.sendall(b'{"kind": "said", "value": %d}\\n' % random.getrandbits(60))
    return 0
"""


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    node = tmp_path_factory.mktemp("n")
    (node / "entry.py").write_text(ENTRY)
    argv = [
        sys.executable,
        "-c",
        KEEPER,
        str(SCRIPT),
        str(node / "spawn.sock"),
        str(SCRIPT.parents[2]),
    ]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        process.node = str(node)  # type: ignore[attr-defined]
        deadline = time.monotonic() + 20
        while not (node / "spawn.sock").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        yield process


def lease(keeper: Any, function: str, **spec: Any) -> Lease:
    return Lease(keeper.node, code=keeper.node, entry=f"entry:{function}", specification=spec)


def until(opened: Lease, kind: str) -> dict[str, Any]:
    """The first message of this kind; the others stay for the next call."""
    heard: list[dict[str, Any]] = opened.__dict__.setdefault("heard", [])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for message in heard:
            if message["kind"] == kind:
                return message
        heard += [json.loads(line) for line in opened.receive(0.1)]
    raise AssertionError(f"no {kind} in 20 s")


def below(pid: int) -> list[str]:
    """Command lines of everything below a process."""
    said = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in said.splitlines()]
    found, wanted = [], {str(pid)}
    while new := [row for row in rows if row[1] in wanted and row[0] not in wanted]:
        wanted |= {row[0] for row in new}
        found += [row[2] for row in new]
    return found


def test_a_process_speaks_on_its_channel_and_its_exit_code_arrives(keeper: Any) -> None:
    """Everything else rests on this: what was said before the end is not lost, and the end is known."""
    opened = lease(keeper, "quick", value=41)

    assert until(opened, "said")["value"] == 41
    ended = until(opened, "exit")
    assert (ended["status"], ended["ordered"], ended["out"]) == (3, False, "to stdout\n")


def test_a_crash_names_its_signal_and_brings_the_trace(keeper: Any) -> None:
    """A crash without its trace is a crash nobody can mend."""
    ended = until(lease(keeper, "segfault"), "exit")

    assert ended["status"] == -signal.SIGSEGV
    assert "Segmentation fault" in ended["err"]


def test_what_a_process_leaves_behind_ends_with_it(keeper: Any) -> None:
    """Session leaders and orphans are what Ray leaves running when it kills an actor."""
    until(lease(keeper, "orphans"), "exit")

    assert not [line for line in below(keeper.pid) if "4711" in line]


@pytest.mark.parametrize("way", ["order", "owner is gone", "warden is killed"])
def test_the_tree_ends_whoever_dies(keeper: Any, way: str) -> None:
    """A lease is the only right to exist: order, a lost owner and a lost warden must all put the tree out."""
    opened = lease(keeper, "forever")
    until(opened, "said")
    assert any("sleep 4711" in line for line in below(keeper.pid))

    if way == "order":
        opened.kill()
        assert until(opened, "exit")["ordered"]
    elif way == "owner is gone":
        opened._lease.shutdown(2)
    else:
        warden = int(Path(f"/proc/{opened.pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(warden, signal.SIGKILL)
        assert (
            until(opened, "exit")["status"] is None
        )  # not a crash of the process: its warden was lost

    deadline = time.monotonic() + 20
    while runs(opened.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runs(opened.pid)


def runs(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_template_brings_nothing_of_ours_into_a_fork(keeper: Any) -> None:
    """A warm template that had imported this package would run last session's code."""
    assert until(lease(keeper, "imports"), "exit")["status"] == 0


def test_shared_memory_of_a_killed_process_is_unlinked(keeper: Any) -> None:
    """/dev/shm is memory: what a killed test leaves there stays until the machine ends."""
    opened = lease(keeper, "shared")
    name = until(opened, "said")["name"]

    opened.kill()
    until(opened, "exit")

    assert not Path("/dev/shm", name.lstrip("/")).exists()


def test_forks_draw_different_random_numbers(keeper: Any) -> None:
    """Copies of one generator would make every worker choose the same port, name and shuffle."""
    drawn = {until(lease(keeper, "random_number"), "said")["value"] for _ in range(3)}

    assert len(drawn) == 3


def test_twenty_at_once_keep_their_channels_apart(keeper: Any) -> None:
    """Concurrent forks that share a descriptor mix their output: seen when collected processes were forked."""
    opened = [lease(keeper, "quick", value=n) for n in range(20)]

    assert [until(each, "said")["value"] for each in opened] == list(range(20))
    assert all(until(each, "exit")["status"] == 3 for each in opened)
