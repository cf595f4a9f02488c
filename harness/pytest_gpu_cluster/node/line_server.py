"""The server of a unix socket: it answers one line of each process of this user that connects.

A connection holds no thread before its line was approved. One that stays silent, that never ends
its line or that sends anything else costs one of a few places, which the next one takes over.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pytest_gpu_cluster.contract.frozen import dataclass

LINE_BYTES = 256 * 1024
LINE_S = 10.0  # for a line to arrive, and for its answer to be taken
PLACES = 64  # connections whose line has not arrived
THREADS = 16

Work = Callable[[], bytes]  # what has to be done for an answer
Approve = Callable[[bytes], bytes | Work]  # the answer at once, or what takes time


@dataclass(frozen=True, kw_only=True)
class Arriving:
    """A connection and its line so far."""

    connection: socket.socket
    began: float  # monotonic
    line: bytearray


class LineServer:
    """Answers lines at `path`. `approve` runs between other lines, so it has to be quick."""

    def __init__(self, path: Path, approve: Approve) -> None:
        self._approve = approve
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        os.fchmod(self._listener.fileno(), 0o600)
        self._listener.bind(str(path))
        self._listener.listen(PLACES)
        self._listener.setblocking(False)
        self._arriving: dict[socket.socket, Arriving] = {}  # the oldest first
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="request")
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)

    def start(self) -> None:
        """Serve in a thread, for ever."""
        threading.Thread(target=self._serve, name="requests", daemon=True).start()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select(LINE_S):
                if key.fileobj is self._listener:
                    with contextlib.suppress(OSError):  # the other end has gone already
                        self._accept()
                elif (arriving := self._arriving.get(key.data)) is not None:
                    self._read(arriving)
            late = time.monotonic() - LINE_S
            for arriving in list(self._arriving.values()):
                if arriving.began < late:
                    self._forget(arriving).close()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if peer_uid(connection) != os.getuid():
            connection.close()
            return
        if len(self._arriving) >= PLACES:
            self._forget(next(iter(self._arriving.values()))).close()
        connection.setblocking(False)
        self._arriving[connection] = Arriving(
            connection=connection, began=time.monotonic(), line=bytearray()
        )
        self._selector.register(connection, selectors.EVENT_READ, connection)

    def _forget(self, arriving: Arriving) -> socket.socket:
        """Free the place of a connection, and return it."""
        del self._arriving[arriving.connection]
        self._selector.unregister(arriving.connection)
        return arriving.connection

    def _read(self, arriving: Arriving) -> None:
        try:
            piece = arriving.connection.recv(65536)
        except OSError:
            piece = b""
        arriving.line.extend(piece)
        line, end, _ = bytes(arriving.line).partition(b"\n")
        if not end and piece and len(line) <= LINE_BYTES:
            return
        connection = self._forget(arriving)
        if not end or len(line) > LINE_BYTES:
            connection.close()
            return
        answer = self._approve(line)
        if isinstance(answer, bytes):
            _send(connection, answer)  # it does not wait: a short answer has room in the socket
        else:
            connection.settimeout(LINE_S)
            self._pool.submit(_work, connection, answer)


def peer_uid(connection: socket.socket) -> int:
    """Return the user of the process that has connected, as the kernel has it."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)


def _work(connection: socket.socket, work: Work) -> None:
    _send(connection, work())


def _send(connection: socket.socket, answer: bytes) -> None:
    with connection, contextlib.suppress(OSError):  # nobody may be there any more
        connection.sendall(answer)
