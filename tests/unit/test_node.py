"""The parts of a keeper that need no process: reasons, environments, requests."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Literal

import pytest

from pytest_gpu_cluster.contract.errors import InfrastructureError
from pytest_gpu_cluster.contract.events import SessionFinished
from pytest_gpu_cluster.contract.failures import KeeperStop
from pytest_gpu_cluster.contract.fields import JsonObject
from pytest_gpu_cluster.contract.gpus import Gpu, node_gpus
from pytest_gpu_cluster.contract.masking import PassedValues, masker
from pytest_gpu_cluster.contract.outputs import HeldBack
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.specs import BootSpec, ClusterSecrets, KeeperSpec
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.waits import Waits
from pytest_gpu_cluster.node.context import Node, Shutdown, Stop
from pytest_gpu_cluster.node.lease import NODE_VARIABLE, Slot
from pytest_gpu_cluster.node.processes import Ray, environment, free_ports
from pytest_gpu_cluster.node.requests import NodeFacts, RequestFailed, RequestServer
from pytest_gpu_cluster.node.session import append_lost_end
from pytest_gpu_cluster.node.working_trees import WorkingTrees
from pytest_gpu_cluster.worker.prepare import node_variables

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


class Unspawned(Ray):
    """Ray whose start is looked at and does not happen."""

    variables: Mapping[str, str]

    def spawn(self, argv: list[str], variables: Mapping[str, str]) -> None:
        self.variables = variables


def test_rays_own_monitor_ends_nobody_for_the_memory_of_a_test(node: Node) -> None:
    """It knows its own actors alone, which hold reservations: all tests of a node would be lost
    for one that takes too much, and that one not be named.
    """
    ray = Unspawned(node)

    ray.start()

    assert ray.variables["RAY_memory_monitor_refresh_ms"] == "0"


@pytest.mark.parametrize(
    ("requested", "simulated", "required", "expected"),
    [
        ("auto", 2, False, 2),
        (3, 2, False, 3),
        ("auto", 0, False, 0),
        (0, 0, False, 0),
        (1, 0, False, "1 GPU ordered, and NVML finds 0 here"),
        (8, 0, True, "8 GPUs ordered, and NVML finds 0 here"),
        ("auto", 0, True, "1 GPU ordered, and NVML finds 0 here"),
        ("auto", 2, True, "1 GPU ordered, and NVML finds 0 here"),
    ],
)
def test_gpus_are_simulated_only_where_the_boot_specification_allows_it(
    monkeypatch: pytest.MonkeyPatch,
    requested: int | Literal["auto"],
    simulated: int,
    required: bool,
    expected: int | str,
) -> None:
    """A rented machine whose NVML is silent must not turn a suite green."""
    monkeypatch.setitem(sys.modules, "pynvml", None)  # also on a machine with GPUs
    count: int | str
    try:
        gpus, _ = node_gpus({}, requested=requested, simulated=simulated, required=required)
        count = len(gpus)
    except InfrastructureError as problem:
        count = problem.what

    assert count == expected


def test_fewer_gpus_than_were_ordered_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of eight has fallen off the bus: the node would be slower, and nobody would know."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml("a", "b"))

    with pytest.raises(InfrastructureError, match="8 GPUs ordered, and NVML finds 2 here"):
        node_gpus({}, requested=8, simulated=2, required=False)
    gpus, _ = node_gpus({}, requested=1, simulated=2, required=True)

    assert [gpu.simulated for gpu in gpus] == [False]


class FakeNvml(ModuleType):
    """NVML of a machine with these GPUs."""

    def __init__(self, *uuids: str) -> None:
        super().__init__("pynvml")
        self.nvmlInit = self.nvmlShutdown = lambda: None
        self.nvmlSystemGetDriverVersion = lambda: "550"
        self.nvmlDeviceGetCount = lambda: len(uuids)
        self.nvmlDeviceGetHandleByIndex = lambda index: index
        self.nvmlDeviceGetUUID = lambda index: uuids[index]
        self.nvmlDeviceGetName = lambda _: "A100"
        self.nvmlDeviceGetMemoryInfo = lambda _: SimpleNamespace(total=80 << 30)


def test_a_reservation_notices_that_the_keeper_of_its_node_is_gone(tmp_path: Path) -> None:
    """On a Ray that is not ours the actor lives on, and the node's GPUs would be counted as there
    while nothing can start on them.
    """
    slot = Slot(str(tmp_path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as keeper:
        keeper.bind(str(tmp_path / "keeper.sock"))
        keeper.listen()
        holding = Thread(target=slot.hold)
        holding.start()
        keeper.accept()[0].close()  # it has been looked for
        slot.give_back()
        holding.join(30)
        assert not holding.is_alive()

    with pytest.raises(ConnectionRefusedError):
        slot.hold()


def test_a_test_has_the_environment_of_its_own_node(tmp_path: Path) -> None:
    """PATH, HOME or TMPDIR of another machine lead nowhere."""
    environ = {
        "PATH": "/here/bin",
        "HOME": "/here",
        "TMPDIR": "/elsewhere",
        "RAY_ADDRESS": "no",
        "AWS_SECRET_ACCESS_KEY": "no",
        NODE_VARIABLE: str(tmp_path),
    }

    assert node_variables(environ) == {
        "PATH": "/here/bin",
        "HOME": "/here",
        "TMPDIR": f"{tmp_path}/t",
    }


def test_the_ports_of_ray_are_none_that_the_kernel_gives_away() -> None:
    """Some seconds pass until Ray binds them: on a busy machine a connection had one by then."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])

    with socket.socket() as taken:
        taken.bind(("", 20_000))
        ports = free_ports(50)

    assert len(set(ports)) == 50
    assert all(20_000 < port < first for port in ports)
