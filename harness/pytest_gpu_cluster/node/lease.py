"""A leased process on a node, and the Ray actor that holds its GPUs.

`Lease` is one process forked from the node's fork server, with everything that it starts. `Slot` is
a reservation: an actor that holds GPUs in Ray's books, sits on their node, and relays between the
agent and the one lease that it may open there. Ray reserves, it does not own processes: when a Slot
dies its lease closes and the supervisor ends the tree; in an orderly release the tree is gone
before the reservation is dropped.

Only the standard library is imported, because Ray's workers receive this module by value; so it has
its own walk of /proc.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple, TypedDict

TAIL_BYTES = 64 * 1024
# What a process says within so long is read at once: short tests are many, and each wakes three
# processes.
GATHER_S = 0.008
STACKS_SIGNAL = signal.SIGRTMAX - 1  # a worker registers faulthandler for it
NODE_VARIABLE = "GPU_CLUSTER_INTERNAL_NODE"  # the node's directory, for its processes
KEEPER_LOOK_S = 1.0  # between two looks if the keeper of a node lives


class KeeperAnswer(TypedDict, total=False):
    """The answer of a keeper: facts of its node, or `error` and `remedy`."""

    gpus: list[dict[str, str | float | bool]]
    host: str
    driver: str | None
    error: str
    remedy: str


class SupervisorReport(NamedTuple):
    """The end of a process, as its supervisor reports it."""

    status: int | None  # exit code, negative: the signal; None: the supervisor was lost
    ordered: bool  # it was ended by order


class Lease:
    """One process on this node. Closing it, or losing its owner, ends the process and its tree.

    `receive` gives what the process sent, one JSON line each, in order. Between them comes
    `{"kind": "raw", "fd", "text"}` for what it wrote to stdout and stderr, and at the very end
    `{"kind": "exit", "status", "ordered", "out", "err", "captured_out", "captured_err"}`: the exit
    code (negative: the signal; None: the supervisor was lost, so the node is going down), True when
    it was ended by order, and the last output, also what pytest's capture still had.
    """

    def __init__(
        self,
        node: str | os.PathLike[str],
        *,
        code: str,
        entry: str,
        specification: Mapping[str, object] | None = None,
        as_keeper: bool = False,  # not as the user of tests, where that is another
    ) -> None:
        self._messages: queue.SimpleQueue[list[bytes]] = queue.SimpleQueue()
        self._tails = {1: bytearray(), 2: bytearray()}
        self._captured: list[int] = []
        self._sending = threading.Lock()
        self.pid = 0
        self._channel, far_channel = socket.socketpair()
        self._out, far_out = os.pipe()
        self._err, far_err = os.pipe()
        self._lease = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lease.connect(os.path.join(node, "spawn.sock"))
        order = json.dumps({"entry": entry, "code": code, "as_keeper": as_keeper}).encode()
        socket.send_fds(self._lease, [order], [far_channel.fileno(), far_out, far_err])
        far_channel.close()
        os.close(far_out)
        os.close(far_err)
        if specification is not None:
            self.specify(specification)
        self._thread = threading.Thread(target=self._pump, name="lease", daemon=True)
        self._thread.start()

    def specify(self, specification: Mapping[str, object]) -> None:
        """Send the process its specification, once. A prestarted process waits for it."""
        data = json.dumps(specification).encode()
        self.send(len(data).to_bytes(4, "big") + data)

    def send(self, message: bytes) -> None:
        """Send JSON lines to the process; quiet when it is gone, which `exit` reports."""
        with self._sending, contextlib.suppress(OSError):
            self._channel.sendall(message)

    def signal(self, number: int) -> None:
        """Send a signal to the process; quiet when it is gone."""
        with contextlib.suppress(OSError):
            self._lease.send(json.dumps({"signal": int(number)}).encode())

    def kill(self) -> None:
        """End the tree now. `exit` still arrives, when the tree is gone."""
        with contextlib.suppress(OSError):
            self._lease.send(b'{"kill": true}')

    def stacks(self) -> None:
        """Have the stacks of all threads written to the process's stderr.

        Where py-spy is installed, those of its children are added.
        """
        self.signal(STACKS_SIGNAL)
        if spy := shutil.which(
            "py-spy", path=f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', '')}"
        ):
            for pid in _children(self.pid):
                with contextlib.suppress(OSError, subprocess.SubprocessError):
                    dump = subprocess.run(
                        [spy, "dump", "--pid", str(pid)],
                        capture_output=True,
                        timeout=5,
                        check=False,
                    )
                    self._on_output(2, b"\n" + dump.stdout)
        time.sleep(0.2)

    def receive(self, timeout_s: float) -> list[bytes]:
        """Return the messages since the last call; wait up to `timeout_s` for a first one."""
        messages: list[bytes] = []
        with contextlib.suppress(queue.Empty):
            messages += self._messages.get(timeout=timeout_s)
            while len(messages) < 4096:
                messages += self._messages.get_nowait()
        return messages

    def _on_output(self, fd: int, data: bytes) -> None:
        tail = self._tails[fd]
        tail += data
        del tail[:-TAIL_BYTES]
        text = data.decode(errors="replace")
        self._messages.put([json.dumps({"kind": "raw", "fd": fd, "text": text}).encode()])

    def _pump(self) -> None:
        watch = selectors.DefaultSelector()
        for source, name in (
            (self._channel, "channel"),
            (self._out, 1),
            (self._err, 2),
            (self._lease, "lease"),
        ):
            watch.register(source, selectors.EVENT_READ, name)
        partial = bytearray()
        report: SupervisorReport | None = None
        awake = 0.0  # monotonic, when something came last
        while report is None:
            ready = watch.select()
            if time.monotonic() - awake < GATHER_S:  # messages come without a pause
                time.sleep(GATHER_S)
                ready = watch.select(0)
            awake = time.monotonic()
            for key, _ in ready:
                if key.data == "lease":
                    report = self._read_report()
                elif not self._read(key.data, partial):
                    watch.unregister(key.fileobj)
        for name in ("channel", 1, 2):
            self._drain(name, partial)
        self._finish(report)
        watch.close()

    def _read_report(self) -> SupervisorReport | None:
        """Read one message of the supervisor; return its report once the process has ended."""
        try:
            body = json.loads(self._lease.recv(4096) or b'{"exit": null}')
        except OSError:
            return SupervisorReport(None, False)
        self.pid = body.get("pid", self.pid)
        if "exit" not in body:
            return None
        return SupervisorReport(body["exit"], body.get("ordered", False))

    def _read(self, name: str | int, partial: bytearray) -> bool:
        """Read once from a source; return False at its end."""
        if name != "channel":
            data = os.read(self._out if name == 1 else self._err, 65536)
            if data:
                self._on_output(int(name), data)
            return bool(data)
        try:
            data, descriptors, _, _ = socket.recv_fds(self._channel, 262144, 4)
        except OSError:
            return False
        self._captured += descriptors
        partial += data
        *lines, rest = bytes(partial).split(b"\n")
        partial[:] = rest
        if lines:
            self._messages.put([line for line in lines if line])
        return bool(data)

    def _drain(self, name: str | int, partial: bytearray) -> None:
        source = {"channel": self._channel.fileno(), 1: self._out, 2: self._err}[name]
        os.set_blocking(source, False)
        with contextlib.suppress(OSError):
            while self._read(name, partial):
                pass

    def _finish(self, report: SupervisorReport) -> None:
        captured = [_last_bytes(descriptor) for descriptor in self._captured] + ["", ""]
        out, err = (bytes(self._tails[fd]).decode(errors="replace") for fd in (1, 2))
        last = {
            "kind": "exit",
            "status": report.status,
            "ordered": report.ordered,
            "out": out,
            "err": err,
            "captured_out": captured[0],
            "captured_err": captured[1],
        }
        self._messages.put([json.dumps(last).encode()])
        for descriptor in (*self._captured, self._out, self._err):
            os.close(descriptor)
        self._channel.close()
        self._lease.close()


def _last_bytes(descriptor: int) -> str:
    """Return the end of a capture file, whose process may be gone."""
    try:
        size = os.fstat(descriptor).st_size
        return os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES)).decode(errors="replace")
    except OSError:
        return ""


def _children(pid: int) -> list[int]:
    """Return the pids of everything below a process."""
    pids = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
                if parent == pid:
                    pids.append(int(name))
    return pids + [deeper for child in pids for deeper in _children(child)]


def ask(node: str | os.PathLike[str], request: str, *, timeout_s: float = 120.0) -> KeeperAnswer:
    """Send a signed request, one line, to the keeper of the node whose directory is `node`.

    See node/requests.py. Raises OSError when there is no keeper.
    """
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        while True:
            try:
                connection.connect(os.path.join(node, "keeper.sock"))
                break
            except BlockingIOError:  # many connect at once
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        connection.sendall(request.encode() + b"\n")
        data = b""
        while piece := connection.recv(65536):
            data += piece
    if not data:
        raise ConnectionError("the keeper has closed the connection without an answer")
    answer: KeeperAnswer = json.loads(data)
    return answer


class Slot:
    """A reservation: a Ray actor that holds GPUs of the node that it is on.

    `node` is the directory of that node.
    """

    def __init__(self, node: str) -> None:
        self.node = node
        self.lease: Lease | None = None
        self.released = threading.Event()

    def gpu_ids(self) -> list[str]:
        """Return the devices that this reservation holds."""
        import ray

        ids: list[str] = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        return ids

    def ask(self, request: str) -> KeeperAnswer:
        """Send a signed request to the keeper of this node."""
        return ask(self.node, request)

    def open(self, code: str, entry: str, specification: dict[str, object]) -> None:
        """Start the one process of this reservation."""
        self.lease = Lease(self.node, code=code, entry=entry, specification=specification)

    def hold(self) -> None:
        """Wait for `give_back`: a caller that waits for this one notices the death of the actor.

        Raises OSError: the keeper of the node is gone, and with it every process that it owned.
        """
        while not self.released.wait(KEEPER_LOOK_S):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(os.path.join(self.node, "keeper.sock"))
        self.released.clear()

    def give_back(self) -> None:
        """Forget the process, which is gone; the next one may be another session's."""
        self.lease = None
        self.released.set()

    def send(self, message: bytes) -> None:
        self._the_lease().send(message)

    def receive(self, timeout_s: float) -> list[bytes]:
        return self._the_lease().receive(timeout_s)

    def signal(self, number: int) -> None:
        self._the_lease().signal(number)

    def kill(self) -> None:
        self._the_lease().kill()

    def stacks(self) -> None:
        self._the_lease().stacks()

    def _the_lease(self) -> Lease:
        if self.lease is None:
            raise RuntimeError("no process was opened in this slot")
        return self.lease
