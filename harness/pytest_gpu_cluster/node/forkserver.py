"""The fork server of a node: it has imported what is heavy, and nothing of the user's code.

Run as a script (`python forkserver.py SOCKET CODE NAME USER MODULE …`) with the standard library
alone: every session brings this package, and only where that is the cluster's own (NAME; it is in
CODE) a process has it imported already. For that reason it has its own walk of /proc beside
`contract.procfs`; the keeper imports what both need from this module.
The fork server is never connected to Ray, holds no CUDA context, no store client and no capture,
and has one thread. SOCKET appears when it listens.

    keeper ── fork server         one connection to SOCKET = one process = one lease
       └───── supervisor ── process

A supervisor is the keeper's child, and the subreaper of everything that its process starts. The
process runs as USER, unless that is empty or the order says `as_keeper`.

The protocol is frozen, for it outlives sessions. A client connects (unix, SOCK_SEQPACKET) and sends
one message `{"entry": "module:function", "code": directory, "as_keeper": bool}` with three
descriptors: channel, stdout, stderr. The supervisor answers `{"pid": n}` and, at the end, `{"exit":
status, "ordered": bool}` (as os.waitstatus_to_exitcode gives it) once the whole tree is gone; a
connection that closes without it means that the supervisor was lost. `{"signal": n}` from the
client goes to the process; `{"kill": true}`, or the connection closing, ends the tree. The process
reads its specification from the channel (4 bytes of length, big-endian, then JSON) and calls
`function(specification, channel) -> exit code`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn, NotRequired, TypedDict

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 4, 15, 36
# Names of processes in the kernel, of at most 15 bytes.
SERVER_NAME = "gpu-forkserver"
SUPERVISOR_NAME = "gpu-supervisor"
PROCESS_NAME = "gpu-worker"
MOST_WAITING = 64  # connections whose order has not come


class SpawnOrder(TypedDict):
    """A client's one message: which function a process calls, and a directory for sys.path."""

    entry: str
    code: str
    as_keeper: NotRequired[bool]  # the process stays one of the keeper's user


class Neighbours(NamedTuple):
    """Functions of the files beside this script, which no fork may have as top-level modules."""

    adapt: Callable[[SpawnOrder], None]  # in a fork, before it imports from a directory of code
    mapped: Callable[[list[int]], set[str]]  # shared memory of processes
    unlink: Callable[[set[str], int, float], None]  # remove what is left of it


def prctl(option: int, value: int | bytes) -> None:
    """Call prctl of Linux with one argument. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value!r})")


def descendants(root: int) -> list[int]:
    """Return the pids of all living processes below `root`, zombies left out; from /proc."""
    children: dict[int, list[int]] = {}  # by parent; the pid of a zombie is negative
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
                children.setdefault(int(parent), []).append(
                    int(name) if state != b"Z" else -int(name)
                )
    living: list[int] = []
    unvisited = [root]
    while unvisited:
        below = children.get(unvisited.pop(), [])
        unvisited += [abs(pid) for pid in below]
        living += [pid for pid in below if pid > 0]
    return living


def reap() -> dict[int, int]:
    """Return the exit codes, by pid, of the children that have ended since the last call."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended


def end_descendants(root: int, *, within_s: float = 10.0) -> dict[int, int]:
    """Kill everything below `root` (this process, a subreaper) until nothing is left.

    Return the exit codes of this process's own children. Raises TimeoutError that names what
    survived: a process in uninterruptible sleep.
    """
    ended = reap()
    deadline = time.monotonic() + within_s
    while alive := descendants(root):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {alive} survived SIGKILL for {within_s} s")
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
        ended |= reap()
    return ended | reap()


def _run(order: SpawnOrder, descriptors: list[int], neighbours: Neighbours) -> NoReturn:
    """Call the function of an order in the forked process. Never returns."""
    code = 1
    try:
        channel = _redirect(descriptors)
        neighbours.adapt(order)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a process of another user has lost it
        prctl(PR_SET_DUMPABLE, 1)  # likewise: debuggers of that user may attach
        sys.path.insert(0, order["code"])
        module, _, function = order["entry"].partition(":")
        entry = getattr(importlib.import_module(module), function)
        size = int.from_bytes(_exactly(channel, 4), "big")
        code = entry(json.loads(_exactly(channel, size)), channel)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # noqa: BLE001 - printed, and the exit code says so
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _redirect(descriptors: list[int]) -> socket.socket:
    """Make the second and third descriptor stdout and stderr, stdin empty; return the channel."""
    for target, descriptor in zip((1, 2), descriptors[1:], strict=True):
        os.dup2(descriptor, target)
        os.close(descriptor)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - as stdin
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 - as stdin
    return socket.socket(fileno=descriptors[0])


def _exactly(channel: socket.socket, size: int) -> bytes:
    """Read `size` bytes. Raises EOFError."""
    data = b""
    while len(data) < size:
        piece = channel.recv(size - len(data))
        if not piece:
            raise EOFError("the channel closed before the specification had arrived")
        data += piece
    return data


def _settle(pid: int, status: int | None, *, grace_s: float = 0.3) -> dict[int, int]:
    """Give what a dead process has started a moment to end by itself: resource trackers clean up.

    Return the exit codes of the children that have ended, with that of the process.
    """
    ended = {} if status is None else {pid: status}
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        ended |= reap()
        if not descendants(os.getpid()):
            break
        time.sleep(0.005)
    return ended


