"""Reservations: actors that hold devices in Ray's books, and the processes that use them.

An idle reservation waits for the next process, also for that of the next session.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pytest_gpu_cluster.agent.arrivals import Arrivals, NodeJoined, NodeLost
from pytest_gpu_cluster.agent.device_group import DeviceGroup, devices_named
from pytest_gpu_cluster.agent.node_answer import NodeAnswer, ask_head, signed
from pytest_gpu_cluster.agent.plan import Demand
from pytest_gpu_cluster.agent.relay import Relay, the_ray
from pytest_gpu_cluster.contract.cluster_record import NodeRecord
from pytest_gpu_cluster.contract.events import NodeReady
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.gpus import Gpu
from pytest_gpu_cluster.contract.ray_place import NAMESPACE, RayPlace
from pytest_gpu_cluster.contract.specs import AgentSpec, WorkerSpec
from pytest_gpu_cluster.contract.trees import code_directory
from pytest_gpu_cluster.node import lease as leases
from pytest_gpu_cluster.ray_remains import end_remains_of, process_name

ENTRY = "pytest_gpu_cluster.worker.main:main"
GIVE_BACK_LIMIT_S = 2.0
SHOWN_ID = 12  # characters of a node id in events
KEEPER_GONE = "its keeper is gone"


@dataclass(frozen=True, kw_only=True, eq=False)
class Reservation:
    """The actor of a slot, its node and the devices that it holds."""

    actor: Any
    home: str  # Ray's node id
    gpus: float
    driver: str = (
        ""  # the process, where its tests drive the cluster; the next session finds others
    )


class Reservations:
    """All reservations of this session, and the idle ones that the next may use."""

    def __init__(self, spec: AgentSpec, arrivals: Arrivals) -> None:
        self._spec, self._arrivals = spec, arrivals
        self._name = f"idle-{code_directory(spec.request.code)}"
        self._head = ""  # Ray's id of this node
        self._address = ""  # of Ray
        self._group: DeviceGroup | None = None  # None: all of Ray is ours
        self._nodes: dict[str, NodeRecord] = {}  # by Ray's ids; a lost one is forgotten
        self._ended_drivers: set[str] = set()  # whose processes are gone
        self._secrets = spec.passed.compact().to_json()
        self._devices: dict[str, tuple[Gpu, ...]] = {}  # by node that has the session's trees
        self._preparing = threading.Lock()
        self._lock = threading.Lock()  # guards the two below
        self._idle: dict[tuple[str, float], list[Reservation]] = {}  # by node and devices
        self._prestarted: leases.Lease | None = None
        self._active: list[Reservation] = []  # whose processes live

    def join(self, head: str, place: RayPlace, nodes: Mapping[str, NodeRecord]) -> None:
        """Take over the idle reservations of the last session; other named actors are killed.

        On a Ray that others use too there is none of either that is ours, and our devices are taken
        where no session has held them. Raises CapacityError.
        """
        ray = the_ray()
        self._head, self._address, self._nodes = head, place.address, dict(nodes)
        self._devices[head] = self._spec.gpus
        if place.scope.shared:
            self._group = DeviceGroup(place.scope)
            if self._group.hold():
                self._devices[head] = devices_named(self._spec.gpus, self._group.ids(head))
            return
        for named in ray.util.list_named_actors(all_namespaces=True):
            actor = ray.get_actor(named["name"], namespace=named["namespace"])
            if named["name"].startswith(self._name):
                home, gpus = named["name"].split(":")[1:3]
                reservation = Reservation(actor=actor, home=home, gpus=float(gpus))
                self._idle.setdefault((home, float(gpus)), []).append(reservation)
            else:
                ray.kill(actor)

    def gpus_of_head(self) -> tuple[Gpu, ...]:
        """Return the devices of this node, which may be others than it began with."""
        return self._devices.get(self._head, self._spec.gpus)

    def prestart(self) -> None:
        """Start a process on this node before its reservation is made.

        The first worker then need not wait for its fork and its imports.
        """
        spec = self._spec
        self._prestarted = leases.Lease(str(spec.node), code=str(spec.code), entry=ENTRY)

    # -- one reservation ---------------------------------------------------------------------------

    def acquire(
        self, home: str, demand: Demand, *, process: str
    ) -> tuple[Reservation, tuple[Gpu, ...]]:
        """Return a reservation on node `home` for a test process, and exactly its devices."""
        with self._lock:
            idle = self._idle.get((home, demand.gpus)) if not demand.drives else None
            reservation = idle.pop() if idle else None
        if reservation is None:
            if demand.gpus or demand.drives:
                self.drop_idle()
                self._end_remains()
            # A driving test is to find no actor that is not its own.
            if demand.drives and self._group is not None:
                self._group.drop()
            driver = process_name(self._spec.session, process) if demand.drives else ""
            reservation = self._create(home, demand.gpus, driver)
        self._active.append(reservation)
        try:
            ids = the_ray().get(reservation.actor.gpu_ids.remote(), timeout=60)
            self._prepare(reservation)
            if demand.drives:
                self._prepare_nodes()
        except BaseException:
            self.release(reservation, reusable=False)  # else Ray would hold its devices for ever
            raise
        return reservation, devices_named(self._devices[home], ids if demand.gpus else ())

    def _create(self, home: str, gpus: float, driver: str = "") -> Reservation:
        """Return a new reservation. A session of the same code finds it by name, but a driver's."""
        ray = the_ray()
        ray.cloudpickle.register_pickle_by_value(leases)
        groups = {"send": 1, "receive": 1, "hold": 1}
        kind = ray.remote(num_cpus=0, num_gpus=gpus, max_restarts=0, concurrency_groups=groups)(
            leases.Slot
        )
        name = f"{self._name}:{home}:{gpus:g}:{secrets.token_hex(4)}"
        lasting = {"name": name, "namespace": NAMESPACE, "lifetime": "detached"}
        options = lasting if not driver and self._group is None else {}
        strategy = self._strategy(home, gpus, driver)
        directory = str(self._nodes[home].directory)
        actor = kind.options(scheduling_strategy=strategy, **options).remote(directory)
        return Reservation(actor=actor, home=home, gpus=gpus, driver=driver)

    def _strategy(self, home: str, gpus: float, driver: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if self._group is not None and gpus and not driver:
            return self._group.strategy(home)
        return NodeAffinitySchedulingStrategy(home, soft=False)

    def _prepare_nodes(self) -> None:
        """Have the trees on every node: the tasks of a driving test may run on any."""
        for home in list(self._nodes):
            if home not in self._devices:
                with self._visitor(home) as visitor:
                    self._prepare(visitor)

    @contextlib.contextmanager
    def _visitor(self, home: str) -> Iterator[Reservation]:
        """Hold an actor without devices on a node, for requests to its keeper."""
        visitor = self._create(home, 0.0, "visitor")
        try:
            yield visitor
        finally:
            the_ray().kill(visitor.actor)

    def _end_remains(self) -> None:
        """End what processes left in Ray that could not do so themselves: they were killed."""
        if ended := frozenset(self._ended_drivers):
            end_remains_of(self._address, lambda job: job.process in ended)

    def _prepare(self, reservation: Reservation) -> None:
        """Have the trees unpacked on another node, which thereby joins.

        Raises RuntimeError or OSError; then the node is lost: nothing can run there.
        """
        with self._preparing:
            if reservation.home not in self._devices:
                self._prepare_first(reservation)

    def _prepare_first(self, reservation: Reservation) -> None:
        home, spec = reservation.home, self._spec
        trees = {str(spec.tree_root): spec.request.tree}
        code = {str(spec.code): spec.request.code}
        order = {"op": "unpack", "trees": trees, "code": code, "passed": self._secrets}
        asked = reservation.actor.ask.remote(signed(spec, order))
        try:
            answer = NodeAnswer.parse(the_ray().get(asked, timeout=300))
        except (OSError, RuntimeError) as problem:
            self._lose(home, f"it could not be prepared: {problem}")
            raise
        self._devices[home] = answer.gpus
        node = NodeReady(
            node=home[:SHOWN_ID],
            host=answer.host,
            gpus=answer.gpus,
            driver=answer.driver,
            simulated=any(gpu.simulated for gpu in answer.gpus),
        )
        self._arrivals.put(NodeJoined(node=node))

    def start_process(
        self, reservation: Reservation, specification: WorkerSpec
    ) -> leases.Lease | Relay:
        """Start a process of a reservation: directly on this node, else through the actor."""
        body, node, code = specification.to_json(), str(self._spec.node), str(self._spec.code)
        if reservation.home == self._head:
            with self._lock:
                lease, self._prestarted = self._prestarted, None
            lease = lease or leases.Lease(node, code=code, entry=ENTRY)
            lease.specify(body)
            return lease
        try:
            the_ray().get(reservation.actor.open.remote(code, ENTRY, body), timeout=60)
        except (ConnectionError, FileNotFoundError) as problem:
            self._lose(reservation.home, f"its fork server is gone: {problem}")
            raise
        return Relay(reservation.actor)

    def _lose(self, home: str, message: str) -> None:
        self._arrivals.put(NodeLost(node=home, message=message.strip().splitlines()[-1]))

    def forget(self, home: str) -> None:
        """Give up the idle reservations of a node that is lost."""
        self._nodes.pop(home, None)
        with self._lock:
            keys = [key for key in self._idle if key[0] == home]
            idle = [each for key in keys for each in self._idle.pop(key)]
        for reservation in idle:
            the_ray().kill(reservation.actor)

    def select_on(self, home: str, specification: WorkerSpec) -> tuple[Reservation, Relay]:
        """Start the selecting process on a node beside this one, without a claim to its devices."""
        reservation = self._create(home, 0.0, "selection")
        self._active.append(reservation)
        self._prepare(reservation)
        code, body = str(self._spec.code), specification.to_json()
        the_ray().get(reservation.actor.open.remote(code, ENTRY, body), timeout=60)
        return reservation, Relay(reservation.actor)

    def ask(self, reservation: Reservation, request: Mapping[str, object]) -> NodeAnswer:
        """Send a request to the keeper of a reservation's node. Raises RuntimeError."""
        if reservation.home == self._head:
            return ask_head(self._spec, request)
        call = reservation.actor.ask.remote(signed(self._spec, request))
        return NodeAnswer.parse(the_ray().get(call, timeout=120))

    def other_nodes(self) -> list[str]:
        """Return the nodes beside this one that have the session's tree."""
        return [home for home in self._devices if home != self._head]

    def ask_node(self, home: str, request: Mapping[str, object]) -> NodeAnswer:
        """Send a request to the keeper of a node when no process runs. Raises RuntimeError."""
        with self._lock:
            idle = [each for (at, _), group in self._idle.items() if at == home for each in group]
        if idle:
            return self.ask(idle[0], request)
        with self._visitor(home) as visitor:
            return self.ask(visitor, request)

    def watch(self, reservation: Reservation, on_loss: Callable[[str], None]) -> None:
        """Call `on_loss` with a message when the actor dies before it is released."""
        ray = the_ray()
        reference = reservation.actor.hold.options(concurrency_group="hold").remote()

        def wait() -> None:
            try:
                ray.get(reference)
            except ray.exceptions.RayActorError as problem:
                if reservation in self._active:
                    on_loss(str(problem).splitlines()[0])
            except OSError:
                self._lose(reservation.home, KEEPER_GONE)
                on_loss(KEEPER_GONE)
            except Exception:  # noqa: BLE001 - Ray is being left
                return

        threading.Thread(target=wait, daemon=True).start()

    def release(self, reservation: Reservation, *, reusable: bool) -> None:
        """Release a reservation whose process is gone. A reusable one becomes idle."""
        self._active.remove(reservation)
        if reservation.driver:
            self._ended_drivers.add(reservation.driver)
        if reusable and not reservation.driver and self._give_back(reservation):
            with self._lock:
                idle = self._idle.setdefault((reservation.home, reservation.gpus), [])
                idle.append(reservation)
        else:
            the_ray().kill(reservation.actor)

    @staticmethod
    def _give_back(reservation: Reservation) -> bool:
        ray = the_ray()
        try:
            answer = reservation.actor.give_back.options(concurrency_group="send").remote()
            ray.get(answer, timeout=GIVE_BACK_LIMIT_S)
        except ray.exceptions.RayError:  # it has died, or hangs
            return False
        return True

    # -- the idle ones, and the end ----------------------------------------------------------------

    def drop_idle(self, *, but: float = 0.0) -> None:
        """Give the devices of idle reservations back to Ray, for a demand that is not theirs.

        Those of `but` devices stay.
        """
        with self._lock:
            stay = {key: group for key, group in self._idle.items() if but and key[1] == but}
            dropped = [
                each for key, group in self._idle.items() if key not in stay for each in group
            ]
            self._idle = stay
        for reservation in dropped:
            the_ray().kill(reservation.actor)

    def fill_idle(self, gpus: float, nodes: Mapping[str, float]) -> None:
        """Reserve `gpus` devices as often as they fit, for the next session.

        It then need not wait for Ray's processes. `nodes` holds the devices of each node.
        """
        for home, count in nodes.items():
            existing = len(self._idle.get((home, gpus), ()))
            for _ in range(existing, int((count + 1e-9) / gpus) if gpus else 0):
                self._create(home, gpus)

    def idle_ids(self) -> set[str]:
        """Return the actor ids of the idle reservations."""
        return {each.actor._actor_id.hex() for group in self._idle.values() for each in group}

    def end(self, *, idle_gpus: float) -> None:
        """Kill every actor but idle ones of so many devices, and the prestarted process."""
        if self._prestarted is not None:
            self._prestarted.kill()
        self.drop_idle(but=idle_gpus)
        for reservation in list(self._active):
            the_ray().kill(reservation.actor)
        if self._group is not None:
            self._group.drop()
