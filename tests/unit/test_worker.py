"""The test process: its options, its arguments, its orders, and the tests that it skips."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_gpu_cluster import options
from pytest_gpu_cluster.contract.events import Output
from pytest_gpu_cluster.contract.fields import FieldError
from pytest_gpu_cluster.contract.gpus import Gpu
from pytest_gpu_cluster.contract.messages import (
    FinishSession,
    Ready,
    RunTests,
    StopRunning,
    TestOrder,
    encode,
)
from pytest_gpu_cluster.contract.request import PytestFacts
from pytest_gpu_cluster.contract.specs import ClusterFacts, RayAccess, Role, TreePlaces, WorkerSpec
from pytest_gpu_cluster.worker import prepare
from pytest_gpu_cluster.worker.orders import OrderQueue, Supply
from pytest_gpu_cluster.worker.quarantine import Quarantine
from pytest_gpu_cluster.worker.ray_use import access_variables, environment
from pytest_gpu_cluster.worker.streams import Channel, Texts

SPEC = WorkerSpec(
    role=Role.RUN,
    tree=TreePlaces(
        root="/far/tree", origin="/home/me/project", rootdir="/far/tree", cwd="/far/tree"
    ),
    client=PytestFacts(plugins=("html",), cache={"lastfailed": {"a.py::t": True}}),
    args=("-x", "tests"),
    env={"SECRET": "s3cr3t"},
    worker="gw0",
    workers=2,
    testrun="run1",
    scratch="/far/gw0",
    gpus=(Gpu(id="0", name="L4", memory_gib=22.5, simulated=False),),
    ray=RayAccess(address="10.0.0.1:6379", token="t0k3n", logs="/far/ray"),
    cluster=ClusterFacts(id="c", session="s", nodes=1, store="file:///s", prefix="sessions/s"),
    crashed_files={},
    quarantined=(("tests", "test_a", "test_x"),),
)


def test_a_specification_arrives_as_it_was_sent_and_shows_no_secret() -> None:
    """The environment of a test process holds tokens, and errors print what they are about."""
    assert WorkerSpec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC
    assert "s3cr3t" not in repr(SPEC)
    assert "t0k3n" not in repr(SPEC)
    with pytest.raises(FieldError, match=r"WorkerSpec.role: expected one of select, run, got 'x'"):
        WorkerSpec.from_json({**SPEC.to_json(), "role": "x"})


def test_the_process_knows_exactly_the_options_that_the_plugin_declares() -> None:
    """An option in addopts that the process does not know ends it with a usage error."""
    client, remote = pytest.Parser(_ispytest=True), pytest.Parser(_ispytest=True)

    options.add_options(client)
    prepare.Options(SPEC).pytest_addoption(remote)

    assert declared(remote) == declared(client)


def declared(parser: pytest.Parser) -> dict[str, object]:
    """Return the options of this package, each with its argparse action."""
    group = parser.getgroup("gpu-cluster")
    return {name: each.attrs().get("action") for each in group.options for name in each.names()}


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["-k", "a", "tests"], ["-k", "a", "tests"]),
        (["/home/me/project/a.py::t"], ["/far/tree/a.py::t"]),
        (["-p", "xdist", "-p", "timeout"], ["-p", "timeout"]),
        (["-pno:terminal", "-pxdist.plugin", "-ptimeout"], ["-ptimeout"]),
        (["-o", "cache_dir=x", "-o", "xfail_strict=true"], ["-o", "xfail_strict=true"]),
        (["-ocache_dir=x", "--override-ini=cache_dir=y", "-q"], ["-q"]),
    ],
)
def test_the_arguments_are_those_that_were_typed(typed: list[str], expected: list[str]) -> None:
    """xdist would start processes of its own, and two processes must not share a cache."""
    arguments = prepare.pytest_arguments(replace(SPEC, args=tuple(typed)))

    assert arguments[-len(expected) :] == expected
    assert "--rootdir=/far/tree" in arguments
    assert len(arguments) == len(prepare.pytest_arguments(replace(SPEC, args=()))) + len(expected)


def test_imports_lead_into_the_shipped_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path of the client that was not shipped, such as its virtual environment, stays."""
    near, far = tmp_path / "near", tmp_path / "far"
    (far / "src").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(near / "src"), str(near / ".venv"), "/usr/lib"])
    monkeypatch.setenv("PYTHONPATH", "/opt/extra")

    tree = TreePlaces(root=str(far), origin=str(near), rootdir=str(far), cwd=str(far))
    spec = replace(SPEC, tree=tree)
    prepare.relocate_imports(prepare.path_map(spec), [str(near / "src")])

    assert sys.path == [str(far / "src"), "/opt/extra", str(near / ".venv"), "/usr/lib"]
    assert os.environ["PYTHONPATH"] == f"/opt/extra{os.pathsep}{far / 'src'}"


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a connection: of the agent, and of the test process."""
    agent, process = socket.socketpair()
    with agent, process:
        yield agent, process


@pytest.fixture
def agent(sockets: tuple[socket.socket, socket.socket]) -> socket.socket:
    return sockets[0]


@pytest.fixture
def channel(sockets: tuple[socket.socket, socket.socket]) -> Channel:
    return Channel(sockets[1])


ORDERS = (TestOrder(nodeid="a.py::t"), TestOrder(nodeid="a.py::u"))


def test_a_held_message_goes_with_the_next_one(agent: socket.socket, channel: Channel) -> None:
    """One write for the end of a test and the start of the next: the loop is hot."""
    output = Output(text="x", via="out")

    channel.hold(output)
    agent.setblocking(False)
    with pytest.raises(BlockingIOError):
        agent.recv(1)
    channel.send(Ready())

    assert agent.recv(1000) == encode(output) + encode(Ready())


def test_orders_are_run_in_the_order_in_which_they_arrive(
    agent: socket.socket, channel: Channel, request: pytest.FixtureRequest
) -> None:
    """A message may be cut anywhere, and several may arrive together."""
    orders = OrderQueue(channel)
    line = encode(RunTests(tests=ORDERS, last=True))
    agent.sendall(line[:20])
    orders.receive(request.session, wait=False)
    assert not orders.waiting

    agent.sendall(line[20:])

    assert orders.take(request.session) == ORDERS[0]
    assert orders.supply is Supply.LAST
    assert orders.take_uncollected() == [*ORDERS]
    agent.sendall(encode(FinishSession()))
    assert orders.take(request.session) is None, "the end drops what waits"


@pytest.mark.parametrize("order", [FinishSession(), None], ids=["finish", "a lost agent"])
def test_no_test_is_started_after_the_end(
    agent: socket.socket,
    channel: Channel,
    request: pytest.FixtureRequest,
    order: FinishSession | None,
) -> None:
    """Nobody would want its result."""
    orders = OrderQueue(channel)
    agent.sendall(encode(RunTests(tests=ORDERS)))
    orders.receive(request.session, wait=False)

    if order is None:
        agent.close()
    else:
        agent.sendall(encode(order))

    assert orders.take(request.session) is None
    assert orders.ended


def test_a_stop_is_seen_by_the_session(
    agent: socket.socket, channel: Channel, pytester: pytest.Pytester
) -> None:
    """The fixtures of the running test are torn down, as no next test needs them."""
    # syrupy ends a session that never began with an error.
    session = pytester.getmodulecol("", configargs=("-p", "no:syrupy")).session
    orders = OrderQueue(channel)

    agent.sendall(encode(StopRunning()))
    orders.receive(session, wait=False)

    assert session.shouldstop == "stopped"
    assert orders.ended


def test_texts_are_cut_at_lines_and_sources_and_none_is_lost() -> None:
    """A reporter writes a line in many pieces; the client shows them in their order."""
    emitted: list[tuple[str, str]] = []
    texts = Texts(lambda via, text: emitted.append((via, text)))

    texts.write("err", "early\n")
    assert emitted == []
    texts.begin()
    for via, text in (("tw", "a"), ("tw", "b\n"), ("tw", "c"), ("out", "d")):
        texts.write(via, text)  # type: ignore[arg-type]  # each is one of the three sources
    texts.end()
    texts.write("err", "late\n")

    assert emitted == [("err", "early\n"), ("tw", "ab\n"), ("tw", "c"), ("out", "d")]
    assert texts.unconfigured == [("err", "late\n")]


@pytest.mark.parametrize(
    ("package", "class_name", "skipped"),
    [
        ("", "sub.test_q", True),
        ("sub.test_q", "", True),
        ("sub", "test_q", True),
        ("", "test_q", False),
        ("", "", False),
    ],
)
def test_a_quarantined_test_is_named_as_junit_names_it(
    pytester: pytest.Pytester, package: str, class_name: str, skipped: bool
) -> None:
    """Hosts split the class name of JUnit differently; another test of that name still runs."""
    pytester.mkpydir("sub").joinpath("test_q.py").write_text("def test_x(): pass")
    items, _ = pytester.inline_genitems("sub/test_q.py")

    Quarantine([(package, class_name, "test_x")]).skip(items[0])

    assert (items[0].get_closest_marker("skip") is not None) is skipped


def test_the_cluster_is_visible_to_one_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that starts a local Ray must not join the cluster by accident."""
    monkeypatch.setenv("RAY_ADDRESS", "before")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)

    access = RayAccess(address="10.0.0.1:6379", token="t0k3n", logs="/far/ray")
    with environment(access_variables(access)):
        inside = {name: os.environ[name] for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}

    assert inside == {"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_TOKEN": "t0k3n"}
    assert os.environ["RAY_ADDRESS"] == "before"
    assert "RAY_AUTH_TOKEN" not in os.environ
