"""The process boundaries: a real fork server, real supervisors, real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pytest_gpu_cluster.contract import procfs
from pytest_gpu_cluster.contract.fields import JsonObject
from pytest_gpu_cluster.node.lease import Lease

SCRIPT = Path(__file__).parents[2] / "harness" / "pytest_gpu_cluster" / "node" / "forkserver.py"
# Stands where the keeper stands: a subreaper that starts the fork server and ends it, and all that
# remains, when its stdin closes.
OWN = "own"  # the name of a directory that holds the code of the cluster itself
KEEPER = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[3])
from pytest_gpu_cluster.node.forkserver import end_descendants, prctl
prctl(36, 1)
subprocess.Popen([sys.executable, sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], "", "trio"])
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
    return 7 if "pytest_gpu_cluster.worker.main" in sys.modules else 0

def hypothesis(spec, channel):
    import warnings
    warnings.simplefilter("error")
    import hypothesis
    return 0 if "trio" in sys.modules else 7

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


class Keeper(NamedTuple):
    """The stand-in's process, and the directory of its node."""

    pid: int
    node: str


class Watched(Lease):
    """A lease that keeps the messages of its process: they may be looked for in any order."""

    def __init__(self, keeper: Keeper, function: str, spec: JsonObject, *, code: str = "") -> None:
        self.messages: list[dict[str, object]] = []
        super().__init__(
            keeper.node, code=code or keeper.node, entry=f"entry:{function}", specification=spec
        )


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeper]:
    node = tmp_path_factory.mktemp("n")
    (node / "entry.py").write_text(ENTRY)
    argv = [
        sys.executable,
        "-c",
        KEEPER,
        str(SCRIPT),
        str(node / "spawn.sock"),
        str(SCRIPT.parents[2]),
        OWN,
    ]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while not (node / "spawn.sock").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        yield Keeper(process.pid, str(node))


def lease(keeper: Keeper, function: str, **spec: int) -> Watched:
    return Watched(keeper, function, {**spec})


def until(opened: Watched, kind: str) -> dict[str, object]:
    """Return the first message of this kind; the others stay for the next call."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for message in opened.messages:
            if message["kind"] == kind:
                return message
        opened.messages += [json.loads(line) for line in opened.receive(0.1)]
    raise AssertionError(f"no {kind} in 20 s")


def below(pid: int) -> list[str]:
    """Return the command lines of everything below a process."""
    table = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in table.splitlines()]
    lines, parents = [], {str(pid)}
    while new := [row for row in rows if row[1] in parents and row[0] not in parents]:
        parents |= {row[0] for row in new}
        lines += [row[2] for row in new]
    return lines


def test_a_process_speaks_on_its_channel_and_its_exit_code_arrives(keeper: Keeper) -> None:
    """Everything else rests on this: no message before the end is lost, and the end is reported."""
    opened = lease(keeper, "quick", value=41)

    assert until(opened, "said")["value"] == 41
    ended = until(opened, "exit")
    assert (ended["status"], ended["ordered"], ended["out"]) == (3, False, "to stdout\n")


def test_a_crash_names_its_signal_and_brings_the_trace(keeper: Keeper) -> None:
    """A crash without its trace is a crash nobody can mend."""
    ended = until(lease(keeper, "segfault"), "exit")

    assert ended["status"] == -signal.SIGSEGV
    assert "Segmentation fault" in str(ended["err"])


def test_what_a_process_leaves_behind_ends_with_it(keeper: Keeper) -> None:
    """Session leaders and orphans are what Ray leaves running when it kills an actor."""
    until(lease(keeper, "orphans"), "exit")

    assert not [line for line in below(keeper.pid) if "4711" in line]


@pytest.mark.parametrize("way", ["order", "owner is gone", "supervisor is killed"])
def test_the_tree_ends_whoever_dies(keeper: Keeper, way: str) -> None:
    """A lease is the only right to exist: its end, its owner's, its supervisor's end the tree."""
    opened = lease(keeper, "forever")
    until(opened, "said")
    deadline = time.monotonic() + 20
    while not any("sleep 4711" in line for line in below(keeper.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)

    if way == "order":
        opened.kill()
        assert until(opened, "exit")["ordered"]
    elif way == "owner is gone":
        opened._lease.shutdown(2)
    else:
        supervisor = int(Path(f"/proc/{opened.pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(supervisor, signal.SIGKILL)
        # Not a crash of the process: its supervisor was lost.
        assert until(opened, "exit")["status"] is None

    deadline = time.monotonic() + 20
    while procfs.start_time(opened.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert procfs.start_time(opened.pid) is None


def test_a_fork_for_other_code_has_nothing_of_ours_imported(keeper: Keeper) -> None:
    """The package of a warm fork server is not the one that a later session brings."""
    assert until(lease(keeper, "imports"), "exit")["status"] == 0


def test_a_fork_for_the_clusters_own_code_has_it_imported(keeper: Keeper) -> None:
    """Three processes of every warm session would else wait for their imports."""
    own = Path(keeper.node, OWN)
    own.mkdir()
    (own / "entry.py").write_text(ENTRY)

    assert until(Watched(keeper, "imports", {}, code=str(own)), "exit")["status"] == 7


def test_hypothesis_is_imported_without_a_warning_beside_a_preloaded_trio(keeper: Keeper) -> None:
    """It became one of every suite, and with `-W error` the end of its run.

    Where anyio brings a pytest plugin, the fork server has imported trio.
    """
    assert until(lease(keeper, "hypothesis"), "exit")["status"] == 0


def test_shared_memory_of_a_killed_process_is_unlinked(keeper: Keeper) -> None:
    """/dev/shm is memory: what a killed test leaves there stays until the machine ends."""
    opened = lease(keeper, "shared")
    name = str(until(opened, "said")["name"])

    opened.kill()
    until(opened, "exit")

    assert not Path("/dev/shm", name.lstrip("/")).exists()


def test_forks_draw_different_random_numbers(keeper: Keeper) -> None:
    """Copies of one generator would make every worker choose the same port, name and shuffle."""
    drawn = {until(lease(keeper, "random_number"), "said")["value"] for _ in range(3)}

    assert len(drawn) == 3


def test_twenty_at_once_keep_their_channels_apart(keeper: Keeper) -> None:
    """Forks that share a descriptor mix their output: seen when collected processes were forked."""
    opened = [lease(keeper, "quick", value=n) for n in range(20)]

    assert [until(each, "said")["value"] for each in opened] == list(range(20))
    assert all(until(each, "exit")["status"] == 3 for each in opened)
