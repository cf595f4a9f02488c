"""The ways out of a test process: the channel to its agent, and the texts that are written."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from pytest_gpu_cluster.contract.events import Message
from pytest_gpu_cluster.contract.messages import decode, encode

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

RECEIVE_BYTES = 1 << 18
# The source of a text: the terminal reporter's writer, stdout or stderr.
Via: TypeAlias = Literal["tw", "out", "err"]
Sink: TypeAlias = Callable[[str], None]


class Channel:
    """Messages both ways, a line each. A lost peer counts as an order to stop."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._partial = self._before = b""
        self._received: deque[Message] = deque()
        self._pid = os.getpid()
        self.closed = False

    def send(self, message: Message) -> None:
        """Send a message, behind those that `hold` has kept back."""
        before, self._before = self._before, b""
        self._sendall(before + encode(message))

    def hold(self, message: Message) -> None:
        """Keep a message back for the next one, which must follow at once, or for `flush`."""
        self._before += encode(message)

    def flush(self) -> None:
        before, self._before = self._before, b""
        if before:
            self._sendall(before)

    def send_descriptors(self, message: Message, descriptors: Sequence[int]) -> None:
        """Send a message with open files beside it."""
        with contextlib.suppress(OSError):
            socket.send_fds(self._connection, [encode(message)], list(descriptors))

    def _sendall(self, data: bytes) -> None:
        if self.closed or os.getpid() != self._pid:  # a fork of this process must not send
            return
        # Half a line would be worse than a late Ctrl-C.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._connection.sendall(data)
        except OSError:
            self.closed = True
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def receive(self, *, wait: bool) -> Message | None:
        """Return the next message. Raises FieldError for one that this code does not know.

        None: there is none yet, or, with `wait`, there will never be one.
        """
        if wait:
            self.flush()
        while not self._received and not self.closed:
            try:
                data = self._connection.recv(RECEIVE_BYTES, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.closed = not data
            *lines, self._partial = (self._partial + data).split(b"\n")
            self._received.extend(decode(line) for line in lines if line)
        return self._received.popleft() if self._received else None


class Texts:
    """Texts of the process, cut into lines, in the order in which they were written.

    A text waits for its end of line, for a text of another source, or for `flush`. Nothing can be
    emitted before pytest is configured, and after its end: those texts are put into `unconfigured`.
    """

    def __init__(self, emit: Callable[[Via, str], None]) -> None:
        self._emit = emit
        self._via: Via = "tw"
        self._pending = ""
        self.configured = False
        self.unconfigured: list[tuple[Via, str]] = []

    def write(self, via: Via, text: str) -> None:
        if not self.configured:
            self.unconfigured.append((via, text))
            return
        if self._via != via:
            self.flush()
        self._via = via
        self._pending += text
        if text.endswith("\n"):
            self.flush()

    def flush(self) -> None:
        """Emit the line that has not ended."""
        text, self._pending = self._pending, ""
        if text:
            self._emit(self._via, text)

    def begin(self) -> None:
        """Emit from here on, beginning with the texts of the time before."""
        self.configured = True
        for via, text in self.unconfigured:
            self.write(via, text)
        self.unconfigured.clear()

    def end(self) -> None:
        self.flush()
        self.configured = False


class Outlet:
    """The present destination of a text: the last sink of a stack."""

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
    """Discards texts. Entered a dozen times a test, so no generator."""

    def __init__(self, sinks: list[Sink]) -> None:
        self._sinks = sinks

    def __enter__(self) -> None:
        self._sinks.append(_discard)

    def __exit__(self, *raised: object) -> None:
        self._sinks.pop()


def _discard(text: str) -> None:
    pass


class TerminalFile(io.TextIOBase):
    """The file of the terminal reporter: it takes texts and is never a terminal."""

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
    """Bytes of a standard stream, passed on as text.

    A fork of the process writes them to the descriptor.
    """

    def __init__(self, descriptor: int, sink: Sink) -> None:
        self._descriptor, self._sink, self._pid = descriptor, sink, os.getpid()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return False

    def write(self, buffer: ReadableBuffer) -> int:
        data = bytes(buffer)
        if os.getpid() != self._pid:
            return os.write(self._descriptor, data)
        self._sink(data.decode("utf-8", "backslashreplace"))
        return len(data)


def standard_stream(descriptor: int, sink: Sink) -> io.TextIOWrapper:
    """Return a replacement for sys.stdout or sys.stderr that passes each text to `sink` at once."""
    raw = _Raw(descriptor, sink)
    return io.TextIOWrapper(
        raw,  # type: ignore[arg-type]  # a raw stream will do where nothing is buffered
        "utf-8",
        "backslashreplace",
        write_through=True,
    )
