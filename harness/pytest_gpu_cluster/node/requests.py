"""The server of a keeper's socket. Processes of the node ask it to use the store for them.

A request is one line of JSON: `{"op": "unpack", "trees": {directory: digest}, "code": {directory:
digest}}`, `{"op": "upload", …}` or `{"op": "outputs", …}` with the keys of an Upload or an
OutputsOrder. Its answer is one JSON object: NodeFacts, or RequestFailed.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path

from pytest_gpu_cluster.contract.errors import HarnessError
from pytest_gpu_cluster.contract.fields import Noun
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.gpus import Gpu
from pytest_gpu_cluster.contract.masking import PassedValues
from pytest_gpu_cluster.contract.outputs import HeldBack, OutputsOrder
from pytest_gpu_cluster.node.context import Node
from pytest_gpu_cluster.node.outputs import Gate, collect, mark_begin, upload
from pytest_gpu_cluster.node.unpack import unpack
from pytest_gpu_cluster.node.working_trees import WorkingTrees


@dataclass(frozen=True, kw_only=True)
class NodeFacts(Noun):
    """The answer to a request that was carried out."""

    gpus: tuple[Gpu, ...]
    host: str
    driver: str | None
    held: tuple[HeldBack, ...] = ()  # files that were not stored


@dataclass(frozen=True, kw_only=True)
class RequestFailed(Noun):
    """The answer to a request that failed."""

    error: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Unpack(Noun):
    """Have trees of the store on this node: digests by directory."""

    trees: Mapping[str, str]  # of the session that is served, which may change them
    code: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Upload(Noun):
    """Put files and directories of this node into the store."""

    sources: Mapping[str, Path]  # by key; of a directory, the prefix of its files' keys
    passed: PassedValues  # no file that holds a secret of these is stored


class RequestServer:
    """Answers each connection to `keeper.sock` in a thread of its own."""

    def __init__(self, node: Node, trees: WorkingTrees) -> None:
        self.node, self.trees = node, trees

    def start(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.node.directory / "keeper.sock"))
        listener.listen(16)
        threading.Thread(target=self._serve, args=(listener,), name="requests", daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rwb") as stream:
            answer = self.answer(stream.readline())
            stream.write(json.dumps(answer.to_json()).encode())

    def answer(self, line: bytes) -> NodeFacts | RequestFailed:
        """Carry out the request of one line. Raises nothing: a failure is an answer."""
        try:
            held = self._carry_out(line)
        except HarnessError as problem:
            return RequestFailed(error=problem.what, remedy=problem.remedy)
        except Exception as problem:  # noqa: BLE001 - the asking process gets it as its answer
            message = f"{type(problem).__name__}: {problem}"
            return RequestFailed(error=message, remedy="see the node's log")
        node = self.node
        return NodeFacts(gpus=node.gpus, host=node.host, driver=node.driver, held=tuple(held))

    def _carry_out(self, line: bytes) -> Sequence[HeldBack]:
        body = json.loads(line)
        match body.pop("op"):
            case "unpack":
                request = Unpack.from_json(body)
                for target, digest in request.trees.items():
                    self.trees.unpack(digest, Path(target))
                    mark_begin(Path(target))
                for target, digest in request.code.items():
                    unpack(self.node.store, digest, Path(target), cache=self.node.cache)
            case "upload":
                order = Upload.from_json(body)
                gate = Gate(order.passed.masker())
                for prefix, source in order.sources.items():
                    upload(self.node.store, prefix, source, gate)
                return gate.held
            case "outputs":
                return collect(self.node.store, OutputsOrder.from_json(body))
            case unknown:
                raise ValueError(f"unknown request {unknown!r}")
        return ()
