"""The two processes that every node runs: Ray and the fork server. Both die with the keeper."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from enum import Enum, auto
from pathlib import Path

from pytest_gpu_cluster.contract import loopback, procfs
from pytest_gpu_cluster.contract.errors import InfrastructureError
from pytest_gpu_cluster.contract.ray_place import RayPlace, Scope
from pytest_gpu_cluster.contract.silence import Stopwatch
from pytest_gpu_cluster.contract.store import STORE_CREDENTIALS
from pytest_gpu_cluster.contract.trees import code_directory
from pytest_gpu_cluster.node.context import Node
from pytest_gpu_cluster.node.forkserver import PR_SET_PDEATHSIG, prctl
from pytest_gpu_cluster.node.lease import NODE_VARIABLE

# Beside what tests import: what Ray imports in its first call, 0.3 s that every session would pay
# again. No pytest plugin may be among them: pytest could not rewrite its assertions any more.
PRELOADED = (
    "pytest",
    "torch",
    "ray",
    "ray._common.usage.usage_lib",
    "ray.dag",
    "ray._common.pydantic_compat",
    "pydantic.main",
    "pydantic.json_schema",
)
HIDDEN = ("RAY_", "GPU_CLUSTER_", "PYTEST_", "PYTHON", *STORE_CREDENTIALS)  # prefixes of variables
# `ray start` has no other sign of readiness than this line of its log: a text of the vendor's.
RAY_IS_UP = "Ray runtime started"
FIRST_PORT = 20_000  # Ray gives those below to its workers


# Of a Ray that is there: how processes on its nodes connect to it.
GIVEN_ACCESS = (
    "RAY_USE_TLS",
    "RAY_TLS_SERVER_CERT",
    "RAY_TLS_SERVER_KEY",
    "RAY_TLS_CA_CERT",
    loopback.VARIABLE,
)
NODE_ID = re.compile(rb"--node[-_]id=([0-9a-f]+)")  # among the arguments of a raylet
RAY_DAEMONS = ("raylet", "gcs_server")  # names in the kernel of what `ray start` starts


class State(Enum):
    """The life of a node's process."""

    ABSENT = auto()  # not started yet
    STARTING = auto()
    READY = auto()
    ENDED = auto()


class NodeProcess(ABC):
    """A process that is as old as the node, its output in `<name>.log` of the node's directory."""

    name: str

    def __init__(self, node: Node) -> None:
        self.node = node
        self.state = State.ABSENT
        self.pid = 0  # 0: not started

    @abstractmethod
    def answers(self) -> bool:
        """Return True when a process that was started can be used."""

    def becomes_ready(self) -> bool:
        """Return True once: when a starting process can be used for the first time."""
        if self.state is not State.STARTING or not self.answers():
            return False
        self.state = State.READY
        return True

    def log(self) -> str:
        """Return the output so far."""
        with contextlib.suppress(OSError):
            return (self.node.directory / f"{self.name}.log").read_text(errors="replace")
        return ""

    def spawn(self, argv: list[str], variables: Mapping[str, str]) -> None:
        """Start the process with a death signal, so that it does not outlive the keeper."""

        def die_with_keeper() -> None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

        with open(self.node.directory / f"{self.name}.log", "ab", opener=private) as log:
            process = subprocess.Popen(
                argv,
                env={**environment(self.node, os.environ), **variables},
                cwd=self.node.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_keeper,  # noqa: PLW1509 - takes no lock
            )
        process.returncode = 0  # the keeper reaps: `subprocess` must not take the exit code from it
        self.pid, self.state = process.pid, State.STARTING


class ForkServer(NodeProcess):
    """The fork server: its socket appears when it listens."""

    name = "forkserver"

    def start(self) -> None:
        script = Path(__file__).with_name("forkserver.py")
        package = Path(__file__).parents[2]  # the import root that the keeper runs from
        name = code_directory(self.node.boot.code)
        self.spawn(
            [
                *(sys.executable, str(script), str(self.socket_path), str(package), name),
                *(self.node.spec.test_user, *PRELOADED),
            ],
            {},
        )

    @property
    def socket_path(self) -> Path:
        return self.node.directory / "spawn.sock"

    def answers(self) -> bool:
        return self.socket_path.exists()


