"""A leased process on a node, and the Ray actor that holds its GPUs.

`Lease` is one process forked from the node's template, with everything it starts. `Slot` is a token: an actor that
holds GPUs in Ray's books, sits on their node, and relays between the agent and the one lease it may open there.
Ray reserves, it does not own processes: when a Slot dies its lease closes and the warden ends the tree; in an orderly
release the tree is gone before the token is dropped.

Only the standard library is imported here, for Ray's workers receive this module by value.
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
from typing import Any

TAIL_BYTES = 64 * 1024
GATHER_S = 0.008  # what a process says within so long is read at once: short tests are many, and each wakes three processes
STACKS_SIGNAL = signal.SIGRTMAX - 1  # a worker registers faulthandler for it
NODE_VARIABLE = "GPU_CLUSTER_INTERNAL_NODE"


class Lease:
    """One process on this node. Closing it (or losing its owner) ends the process and all that it started.

    `receive` gives what the process sent, one JSON line each, in order; between them `{"kind": "raw", "fd", "text"}` for what it
    wrote to stdout and stderr, and at the very end `{"kind": "exit", "status", "ordered", "out", "err", "captured_out",
    "captured_err"}`: the exit code (negative: the signal; None: the warden was lost, so the node is going down), whether it was
    ended by order, and the last output, also what pytest's capture still held.
    """

    def __init__(
        self, node: str, *, code: str, entry: str, specification: Mapping[str, Any] | None = None
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
        order = json.dumps({"entry": entry, "code": code}).encode()
        socket.send_fds(self._lease, [order], [far_channel.fileno(), far_out, far_err])
        far_channel.close()
        os.close(far_out)
        os.close(far_err)
        if specification is not None:
            self.specify(specification)
        self._thread = threading.Thread(target=self._pump, name="lease", daemon=True)
        self._thread.start()

    def specify(self, specification: Mapping[str, Any]) -> None:
        """Say what the process is for, once. It may have been started before that was known, and waits."""
        data = json.dumps(specification).encode()
        self.send(len(data).to_bytes(4, "big") + data)

    def send(self, message: bytes) -> None:
        """Pass JSON lines to the process; quiet when it is gone (`exit` says so)."""
        with self._sending, contextlib.suppress(OSError):
            self._channel.sendall(message)

    def signal(self, number: int) -> None:
        with contextlib.suppress(OSError):
            self._lease.send(json.dumps({"signal": int(number)}).encode())

    def kill(self) -> None:
        """End the tree now. `exit` still arrives, when it is gone."""
        with contextlib.suppress(OSError):
            self._lease.send(b'{"kill": true}')

    def stacks(self) -> None:
        """Have the stacks of all threads written to the process's stderr, and those of its children if py-spy is here."""
        self.signal(STACKS_SIGNAL)
        if spy := shutil.which(
            "py-spy", path=f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', '')}"
        ):
            for pid in _children(self.pid):
                with contextlib.suppress(OSError, subprocess.SubprocessError):
                    said = subprocess.run(
                        [spy, "dump", "--pid", str(pid)],
                        capture_output=True,
                        timeout=5,
                        check=False,
                    )
                    self._keep(2, b"\n" + said.stdout)
        time.sleep(0.2)

    def receive(self, timeout_s: float) -> list[bytes]:
        """Messages since the last call; waits up to `timeout_s` for a first one."""
        found: list[bytes] = []
        with contextlib.suppress(queue.Empty):
            found += self._messages.get(timeout=timeout_s)
            while len(found) < 4096:
                found += self._messages.get_nowait()
        return found

    def _keep(self, fd: int, data: bytes) -> None:
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
        ended: dict[str, Any] | None = None
        heard = 0.0
        while ended is None:
            ready = watch.select()
            if time.monotonic() - heard < GATHER_S:  # it speaks without a pause
                time.sleep(GATHER_S)
                ready = watch.select(0)
            heard = time.monotonic()
            for key, _ in ready:
                if key.data == "lease":
                    ended = self._hear()
                elif not self._read(key.data, partial):
                    watch.unregister(key.fileobj)
        for name in ("channel", 1, 2):
            self._drain(name, partial)
        self._finish(ended)
        watch.close()

    def _hear(self) -> dict[str, Any] | None:
        """The warden's last word once the lease has ended; `{"exit": None}` when the warden itself was lost."""
        try:
            said: dict[str, Any] = json.loads(self._lease.recv(4096) or b'{"exit": null}')
        except OSError:
            return {"exit": None}
        self.pid = said.get("pid", self.pid)
        return said if "exit" in said else None

    def _read(self, name: str | int, partial: bytearray) -> bool:
        """One read from a source; False at its end."""
        if name != "channel":
            data = os.read(self._out if name == 1 else self._err, 65536)
            if data:
                self._keep(int(name), data)
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

    def _finish(self, ended: dict[str, Any]) -> None:
        captured = [_last_bytes(descriptor) for descriptor in self._captured] + ["", ""]
        out, err = (bytes(self._tails[fd]).decode(errors="replace") for fd in (1, 2))
        last = {
            "kind": "exit",
            "status": ended["exit"],
            "ordered": ended.get("ordered", False),
            "out": out,
            "err": err,
        }
        self._messages.put(
            [
                json.dumps(
                    {**last, "captured_out": captured[0], "captured_err": captured[1]}
                ).encode()
            ]
        )
        for descriptor in (*self._captured, self._out, self._err):
            os.close(descriptor)
        self._channel.close()
        self._lease.close()


def _last_bytes(descriptor: int) -> str:
    """The end of a capture file of a process that may be gone."""
    try:
        size = os.fstat(descriptor).st_size
        return os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES)).decode(errors="replace")
    except OSError:
        return ""


def _children(pid: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
                if parent == pid:
                    found.append(int(name))
    return found + [deeper for child in found for deeper in _children(child)]


def ask(node: str, request: Mapping[str, Any], *, timeout_s: float = 120.0) -> dict[str, Any]:
    """One question to the keeper of the node whose directory is `node`; OSError when there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(os.path.join(node, "keeper.sock"))
        connection.sendall(json.dumps(request).encode() + b"\n")
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    said: dict[str, Any] = json.loads(answer)
    return said


class Slot:
    """The token of a reservation, as a Ray actor on the reservation's node."""

    def __init__(self) -> None:
        self.node = os.environ[NODE_VARIABLE]
        self.lease: Lease | None = None
        self.given_back = threading.Event()

    def facts(self) -> dict[str, Any]:
        """Where this token is and which devices it holds; `visible` is their CUDA_VISIBLE_DEVICES."""
        import ray

        context = ray.get_runtime_context()
        ids = context.get_accelerator_ids().get("GPU", [])
        return {
            "node": context.get_node_id(),
            "directory": self.node,
            "gpu_ids": ids,
            "visible": ",".join(ids),
        }

    def prepare(self, trees: dict[str, str]) -> dict[str, Any]:
        """Have the trees (digest by target directory) unpacked on this node."""
        return ask(self.node, {"op": "unpack", "trees": trees})

    def upload(self, sources: dict[str, str]) -> dict[str, Any]:
        """Have files of this node put into the store."""
        return ask(self.node, {"op": "upload", "sources": sources})

    def open(self, code: str, entry: str, specification: dict[str, Any]) -> None:
        self.lease = Lease(self.node, code=code, entry=entry, specification=specification)

    def hold(self) -> None:
        """Until the token is given back: whoever waits for it learns of the token's death."""
        self.given_back.wait()
        self.given_back.clear()

    def give_back(self) -> None:
        """Its process is gone; the next one may be another session's."""
        self.lease = None
        self.given_back.set()

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
