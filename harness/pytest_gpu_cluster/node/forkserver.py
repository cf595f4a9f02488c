"""The fork server of a node: a process that has imported what is heavy, and nothing of the user's code.

Run as a script (`python forkserver.py SOCKET MODULE …`) so that this package itself is not among the imports: every session
brings its own. It is never connected to Ray, holds no CUDA context, no store client and no capture, and has one thread.

    keeper ── template            one connection to SOCKET = one process = one lease
       └───── warden ── process   the warden is the keeper's child, and the subreaper of everything the process starts

The protocol is frozen, for it outlives sessions. A client connects (unix, SOCK_SEQPACKET) and sends one message
`{"entry": "module:function", "code": directory}` with three descriptors: channel, stdout, stderr. The warden answers
`{"pid": n}` and, at the end, `{"exit": status, "ordered": bool}` (as os.waitstatus_to_exitcode gives it) once the whole tree
is gone; a connection that closes without it means that the warden was lost. `{"signal": n}` from the client goes to the
process; `{"kill": true}`, or the connection closing, ends the tree.
The process reads its specification from the channel (4 bytes of length, big-endian, then JSON) and calls
`function(specification, channel) -> exit code`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.metadata
import importlib.util
import json
import os
import select
import signal
import socket
import sys
import sysconfig
import time
from typing import NoReturn

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36


def prctl(option: int, value: int | bytes) -> None:
    """Linux's prctl(2) with one argument; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value!r})")


def descendants(root: int) -> list[int]:
    """Pids of every living process below `root`, zombies left out; from /proc, so Linux."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
                children.setdefault(int(parent), []).append(
                    int(name) if state != b"Z" else -int(name)
                )
    found: list[int] = []
    unseen = [root]
    while unseen:
        below = children.get(unseen.pop(), [])
        unseen += [abs(pid) for pid in below]
        found += [pid for pid in below if pid > 0]
    return found


def reap() -> dict[int, int]:
    """Exit codes by pid of the children that have ended since the last call."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended


def end_descendants(root: int, *, within_s: float = 10.0) -> dict[int, int]:
    """SIGKILL everything below `root` (this process, a subreaper) until nothing is left; exit codes of own children.

    Raises TimeoutError naming what survived (a process in uninterruptible sleep).
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


def _run(message: dict[str, str], descriptors: list[int]) -> NoReturn:
    """In the forked process: become what was asked for. Never returns into the caller's stack."""
    code = 1
    try:
        for target, descriptor in zip((1, 2), descriptors[1:], strict=True):
            os.dup2(descriptor, target)
            os.close(descriptor)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - lives as long as the process
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        channel = socket.socket(fileno=descriptors[0])
        _reseed()
        sys.path.insert(0, message["code"])
        module, _, function = message["entry"].partition(":")
        entry = getattr(importlib.import_module(module), function)
        size = int.from_bytes(_exactly(channel, 4), "big")
        code = entry(json.loads(_exactly(channel, size)), channel)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = channel.recv(size - len(data))
        if not piece:
            raise EOFError("the channel closed before the specification had arrived")
        data += piece
    return data


def _reseed() -> None:
    """Forks of one process would otherwise draw the same random numbers; CUDA must be unused before a fork."""
    import random

    random.seed()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.seed()
        if torch.cuda._is_in_bad_fork():
            raise RuntimeError(
                "the template had initialised CUDA: a preloaded module touches the GPU when imported"
            )


def shared_memory(root: int) -> set[str]:
    """Files in /dev/shm that processes below `root` have mapped."""
    found: set[str] = set()
    for pid in descendants(root):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", errors="replace") as file:
            found |= {
                line[line.index("/dev/shm/") :].strip() for line in file if "/dev/shm/" in line
            }
    return {path for path in found if not path.endswith("(deleted)")}


def remove_shared_memory(segments: set[str], pid: int, *, since: float) -> None:
    """Unlink what a killed tree could not: segments it had mapped, and torch's, whose names carry the pid."""
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


def _settle(pid: int, status: int | None, *, grace_s: float = 0.3) -> dict[int, int]:
    """Give what a dead process left a moment to end by itself: resource trackers then clean up as they should."""
    ended = {} if status is None else {pid: status}
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        ended |= reap()
        if not descendants(os.getpid()):
            break
        time.sleep(0.005)
    return ended