class Ray(NodeProcess):
    """Ray on this node, and all ours. Its address is "" until it was started."""

    name = "ray"
    address = ""
    scope = Scope()

    def start(self, head_address: str | None = None) -> None:
        """Start Ray as the head of a cluster, or join one. Raises InfrastructureError."""
        ports = free_ports(4)
        self.address = head_address or f"{self.node.spec.ip}:{ports[0]}"
        on_loopback = loopback.is_loopback(self.node.spec.ip)
        # Ray's own monitor would end actors for what a test takes, and those hold reservations.
        # Without it the kernel ends the biggest test process, whose test is known.
        variables = {
            "RAY_AUTH_TOKEN": self.node.ray_token,
            "RAY_memory_monitor_refresh_ms": "0",
        }
        self.spawn(
            self._command(ports, head_address),
            variables | dict(loopback.VARIABLES if on_loopback else {}),
        )

    def answers(self) -> bool:
        return RAY_IS_UP in self.log()

    def node_id(self) -> str:
        """Return Ray's id of this node, from the arguments of its raylet; "" before it runs."""
        for pid in procfs.children(self.pid):
            if procfs.kernel_name(pid) == "raylet" and (
                found := NODE_ID.search(procfs.command_line(pid))
            ):
                return found[1].decode()
        return ""

    def _command(self, ports: list[int], head_address: str | None) -> list[str]:
        port, agent, grpc, runtime = ports
        script = Path(__file__).with_name("ray_start.py")
        of_head = [
            "--head",
            f"--port={port}",
            "--include-dashboard=false",
            f"--temp-dir={self.node.spec.ray_directory}",
        ]
        return [
            *(sys.executable, "-P", str(script), "start", "--block"),
            "--no-monitor",
            "--disable-usage-stats",
            "--log-color=false",
            f"--node-ip-address={self.node.spec.ip}",
            f"--num-gpus={len(self.node.gpus)}",
            "--include-log-monitor=false",
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={grpc}",
            f"--runtime-env-agent-port={runtime}",
            *(of_head if head_address is None else [f"--address={head_address}"]),
        ]


class GivenRay(Ray):
    """A Ray that was there before the keeper, and stays: no process of the node's."""

    def __init__(self, node: Node, place: RayPlace) -> None:
        super().__init__(node)
        self.address, self.scope = place.address, place.scope
        self.state = State.STARTING

    def start(self, head_address: str | None = None) -> None:
        """Start nothing."""

    def answers(self) -> bool:
        return True

    def node_id(self) -> str:
        """Return Ray's id of this node, as the driver has found it."""
        here = str(self.node.directory)
        return next(node.id for node in self.scope.nodes if node.directory == here)


class StoppedProcesses:
    """Notices processes that are stopped for too long: no exit code and no broken pipe says so."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._stopped: dict[int, Stopwatch] = {}  # by pid

    def overdue(self, stopped: Iterable[int]) -> list[int]:
        """Take the pids that are stopped now; return those that were for `grace_s` seconds."""
        self._stopped = {pid: self._stopped.get(pid) or Stopwatch() for pid in stopped}
        return [pid for pid, watch in self._stopped.items() if watch.look(True) > self._grace_s]


def stopped_for(name: str, pid: int, seconds: float) -> str:
    """Return the words for a process that was stopped and did not go on in time."""
    return f"{name} (pid {pid}) was stopped, as by SIGSTOP, for more than {seconds:.0f} s"


def private(path: str, flags: int) -> int:
    """Open a file that no other user can read: an opener for `open`."""
    return os.open(path, flags, 0o600)


def environment(node: Node, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of Ray and the fork server.

    It has no credential of the keeper's and no token, which the agent brings; and nothing that is
    meant for a Ray of the user's.
    """
    result = {name: value for name, value in environ.items() if not name.startswith(HIDDEN)}
    result |= ray_access(node, environ)
    result |= {
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        NODE_VARIABLE: str(node.directory),
    }
    if any(device.simulated for device in node.gpus):
        result.pop("CUDA_VISIBLE_DEVICES", None)
    return result


def ray_access(node: Node, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which processes connect to Ray, but for the token."""
    mode = {"RAY_AUTH_MODE": "token" if node.ray_token else "disabled"}
    given = GIVEN_ACCESS if node.spec.ray is not None else ()
    return mode | {name: environ[name] for name in given if name in environ}


def free_ports(count: int) -> list[int]:
    """Return different ports that nobody listens on now.

    They are none of those that the kernel gives to connections: before Ray has started on a busy
    machine, one of these would be taken. Raises InfrastructureError when there are not as many.
    """
    candidates = [*range(FIRST_PORT, _first_ephemeral_port())]
    random.SystemRandom().shuffle(candidates)
    sockets: list[socket.socket] = []
    try:
        for port in itertools.chain(candidates, itertools.repeat(0)):
            if len(sockets) == count:
                break
            _bind(sockets, port)
        return [each.getsockname()[1] for each in sockets]
    except OSError as problem:
        remedy = "end what holds them, or widen net.ipv4.ip_local_port_range"
        raise InfrastructureError(
            f"no free port for Ray, which needs {count}: {problem}", remedy=remedy
        ) from problem
    finally:
        for each in sockets:
            each.close()


def _bind(sockets: list[socket.socket], port: int) -> None:
    """Add a socket that is bound to a port; to any, for 0. Raises OSError only for that."""
    each = socket.socket()
    try:
        each.bind(("", port))
    except OSError:
        each.close()
        if not port:
            raise
    else:
        sockets.append(each)


def _first_ephemeral_port() -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    return FIRST_PORT
