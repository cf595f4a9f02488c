"""The transport, against responses as real hosts send them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pytest_gpu_cluster.publish.exchange import Endpoint, PublishError, Request
from pytest_gpu_cluster.publish.http import Transport


class _Page(BaseHTTPRequestHandler):
    """Compressed, in pieces; and too long."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        text = b'{"words": "' + b"a" * (20 << 20 if self.path == "/long" else 100_000) + b'"}'
        content = gzip.compress(text) if self.path != "/plain" else text
        self.send_response(200)
        if self.path != "/plain":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(content), 1000):
            piece = content[start : start + 1000]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def transport() -> Iterator[Transport]:
    """For `_Page`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    yield Transport({"token": Endpoint(base=f"http://127.0.0.1:{server.server_port}")})
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.mark.parametrize("path", ["/plain", "/packed"])
def test_an_answer_in_pieces_is_put_together_and_unpacked(transport: Transport, path: str) -> None:
    """The fakes send plain answers with their length.

    Real hosts compress, and know no length beforehand.
    """
    answer = transport(Request(method="GET", path=path))

    assert answer.json() == {"words": "a" * 100_000}


def test_an_answer_without_an_end_is_not_kept_in_memory(transport: Transport) -> None:
    """A few kilobytes may unpack to gigabytes."""
    with pytest.raises(PublishError, match="the answer is too long"):
        transport(Request(method="GET", path="/long", repeatable=False))


def test_a_door_that_does_not_exist_is_said(transport: Transport) -> None:
    """A publisher without a token has only the proxy's."""
    with pytest.raises(PublishError, match="there is no credential for it"):
        transport(Request(method="GET", path="/plain", endpoint="proxy"))