def _warden(lease: socket.socket, message: dict[str, str], descriptors: list[int]) -> NoReturn:
    """Own one process and all that it starts, until it has ended or the lease is gone."""
    began = time.time()
    os.setsid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_NAME, b"gpu-warden")
    wake, poke = os.pipe()
    os.set_blocking(poke, False)
    signal.set_wakeup_fd(poke, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        for name in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(name, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_NAME, b"gpu-worker")
        for descriptor in (wake, poke, lease.detach()):
            os.close(descriptor)
        _run(message, descriptors)
    prctl(
        PR_SET_PDEATHSIG, signal.SIGTERM
    )  # the keeper's death: by now it is this process's parent
    for descriptor in descriptors:
        os.close(descriptor)
    lease.send(json.dumps({"pid": pid}).encode())
    status: int | None = None
    closing = False
    while status is None:
        ready, _, _ = select.select([lease.fileno(), wake], [], [])
        if wake in ready and (closing := signal.SIGTERM in os.read(wake, 4096)):
            break
        status = reap().get(pid)
        if lease.fileno() in ready and status is None:
            try:
                order = json.loads(lease.recv(65536) or b'{"kill": true}')
            except OSError:
                break
            if "signal" in order:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, order["signal"])
            if order.get("kill"):
                break
    ordered = status is None
    segments = shared_memory(os.getpid())
    if status is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    ended = _settle(pid, status)
    ended |= end_descendants(os.getpid())
    remove_shared_memory(segments, pid, since=began)
    if not closing:
        with contextlib.suppress(OSError):
            lease.send(
                json.dumps({"exit": ended.get(pid, -signal.SIGKILL), "ordered": ordered}).encode()
            )
    os._exit(0)


def serve(listener: socket.socket) -> None:
    """Fork a warden for each connection, for ever."""
    while True:
        lease, _ = listener.accept()
        data, descriptors, _, _ = socket.recv_fds(lease, 65536, 3)
        if len(descriptors) == 3:
            between = os.fork()
            if between == 0:
                listener.close()
                parent = os.getpid()
                pid = os.fork()
                if pid == 0:
                    while (
                        os.getppid() == parent
                    ):  # until the keeper has adopted it, a death signal would come from here
                        time.sleep(0.0005)
                    _warden(lease, json.loads(data), list(descriptors))
                os._exit(0)
            os.waitpid(between, 0)
        for descriptor in descriptors:
            os.close(descriptor)
        lease.close()


def preload_plugins() -> None:
    """Import the environment's pytest plugins as pytest would, assertions rewritten: 0.1 s that each process would pay again.

    Only from site-packages: an editable one may change while the cluster is warm, and this package comes with each session.
    """
    hook = None
    try:  # all private; a pytest that has it otherwise costs the time, nothing else
        from _pytest.assertion import install_importhook
        from _pytest.config import default_plugins, get_config

        for name in default_plugins:
            importlib.import_module(f"_pytest.{name}")
        config = get_config()
        hook = install_importhook(config)
        config._mark_plugins_for_rewrite(hook, False)
        installed = tuple(f"{sysconfig.get_path(name)}/" for name in ("purelib", "platlib"))
        for point in importlib.metadata.entry_points(group="pytest11"):
            top = point.module.partition(".")[0]
            spec = importlib.util.find_spec(top)
            if (
                top != "pytest_gpu_cluster"
                and spec is not None
                and (spec.origin or "").startswith(installed)
            ):
                importlib.import_module(point.module)
    except Exception as problem:  # whose plugin it is will say so when a session imports it
        print(f"plugins {type(problem).__name__}: {problem}".replace("\n", " "), flush=True)
    finally:
        if hook in sys.meta_path:
            sys.meta_path.remove(hook)


def main(path: str, modules: list[str]) -> None:
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.pop("OMP_NUM_THREADS", None)
    prctl(PR_SET_NAME, b"gpu-template")
    sys.path.remove(
        os.path.dirname(os.path.abspath(__file__))
    )  # put there for a script; its neighbours are no top-level modules
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as problem:
            print(f"absent {name} {problem}".replace("\n", " "), flush=True)
    preload_plugins()
    threads = len(os.listdir("/proc/self/task"))
    gc.freeze()  # a fork need not search what is imported: pytest collects garbage five times at its end, 40 ms each with torch and Ray
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(64)
    print(f"ready {threads}", flush=True)
    serve(listener)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
