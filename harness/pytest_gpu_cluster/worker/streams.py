"""The worker's two mouths: the channel to its agent, and the texts that pytest and the tests write."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from pytest_gpu_cluster.contract.codec import decode_line, encode_line

Sink = Callable[[str], None]


class Channel:
    """Lines of JSON both ways. A lost peer is like being told to stop: nobody is left to hear more."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._partial = self._held = b""
        self._arrived: deque[dict[str, Any]] = deque()
        self._pid = os.getpid()
        self.closed = False

    def send(self, kind: str, **data: Any) -> None:
        held, self._held = self._held, b""
        self._sendall(held + encode_line({"kind": kind, **data}))

    def hold(self, kind: str, **data: Any) -> None:
        """A message that goes with the next one, which is certain to follow at once, or with `flush`."""
        self._held += encode_line({"kind": kind, **data})

    def flush(self) -> None:
        held, self._held = self._held, b""
        if held:
            self._sendall(held)

    def send_descriptors(self, kind: str, descriptors: list[int], **data: Any) -> None:
        """A message with open files beside it."""
        with contextlib.suppress(OSError):
            socket.send_fds(self._connection, [encode_line({"kind": kind, **data})], descriptors)

    def _sendall(self, data: bytes) -> None:
        if self.closed or os.getpid() != self._pid:  # a fork of this process must not speak for it
            return
        before = signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGINT}
        )  # half a line would be worse than a late Ctrl-C
        try:
            self._connection.sendall(data)
        except OSError:
            self.closed = True
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def receive(self, *, wait: bool) -> dict[str, Any] | None:
        """The next message; None when there is none yet, or (`wait`) when there will never be one."""
        if wait:
            self.flush()
        while not self._arrived and not self.closed:
            try:
                data = self._connection.recv(1 << 18, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.closed = not data
            *lines, self._partial = (self._partial + data).split(b"\n")
            self._arrived.extend(decode_line(line) for line in lines if line)
        return self._arrived.popleft() if self._arrived else None


class Outlet:
    """Where a text goes now: a stack of sinks, the last one hears."""

    def __init__(self, sink: Sink) -> None:
        self.sinks = [sink]

    def __call__(self, text: str) -> None:
        self.sinks[-1](text)

    @contextlib.contextmanager
    def into(self, sink: Sink) -> Iterator[None]:
        self.sinks.append(sink)
        try:
            yield
        finally:
            self.sinks.pop()

    def muted(self) -> contextlib.AbstractContextManager[None]:
        return _Muted(self.sinks)


class _Muted(contextlib.AbstractContextManager[None]):
    """Entered a dozen times a test, so no generator."""

    def __init__(self, sinks: list[Sink]) -> None:
        self._sinks = sinks

    def __enter__(self) -> None:
        self._sinks.append(_nowhere)

    def __exit__(self, *raised: object) -> None:
        self._sinks.pop()


def _nowhere(text: str) -> None:
    pass


class TerminalFile(io.TextIOBase):
    """What the terminal reporter writes to: a file for texts, never a terminal."""

    encoding = "utf-8"

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def write(self, text: str) -> int:
        if text:
            self._outlet(text)
        return len(text)

    def isatty(self) -> bool:
        return False


class _Raw(io.RawIOBase):
    """Bytes for a standard stream: handed on as text, or, in a fork of the worker, to the descriptor itself."""

    def __init__(self, descriptor: int, write: Sink) -> None:
        self._descriptor, self._write, self._pid = descriptor, write, os.getpid()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return False

    def write(self, data: Any) -> int:
        if os.getpid() != self._pid:
            return os.write(self._descriptor, data)
        self._write(bytes(data).decode("utf-8", "backslashreplace"))
        return len(data)


def standard_stream(descriptor: int, write: Sink) -> io.TextIOWrapper:
    """A replacement for sys.stdout or sys.stderr: what is written arrives at `write` at once."""
    raw: Any = _Raw(descriptor, write)  # a raw stream will do where nothing is buffered
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True)
