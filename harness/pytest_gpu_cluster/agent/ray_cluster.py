"""The Ray cluster as the agent sees it: its nodes, and which of their devices are free."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum, auto

from pytest_gpu_cluster.agent import plan
from pytest_gpu_cluster.agent.arrivals import Arrivals, ClusterFailed, ClusterReady, NodeLost
from pytest_gpu_cluster.agent.plan import Demand
from pytest_gpu_cluster.agent.reservations import NAMESPACE, Reservation, Reservations, the_ray
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.loopback import follow_address
from pytest_gpu_cluster.contract.specs import AgentSpec, RayAccess
from pytest_gpu_cluster.ray_remains import Books

READY_LIMIT_S = 180.0
RELEASE_LIMIT_S = 10.0


class Joining(Enum):
    """The stages of joining Ray."""

    WAITING = auto()
    READY = auto()
    FAILED = auto()


@dataclass(frozen=True, kw_only=True)
class Cleanup:
    """The state in which a session leaves the cluster."""

    clean: bool  # another session may use it
    message: str = ""  # the reason, where none may


class Cluster:
    """Ray's nodes and the ledger of their devices. Each change arrives in the agent's queue."""

    def __init__(self, spec: AgentSpec, arrivals: Arrivals) -> None:
        self._spec, self._arrivals = spec, arrivals
        self.reservations = Reservations(spec, arrivals)
        self.address = ""
        self._books: Books  # of Ray, once it was joined
        self._joining = Joining.WAITING
        self._total: dict[str, float] = {}  # devices by node
        self._lock = threading.Lock()  # guards the next
        self._free: dict[str, float] = {}
        self._lost_nodes: set[str] = set()

    @property
    def ready(self) -> bool:
        return self._joining is Joining.READY

    # -- joining -----------------------------------------------------------------------------------

    def connect(self) -> None:
        """Join in the background, so that the selection need not wait for it."""
        threading.Thread(target=self._connect, name="ray", daemon=True).start()

    def _connect(self) -> None:
        began = time.monotonic()
        try:
            self._join(began + READY_LIMIT_S)
        except Exception as problem:  # noqa: BLE001 - told as the failure of the cluster
            self._joining = Joining.FAILED
            message = f"Ray could not be joined: {type(problem).__name__}: {problem}"
            self._arrivals.put(ClusterFailed(message=message))
            return
        self._joining = Joining.READY
        self._arrivals.put(ClusterReady(seconds=time.monotonic() - began))
        self._watch_nodes()

    def _join(self, deadline: float) -> None:
        ray = the_ray()
        path = self._spec.node / "ray.json"
        while not path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"Ray was not up after {READY_LIMIT_S:.0f} s")
            time.sleep(0.02)
        self.address = json.loads(path.read_text())["address"]
        follow_address(self.address)
        os.environ["RAY_AUTH_TOKEN"] = self._spec.ray_token  # no test process inherits it
        ray.init(
            address=self.address,
            namespace=NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
        )
        self._books = Books(self.address)
        expected = self._spec.nodes
        while len(alive := [node for node in ray.nodes() if node["Alive"]]) < expected:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{len(alive)} of {expected} nodes joined in {READY_LIMIT_S:.0f} s"
                )
            time.sleep(0.1)
        for node in alive:
            self._total[node["NodeID"]] = float(node["Resources"].get("GPU", 0.0))
        self.reservations.join(
            ray.get_runtime_context().get_node_id(), self.address, list(self._total)
        )
        self._free = dict(self._total)

    def _watch_nodes(self) -> None:
        ray = the_ray()
        while True:
            time.sleep(1.0)
            try:
                alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            except Exception:  # noqa: BLE001
                # Ray is being left, or its head has died: then the keeper says so.
                return
            for node in set(self._total) - alive - self._lost_nodes:
                self._lost_nodes.add(node)
                with self._lock:
                    self._free.pop(node, None)
                self._arrivals.put(NodeLost(node=node))

    def access(self) -> RayAccess:
        """Return how a test finds the cluster that was joined."""
        logs: str = the_ray()._private.worker._global_node.get_logs_dir_path()
        return RayAccess(address=self.address, token=self._spec.ray_token, logs=logs)

    # -- the books ---------------------------------------------------------------------------------

    def capacity(self) -> dict[str, float]:
        """Return the devices of each node; before Ray is up, those of the requested cluster."""
        if self._total:
            return {
                node: count for node, count in self._total.items() if node not in self._lost_nodes
            }
        return {f"node-{n}": float(len(self._spec.gpus)) for n in range(self._spec.nodes)}

    def default_gpus(self) -> float:
        """Return the devices of an unmarked test."""
        setting = self._spec.request.limits.default_gpus
        if setting is not None:
            return float(setting)
        return min(1.0, max(self.capacity().values(), default=0.0))

    def width(self) -> int:
        """Return how many tests of the default demand run at once."""
        demand = Demand(gpus=self.default_gpus())
        return max(1, plan.slots(demand, self.capacity(), os.cpu_count() or 1))

    def free(self) -> dict[str, float]:
        """Return the devices of each node that nobody holds."""
        with self._lock:
            return dict(self._free)

    def claim(self, devices: Mapping[str, float]) -> None:
        """Count devices as held."""
        self._count(devices, -1)

    def release(
        self, reservation: Reservation | None, devices: Mapping[str, float], *, reusable: bool
    ) -> None:
        """Count the devices of a process that is gone as free.

        A reusable reservation waits for the next process.
        """
        if reservation is not None:
            self.reservations.release(reservation, reusable=reusable)
        self._count(devices, 1)

    def _count(self, devices: Mapping[str, float], sign: int) -> None:
        with self._lock:
            for node, count in devices.items():
                if node in self._free:  # else the node is lost
                    self._free[node] += sign * count

    # -- leaving -----------------------------------------------------------------------------------

    def leave(self, *, idle_gpus: float) -> Cleanup:
        """End what the session left in Ray.

        Idle reservations of `idle_gpus` devices stay for the next session; 0: none.
        """
        deadline = time.monotonic() + READY_LIMIT_S
        while self._joining is Joining.WAITING and time.monotonic() < deadline:
            time.sleep(0.05)  # a session may end before a cold Ray is up
        if not self.ready:
            return Cleanup(clean=False, message="Ray was never joined")
        self.reservations.end(idle_gpus=idle_gpus)
        deadline = time.monotonic() + RELEASE_LIMIT_S
        while remains := self._end_remains(self.reservations.idle_ids()):
            if time.monotonic() > deadline:
                return Cleanup(clean=False, message=f"left in Ray: {remains}")
            time.sleep(0.02)
        self.reservations.fill_idle(idle_gpus, self.capacity())
        the_ray().shutdown()
        return Cleanup(clean=True)

    def _end_remains(self, idle: set[str]) -> list[str]:
        """End living actors, but those of the ids `idle`, and placement groups; return them."""
        found = self._books.remains()
        remains = replace(found, actors=tuple(a for a in found.actors if a.id not in idle))
        remains.end()
        return remains.lines()
