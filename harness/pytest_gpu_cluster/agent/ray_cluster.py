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
from pytest_gpu_cluster.agent.members import join_members
from pytest_gpu_cluster.agent.plan import Demand
from pytest_gpu_cluster.agent.relay import the_ray
from pytest_gpu_cluster.agent.reservations import Reservation, Reservations
from pytest_gpu_cluster.contract.cluster_record import NodeRecord
from pytest_gpu_cluster.contract.cpus import usable_cpus
from pytest_gpu_cluster.contract.errors import CapacityError
from pytest_gpu_cluster.contract.failures import StopReason
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.gpus import Gpu
from pytest_gpu_cluster.contract.loopback import follow_address
from pytest_gpu_cluster.contract.ray_place import RayPlace, Scope
from pytest_gpu_cluster.contract.specs import AgentSpec, RayAccess
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.ray_remains import Books

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

    def __init__(self, spec: AgentSpec, store: Store, arrivals: Arrivals) -> None:
        self._spec, self._store, self._arrivals = spec, store, arrivals
        self._cpus = usable_cpus()
        self.reservations = Reservations(spec, arrivals)
        self.address = ""
        # Of a shared Ray it is there before any session.
        self._file = spec.node / "ray.json"
        self._scope = self._place().scope if self._file.exists() else Scope()
        self._books: Books  # of Ray, once it was joined
        self._joining = Joining.WAITING
        self._members: dict[str, NodeRecord] = {}  # by Ray's ids; empty until all have joined
        self._lock = threading.Lock()  # guards the next
        self._free: dict[str, float] = {}
        self._lost_nodes: set[str] = set()

    @property
    def ready(self) -> bool:
        return self._joining is Joining.READY

    @property
    def shared(self) -> bool:
        """True where Ray was there before us."""
        return self._scope.shared

    @property
    def joining(self) -> bool:
        return self._joining is Joining.WAITING

    # -- joining -----------------------------------------------------------------------------------

    def connect(self) -> None:
        """Join in the background, so that the selection need not wait for it."""
        threading.Thread(target=self._connect, name="ray", daemon=True).start()

    def _connect(self) -> None:
        began = time.monotonic()
        try:
            self._join(began + self._spec.join_s)
        except CapacityError as problem:
            self._joining = Joining.FAILED
            failed = ClusterFailed(message=problem.what, reason=StopReason.CAPACITY)
            self._arrivals.put(failed)
            return
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
        while not self._file.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"Ray was not up after {self._spec.join_s:.0f} s")
            time.sleep(0.02)
        place = self._place()
        self.address, self._scope = place.address, place.scope
        follow_address(self.address)
        if self._spec.ray_token:
            os.environ["RAY_AUTH_TOKEN"] = self._spec.ray_token  # no test process inherits it
        ray.init(
            address=self.address,
            namespace=self._scope.namespace,
            log_to_driver=False,
            configure_logging=False,
        )
        self._books = Books(self.address)
        shared = self._scope.shared
        head = self._scope.nodes[0].id if shared else ray.get_runtime_context().get_node_id()
        members = join_members(self._spec, self._store, head, _alive, deadline=deadline)
        self.reservations.join(head, place, members)
        members[head] = replace(members[head], gpus=self.reservations.gpus_of_head())
        self._free = {node: float(len(each.gpus)) for node, each in members.items()}
        self._members = members

    def _place(self) -> RayPlace:
        return RayPlace.from_json(json.loads(self._file.read_text()))

    def _watch_nodes(self) -> None:
        told: set[str] = set()
        while True:
            time.sleep(1.0)
            try:
                gone = self._members.keys() - _alive() - told
            except Exception:  # noqa: BLE001
                # Ray is being left, or its head has died: then the keeper says so.
                return
            for node in gone:
                told.add(node)
                self._arrivals.put(NodeLost(node=node))

    def gpus_of(self, node: str) -> tuple[Gpu, ...]:
        """Return the devices of a node that has joined."""
        return self._members[node].gpus

    def lose(self, node: str) -> bool:
        """Count a node no longer. Return False for one that was lost before."""
        if node in self._lost_nodes:
            return False
        with self._lock:
            self._free.pop(node, None)
        self._lost_nodes.add(node)
        self.reservations.forget(node)
        return True

    def tell_lost(self, node: str, message: str) -> None:
        """Have the loop lose a node."""
        self._arrivals.put(NodeLost(node=node, message=message))

    def is_other(self, node: str) -> bool:
        """Return True for a node that has joined and is not this one."""
        return node in list(self._members)[1:]

    def access(self) -> RayAccess:
        """Return how a test finds the cluster that was joined."""
        logs: str = the_ray()._private.worker._global_node.get_logs_dir_path()
        return RayAccess(address=self.address, token=self._spec.ray_token, logs=logs)

    # -- the books ---------------------------------------------------------------------------------

    def capacity(self) -> dict[str, float]:
        """Return the devices of each node; before all have joined, as if they were like the head.

        Of one node that is right; with several, nothing is decided before.
        """
        if self._members:
            return {
                node: float(len(each.gpus))
                for node, each in self._members.items()
                if node not in self._lost_nodes
            }
        return {f"node-{n}": float(len(self._spec.gpus)) for n in range(self._spec.nodes)}

    def selecting_node(self) -> str:
        """Return the node on which tests are selected: where this one has no GPU, one that has.

        What a test finds when it is imported decides what is skipped and what is parametrised.
        """
        head, *others = self._members
        able = [node for node in (head, *others) if self._members[node].gpus]
        return able[0] if able else head

    def cpus(self) -> int:
        """Return the CPUs that each node has at least: those that have joined, else this one."""
        return min((each.cpus for each in self._members.values()), default=self._cpus)

    def devices(self) -> list[Gpu]:
        """Return the devices of all nodes that have joined; before that, those of the head."""
        members = self._members.values()
        return [gpu for each in members for gpu in each.gpus] if members else [*self._spec.gpus]

    def default_gpus(self) -> float:
        """Return the devices of an unmarked test."""
        setting = self._spec.request.limits.default_gpus
        if setting is not None:
            return float(setting)
        return min(1.0, max(self.capacity().values(), default=0.0))

    def width(self) -> int:
        """Return how many tests of the default demand run at once."""
        demand = Demand(gpus=self.default_gpus())
        return max(1, plan.slots(demand, self.capacity(), self.cpus()))

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

        Idle reservations of `idle_gpus` devices stay for the next session; 0: none. None stays on a
        Ray that others use too.
        """
        deadline = time.monotonic() + self._spec.join_s
        while self.joining and time.monotonic() < deadline:
            time.sleep(0.05)  # a session may end before a cold Ray is up
        if not self.ready:
            return Cleanup(clean=False, message="Ray was never joined")
        idle_gpus = 0.0 if self._scope.shared else idle_gpus
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
        """End living actors, but those of the ids `idle`, and placement groups; return them.

        They are all where Ray is our own, else those of this session.
        """
        found = self._books.remains()
        if self._scope.shared:
            agent = the_ray().get_runtime_context().get_job_id()
            found = found.of_session(self._spec.session, self._books.jobs(), agent)
        remains = replace(found, actors=tuple(a for a in found.actors if a.id not in idle))
        remains.end()
        return remains.lines()


def _alive() -> set[str]:
    """Return Ray's ids of all nodes that live in it."""
    return {node["NodeID"] for node in the_ray().nodes() if node["Alive"]}
