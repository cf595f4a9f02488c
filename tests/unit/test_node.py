"""The parts of a keeper that need no process: reasons, environments, requests."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract.events import SessionFinished
from pytest_gpu_cluster.contract.failures import KeeperStop
from pytest_gpu_cluster.contract.fields import JsonObject
from pytest_gpu_cluster.contract.gpus import Gpu
from pytest_gpu_cluster.contract.masking import PassedValues, masker
from pytest_gpu_cluster.contract.outputs import HeldBack
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.specs import BootSpec, ClusterSecrets, KeeperSpec
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.waits import Waits
from pytest_gpu_cluster.node.context import Node, Shutdown, Stop
from pytest_gpu_cluster.node.lease import NODE_VARIABLE
from pytest_gpu_cluster.node.processes import environment, free_ports
from pytest_gpu_cluster.node.requests import NodeFacts, RequestFailed, RequestServer
from pytest_gpu_cluster.node.session import append_lost_end
from pytest_gpu_cluster.node.working_trees import WorkingTrees

SECRETS = ClusterSecrets(ray_token="token", keeper_secret="secret")
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
DIGEST = "0" * 64  # of a tree that is nowhere


@pytest.mark.parametrize("kind", KeeperStop)
@pytest.mark.parametrize("message", ["x", "no heartbeat", "its deadline passed"])
def test_the_kind_of_a_stop_decides_whatever_its_text(
    tmp_path: Path, kind: KeeperStop, message: str
) -> None:
    """Texts are edited freely: class and finality are those of the kind."""
    record = SessionRecord(Store.open("store", base=tmp_path), "s1")

    stop = Stop(kind=kind, message=message)
    append_lost_end(record, stop, mask=masker({}), tail="its last words", timeout_s=5)

    (end,) = record.reader().poll()
    assert isinstance(end, SessionFinished)
    assert (end.failure_class, end.message) == (kind.failure_class, message)
    assert end.tail == "its last words"
    assert record.is_closed() is (kind is KeeperStop.CLIENT_SILENT)


def test_the_first_reason_to_close_counts() -> None:
    """What follows from it (Ray ends, the session ends) would hide the cause."""
    shutdown = Shutdown()
    assert not shutdown.requested

    shutdown.request("the cluster's deadline passed", KeeperStop.DEADLINE)
    shutdown.request("Ray died")

    assert shutdown.stop == Stop(kind=KeeperStop.DEADLINE, message="the cluster's deadline passed")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    spec = KeeperSpec(
        secrets=SECRETS,
        boot=BOOT,
        directory=tmp_path,
        ray_directory=tmp_path / "r",
        head=True,
        ip="127.0.0.1",
    )
    gpu = Gpu(id="0", name="simulated GPU", memory_gib=0.0, simulated=True)
    store = Store.open("store", base=tmp_path)
    return Node(spec=spec, store=store, gpus=(gpu,), driver=None, host="machine")


def test_ray_gets_no_credential_and_no_ray_of_the_users(node: Node) -> None:
    """Tests run in processes of Ray and of the fork server: what these do not have, no test has."""
    environ = {
        "PATH": "/bin",
        "AWS_SECRET_ACCESS_KEY": "k",
        "RAY_ADDRESS": "theirs",
        "PYTHONPATH": "/theirs",
        "PYTEST_ADDOPTS": "-x",
        "CUDA_VISIBLE_DEVICES": "3",
    }

    result = environment(node, environ)

    assert result["PATH"] == "/bin"
    assert result[NODE_VARIABLE] == str(node.directory)
    assert "RAY_AUTH_TOKEN" not in result  # Ray alone gets it
    hidden = environ.keys() - {"PATH"}
    assert result.keys() & hidden == set()  # the simulated GPUs are not those of the mask


def test_a_request_is_answered_by_facts_or_by_an_error_with_a_remedy(node: Node) -> None:
    """The agent on the other end of the socket has nothing else to go by."""
    server = RequestServer(node, WorkingTrees(node.store, node.directory, cache=node.cache))
    (node.directory / "log").write_text("text")
    passed = PassedValues(env={"A_TOKEN": "q7Zk-very-secret"})
    (node.directory / "held").write_text("it is q7Zk-very-secret")
    place = "sessions/s1/artifacts"
    sources = {f"{place}/{name}": str(node.directory / name) for name in ("log", "held")}
    tree = str(node.directory / "s" / "s1" / "tree" / "root")

    upload: JsonObject = {"op": "upload", "sources": dict(sources), "passed": passed.to_json()}
    answer = server.answer("s1", upload)
    missing = server.answer("s1", {"op": "unpack", "trees": {tree: DIGEST}})
    unknown = server.answer("s1", {"op": "dance"})

    held = (HeldBack(path="held", variable="A_TOKEN"),)
    assert answer == NodeFacts(gpus=node.gpus, host="machine", driver=None, held=held)
    stored = [node.store.get(f"{place}/{name}") for name in ("log", "held")]
    assert stored == [b"text", None]
    assert isinstance(missing, RequestFailed)
    assert "it is missing" in missing.error
    assert unknown == RequestFailed(
        error="ValueError: unknown request 'dance'", remedy="see the node's log"
    )


def test_the_ports_of_ray_are_none_that_the_kernel_gives_away() -> None:
    """Some seconds pass until Ray binds them: on a busy machine a connection had one by then."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])

    with socket.socket() as taken:
        taken.bind(("", 20_000))
        ports = free_ports(50)

    assert len(set(ports)) == 50
    assert all(20_000 < port < first for port in ports)