def _supervise(
    lease: socket.socket, order: SpawnOrder, descriptors: list[int], neighbours: Neighbours
) -> NoReturn:
    """Own one process and all that it starts, until it has ended or the lease is gone."""
    began = time.time()
    os.setsid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_NAME, SUPERVISOR_NAME.encode())
    pipe = _wake_on_signals()
    pid = os.fork()
    if pid == 0:
        _become_process(pipe, lease)
        _run(order, descriptors, neighbours)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # the keeper's death: by now it is the parent
    for descriptor in descriptors:
        os.close(descriptor)
    lease.send(json.dumps({"pid": pid}).encode())
    status, closing = _wait(pid, lease, pipe[0])
    segments = neighbours.mapped(descendants(os.getpid()))
    if status is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    ended = _settle(pid, status)
    ended |= end_descendants(os.getpid())
    neighbours.unlink(segments, pid, began)
    if not closing:
        report = {"exit": ended.get(pid, -signal.SIGKILL), "ordered": status is None}
        with contextlib.suppress(OSError):
            lease.send(json.dumps(report).encode())
    os._exit(0)


def _wake_on_signals() -> tuple[int, int]:
    """Have the numbers of signals written to a pipe, which `select` sees; return its two ends."""
    wake, poke = os.pipe()
    os.set_blocking(poke, False)
    signal.set_wakeup_fd(poke, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return wake, poke


def _become_process(pipe: tuple[int, int], lease: socket.socket) -> None:
    """Undo in the forked process what is the supervisor's, and die with the supervisor."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_NAME, PROCESS_NAME.encode())
    for descriptor in (*pipe, lease.detach()):
        os.close(descriptor)


def _wait(pid: int, lease: socket.socket, wake: int) -> tuple[int | None, bool]:
    """Wait for the end of the process, or for a reason to end it; pass signals on to it.

    Return its exit code (None: it has to be ended) and True when the keeper is gone, so that nobody
    reads a report.
    """
    while True:
        ready, _, _ = select.select([lease.fileno(), wake], [], [])
        if wake in ready and signal.SIGTERM in os.read(wake, 4096):
            return None, True
        status = reap().get(pid)
        if status is not None:
            return status, False
        if lease.fileno() in ready:
            try:
                order = json.loads(lease.recv(65536) or b'{"kill": true}')
            except OSError:
                return None, False
            if "signal" in order:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, order["signal"])
            if order.get("kill"):
                return None, False


def serve(listener: socket.socket, neighbours: Neighbours) -> None:
    """Fork a supervisor for each order, for ever. Who connects and orders nothing delays nobody."""
    waiting: list[socket.socket] = []  # connections without an order, the oldest first
    while True:
        ready, _, _ = select.select([listener, *waiting], [], [])
        if listener in ready:
            waiting.append(listener.accept()[0])
        for lease in waiting[:]:
            if lease in ready:
                waiting.remove(lease)
                _spawn(lease, [listener, *waiting], neighbours)
        if len(waiting) > MOST_WAITING:
            waiting.pop(0).close()


def _spawn(lease: socket.socket, others: list[socket.socket], neighbours: Neighbours) -> None:
    """Fork a supervisor for the order of a connection; in it, close what belongs to others."""
    data, descriptors = b"", list[int]()
    with contextlib.suppress(OSError):  # who has connected is gone
        data, descriptors, _, _ = socket.recv_fds(lease, 65536, 3)
    if len(descriptors) == 3:
        between = os.fork()
        if between == 0:
            for other in others:
                other.close()
            parent = os.getpid()
            if os.fork() == 0:
                # Before the keeper has adopted it, a death signal would be that of `between`.
                while os.getppid() == parent:
                    time.sleep(0.0005)
                _supervise(lease, json.loads(data), descriptors, neighbours)
            os._exit(0)
        os.waitpid(between, 0)
    for descriptor in descriptors:
        os.close(descriptor)
    lease.close()


def main(path: str, code: str, name: str, *, user: str, modules: list[str]) -> None:
    """Import the modules and what pytest needs, then serve at `path` for ever."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.pop("OMP_NUM_THREADS", None)
    prctl(PR_SET_NAME, SERVER_NAME.encode())
    preload, shared_memory = map(importlib.import_module, ("preload", "shared_memory"))
    # No fork may have our files as top-level modules.
    del sys.modules["preload"], sys.modules["shared_memory"]
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))
    preload.import_modules(modules)
    preload.import_pytest_plugins()
    preload.import_package(code)
    print(f"threads {len(os.listdir('/proc/self/task'))}", flush=True)
    # A fork need not search what is imported: pytest collects garbage five times at its end, 40 ms
    # each with torch and Ray.
    gc.freeze()

    def adapt(order: SpawnOrder) -> None:
        if not order.get("as_keeper"):
            preload.be_first_to_go()
            if user:
                preload.become(user)
        preload.adapt(order["code"], name)

    serve(listen(path), Neighbours(adapt, shared_memory.mapped, shared_memory.unlink))


def listen(path: str) -> socket.socket:
    """Return a listening socket. `path` appears when it listens: whoever sees it can connect."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.fchmod(listener.fileno(), 0o600)
    listener.bind(f"{path}.new")
    listener.listen(64)
    os.rename(f"{path}.new", path)
    return listener


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], user=sys.argv[4], modules=sys.argv[5:])
