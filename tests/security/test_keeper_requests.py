"""The keeper's socket takes requests of its own agent alone, and no test can hold it up.

A test reaches the socket, and runs as the same user on a machine that is not rented.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpu_cluster.contract.fields import JsonObject
from pytest_gpu_cluster.contract.masking import PassedValues
from pytest_gpu_cluster.contract.signing import session_key, signed, verified
from pytest_gpu_cluster.contract.specs import BootSpec, ClusterSecrets, KeeperSpec
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.waits import Waits
from pytest_gpu_cluster.node import forkserver
from pytest_gpu_cluster.node.context import Node
from pytest_gpu_cluster.node.lease import Lease, ask
from pytest_gpu_cluster.node.line_server import LINE_BYTES, PLACES, LineServer
from pytest_gpu_cluster.node.requests import NodeFacts, RequestServer
from pytest_gpu_cluster.node.working_trees import WorkingTrees

SECRET = "of all keepers"
SECRETS = ClusterSecrets(ray_token="token", keeper_secret=SECRET)
BOOT = BootSpec(
    cluster="c1",
    store="",
    code="0" * 64,
    nodes=1,
    gpus_per_node=2,
    simulated_gpus=2,
    idle_s=60,
    deadline_s=60,
    waits=Waits(),
)
PASSED = PassedValues().to_json()
OUTPUTS = {"op": "outputs", "node": "head", "tree": "0" * 64, "globs": [], "passed": PASSED}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    directory = tmp_path / "c1" / "n0"
    (directory / "s" / "s1" / "tree").mkdir(parents=True)
    spec = KeeperSpec(
        secrets=SECRETS,
        boot=BOOT,
        directory=directory,
        ray_directory=tmp_path / "r",
        head=True,
        ip="127.0.0.1",
    )
    store = Store.open("store", base=tmp_path)
    return Node(spec=spec, store=store, gpus=(), driver=None, host="machine")


@pytest.fixture
def keeper(node: Node) -> RequestServer:
    return RequestServer(node, WorkingTrees(node.store, node.directory, cache=node.cache))


def of(session: str, request: Mapping[str, object], *, key: str | None = None) -> bytes:
    """Return a line that a session signs, with its own key unless told otherwise."""
    return signed(request, session=session, key=key or session_key(SECRET, session)).encode()


def answer(keeper: RequestServer, line: bytes) -> JsonObject:
    """Return the answer to a line, carried out where the keeper agrees to do so."""
    work = keeper.approve(line)
    body: JsonObject = json.loads(work if isinstance(work, bytes) else work())
    return body


def test_only_the_agent_of_a_session_can_ask_for_it(keeper: RequestServer, node: Node) -> None:
    """A key is of one session, and in no request: an older session's agent cannot speak for it."""
    (node.directory / "file").write_text("text")
    key = "sessions/s1/artifacts/file"
    upload: JsonObject = {
        "op": "upload",
        "sources": {key: str(node.directory / "file")},
        "passed": PASSED,
    }
    line = of("s1", upload)
    assert session_key(SECRET, "s1").encode() not in line
    others = [
        json.dumps(upload).encode(),  # as it was once
        of("s1", upload, key="a guess"),
        of("s1", upload, key=session_key(SECRET, "s0")),
        of("s1", {"op": "upload", "sources": {}, "passed": PASSED}).replace(
            b"{}", b'{\\"a\\": \\"/b\\"}'
        ),
        line.replace(b'"session": "s1"', b'"session": "s2"'),
        line.replace(b'"signature": "', '"signature": "é'.encode()),
    ]

    refused = [answer(keeper, other) for other in others]

    assert node.store.list("") == []
    assert all("error" in each for each in refused), refused
    assert answer(keeper, line) == NodeFacts(gpus=(), host="machine", driver=None).to_json()
    assert node.store.get(key) == b"text"


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_arrives_is_no_request_without_its_signature(line: bytes) -> None:
    """The keeper reads lines of anybody on its node, in the thread that reads all of them."""
    for text in (line, b"[" * 100_000, json.dumps({"session": 1, "request": []}).encode()):
        with pytest.raises(ValueError, match=r"."):
            verified(text, secret=SECRET)


