"""The server of a keeper's socket. The agent asks it to use the store on this node.

A request is one line of JSON, a SignedRequest. In it is `{"op": "unpack", "trees": {directory:
digest}, "code": {directory: digest}}`, `{"op": "upload", …}` or `{"op": "outputs", …}` with the
keys of an Upload or an OutputsOrder. Its answer is one JSON object: NodeFacts, or RequestFailed.

A test can connect too, but has no key; and who has one is let to the places of its own session
alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path

from pytest_gpu_cluster.contract.errors import HarnessError, InfrastructureError
from pytest_gpu_cluster.contract.fields import JsonObject, Noun
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.gpus import Gpu
from pytest_gpu_cluster.contract.masking import PassedValues
from pytest_gpu_cluster.contract.outputs import HeldBack, OutputsOrder
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.signing import verified
from pytest_gpu_cluster.node.context import Node
from pytest_gpu_cluster.node.line_server import LineServer, Work
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
    """Answers requests at `keeper.sock`."""

    def __init__(self, node: Node, trees: WorkingTrees) -> None:
        self.node, self.trees = node, trees

    def start(self) -> None:
        LineServer(self.node.directory / "keeper.sock", self.approve).start()

    def approve(self, line: bytes) -> bytes | Work:
        """Return what carries out the request of a line, or at once the answer that refuses it."""
        try:
            session, body = verified(line, secret=self.node.spec.secrets.keeper_secret)
        except ValueError as problem:
            return _encoded(
                RequestFailed(
                    error=f"the keeper takes no such request: {problem}",
                    remedy="none is needed: only the agent of a session may ask it",
                )
            )
        return lambda: _encoded(self.answer(session, body))

    def answer(self, session: str, body: JsonObject) -> NodeFacts | RequestFailed:
        """Carry out the request of a session. Raises nothing: a failure is an answer."""
        try:
            held = self._carry_out(SessionRecord(self.node.store, session), body)
        except HarnessError as problem:
            return RequestFailed(error=problem.what, remedy=problem.remedy)
        except Exception as problem:  # noqa: BLE001 - the asking process gets it as its answer
            message = f"{type(problem).__name__}: {problem}"
            return RequestFailed(error=message, remedy="see the node's log")
        node = self.node
        return NodeFacts(gpus=node.gpus, host=node.host, driver=node.driver, held=tuple(held))

    def _carry_out(self, record: SessionRecord, body: JsonObject) -> Sequence[HeldBack]:
        match body.pop("op"):
            case "unpack":
                request = Unpack.from_json(body)
                for target, digest in request.trees.items():
                    place = self._place(target, "s", record.session, "tree")
                    if self.node.guest is not None:
                        self.node.guest.settle(place.parents[1])
                    self.trees.unpack(digest, place)
                    mark_begin(place)
                for target, digest in request.code.items():
                    place = self._place(target, "code")
                    unpack(self.node.store, digest, place, cache=self.node.cache)
            case "upload":
                order = Upload.from_json(body)
                for key in order.sources:
                    if not record.is_left_by_tests(key):
                        raise _refusal(key, record.session)
                gate = Gate(order.passed.masker())
                for key, source in order.sources.items():
                    upload(self.node.store, key, source, gate, guest=self.node.guest)
                return gate.held
            case "outputs":
                wanted = OutputsOrder.from_json(body)
                if wanted.session != record.session:
                    raise _refusal(wanted.session, record.session)
                self._place(str(wanted.root), "s", record.session, "tree")
                return collect(self.node.store, wanted, guest=self.node.guest)
            case unknown:
                raise ValueError(f"unknown request {unknown!r}")
        return ()

    def _place(self, path: str, *folders: str) -> Path:
        """Return a path of this node that is an entry of these folders, links not followed.

        Nodes on one machine share the places of their head. Raises InfrastructureError.
        """
        cluster = os.path.realpath(self.node.directory.parent)
        real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        parts = Path(os.path.relpath(real, cluster)).parts
        if parts[1:-1] != folders or parts[0] == ".." or parts[-1] == "..":
            raise _refusal(path, folders[1] if len(folders) > 1 else "")
        return Path(path)


def _refusal(what: str, session: str) -> InfrastructureError:
    return InfrastructureError(
        f"{what!r} is no place of {f'session {session}' if session else 'its code'}",
        remedy="none is needed: a session reads and writes in its own places alone",
    )


def _encoded(answer: NodeFacts | RequestFailed) -> bytes:
    return json.dumps(answer.to_json()).encode()