@pytest.mark.parametrize(
    "key",
    [
        "history/durations.json",
        "trees/" + "0" * 64,
        "sessions/s0/artifacts/file",
        "sessions/s1/result.json",
        "sessions/s1/events/agent/0",
        "sessions/s1/artifacts/../result.json",
        "sessions/s1/artifacts//file",
        "sessions/s10/artifacts/file",
        "artifacts/file",
        "",
    ],
)
def test_a_session_stores_what_its_tests_leave_and_nothing_else(
    keeper: RequestServer, node: Node, key: str
) -> None:
    """Whoever had got hold of its key could otherwise write into the record of any session."""
    (node.directory / "file").write_text("text")

    refused = answer(
        keeper,
        of(
            "s1", {"op": "upload", "sources": {key: str(node.directory / "file")}, "passed": PASSED}
        ),
    )

    assert "is no place of session s1" in str(refused["error"])
    assert node.store.list("") == []


def test_a_session_reads_and_writes_in_its_own_directories(
    keeper: RequestServer, node: Node, tmp_path: Path
) -> None:
    """A tree may hold any file, so its place decides what it can overwrite."""
    own = node.directory / "s" / "s1"
    (own / "tree" / "away").symlink_to(tmp_path)
    places = [
        "/etc/x",
        f"{own}/tree",
        f"{own}/tree/..",
        f"{own}/tree/root/../../../x",
        f"{own}/tree/away/x",
        f"{node.directory}/s/s0/tree/root",
        f"{node.directory}/handoff",
        "tree/root",
    ]
    requests: list[Mapping[str, object]] = [
        *[{"op": "unpack", "trees": {place: "0" * 64}} for place in places],
        *[{"op": "unpack", "trees": {}, "code": {place: "0" * 64}} for place in places],
        *[{**OUTPUTS, "session": "s1", "root": place} for place in places],
        {**OUTPUTS, "session": "s0", "root": f"{own}/tree/root"},
    ]

    for request in requests:
        refused = answer(keeper, of("s1", request))
        assert "is no place of" in str(refused.get("error")), request

    right = answer(keeper, of("s1", {"op": "unpack", "trees": {f"{own}/tree/root": "0" * 64}}))
    assert "it is missing" in str(right["error"])  # the tree: the place is its own
    assert sorted(path.name for path in own.iterdir()) == ["tree"]


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A directory with a `keeper.sock` that answers each line with itself, in another thread."""
    LineServer(tmp_path / "keeper.sock", lambda line: lambda: b"[" + line + b"]").start()
    return tmp_path


@pytest.fixture
def connect() -> Iterator[Callable[[Path], socket.socket]]:
    """Connect to a socket, for as long as the test."""
    with ExitStack() as connections:

        def stream(path: Path) -> socket.socket:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connections.enter_context(connection).connect(str(path))
            connection.settimeout(20)
            return connection

        yield stream


def test_a_flood_of_connections_delays_no_request(
    served: Path, connect: Callable[[Path], socket.socket]
) -> None:
    """200 that say nothing, one that never ends its line, one that sends what is no text: the
    keeper's threads stay as many, and the agent's request is answered between them.
    """
    path = served / "keeper.sock"
    threads = threading.active_count()
    idle = [connect(path) for _ in range(PLACES - 3)]
    endless = connect(path)
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        endless.sendall(b"x" * (8 * LINE_BYTES))
    garbage = connect(path)
    garbage.sendall(os.urandom(4096).replace(b"\n", b"") + b"\n")
    idle += [connect(path) for _ in range(200)]

    answers: list[object] = [ask(served, json.dumps(number), timeout_s=30) for number in range(20)]

    assert answers == [[number] for number in range(20)]
    assert threading.active_count() <= threads + 16
    assert idle[0].recv(1) == b""  # it has lost its place to another
    assert b"\n" not in garbage.recv(8192)


def test_an_order_to_the_fork_server_waits_for_nobody_who_orders_nothing(tmp_path: Path) -> None:
    """It has one thread, which a test could hold by connecting: no process would start any more."""
    path = tmp_path / "spawn.sock"
    pid = os.fork()
    if pid == 0:
        try:
            forkserver.prctl(forkserver.PR_SET_CHILD_SUBREAPER, 1)
            neighbours = forkserver.Neighbours(lambda _: None, lambda _: set(), lambda *_: None)
            forkserver.serve(forkserver.listen(str(path)), neighbours)
        finally:
            os._exit(1)
    while not path.exists():
        pass
    silent = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(100)]
    try:
        for each in silent:
            each.connect(str(path))
        silent[99].send(b"no order")

        (tmp_path / "entry.py").write_text("def main(specification, channel):\n    return 7\n")
        lease = Lease(tmp_path, code=str(tmp_path), entry="entry:main", specification={})
        last = json.loads(lease.receive(30)[-1])

        assert (last["kind"], last["status"]) == ("exit", 7)
    finally:
        for each in silent:
            each.close()
        forkserver.end_descendants(pid)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
