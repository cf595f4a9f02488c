"""Starts test processes: what each is told, and the thread that listens to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import replace

from pytest_gpu_cluster.agent.arrivals import Arrivals, ClusterFailed, ReservationLost
from pytest_gpu_cluster.agent.node_answer import NodeAnswer, ask_head
from pytest_gpu_cluster.agent.ray_cluster import Cluster
from pytest_gpu_cluster.agent.reservations import ENTRY, Reservation
from pytest_gpu_cluster.agent.state import SessionState
from pytest_gpu_cluster.agent.worker import Transport, Worker
from pytest_gpu_cluster.contract.errors import CapacityError
from pytest_gpu_cluster.contract.events import InternalError, Message
from pytest_gpu_cluster.contract.failures import StopReason
from pytest_gpu_cluster.contract.gpus import Gpu
from pytest_gpu_cluster.contract.masking import PassedValues
from pytest_gpu_cluster.contract.messages import Exit, Finished, decode
from pytest_gpu_cluster.contract.request import PytestFacts
from pytest_gpu_cluster.contract.specs import (
    AgentSpec,
    ClusterFacts,
    Role,
    TreePlaces,
    WorkerSpec,
)
from pytest_gpu_cluster.node.lease import Lease

SELECTING = "main"  # the name of the selecting process
RECEIVE_S = 5.0


class Opening:
    """The connection to a process that is being started: what is sent meanwhile waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below
        self._transport: Transport | None = None
        self._waiting: list[bytes] = []

    def open(self, transport: Transport) -> None:
        """Send what waits; from now on nothing does."""
        with self._lock:
            self._transport = transport
            for message in self._waiting:
                transport.send(message)

    def send(self, message: bytes) -> None:
        with self._lock:
            if self._transport is None:
                self._waiting.append(message)
            else:
                self._transport.send(message)


class Launcher:
    """Starts the processes of one session."""

    def __init__(
        self, spec: AgentSpec, state: SessionState, cluster: Cluster, arrivals: Arrivals
    ) -> None:
        self._spec, self._state, self._cluster, self._arrivals = spec, state, cluster, arrivals
        self._root = spec.tree_root
        self._selecting: Reservation | None = None  # where the selection is on another node

    @property
    def can_select_here(self) -> bool:
        """True where the selection need not wait for nodes that have a GPU."""
        return bool(self._spec.gpus) or self._spec.nodes == 1

    def start_selection(self) -> Opening:
        """Start the selecting process, on this node or, once all have joined, on another.

        It sees all devices of its node.
        """
        opening, spec = Opening(), self._spec
        home = "" if self.can_select_here else self._cluster.selecting_node()
        if home and self._cluster.gpus_of(home):
            thread = threading.Thread(target=self._select_on, args=(home, opening), daemon=True)
            thread.start()
            return opening
        gpus = self._cluster.reservations.gpus_of_head()
        body = self._specification(Role.SELECT, SELECTING, gpus).to_json()
        lease = Lease(str(spec.node), code=str(spec.code), entry=ENTRY, specification=body)
        self._listen(None, lease)
        opening.open(lease)
        return opening

    def _select_on(self, home: str, opening: Opening) -> None:
        try:
            gpus = self._cluster.gpus_of(home)
            specification = self._specification(Role.SELECT, SELECTING, gpus)
            if self._selecting is not None:  # it is started again
                self._cluster.reservations.release(self._selecting, reusable=False)
            self._selecting, relay = self._cluster.reservations.select_on(home, specification)
        except Exception as problem:  # noqa: BLE001 - as in `_start`
            message = f"{type(problem).__name__}: {problem}".splitlines()[0]
            self._arrivals.put((None, [Exit(status=None, why=message)]))
            return
        self._listen(None, relay)
        opening.open(relay)

    def ask_selecting(self, request: Mapping[str, object]) -> NodeAnswer:
        """Send a request to the keeper of the selecting process's node. Raises RuntimeError."""
        if self._selecting is None:
            return ask_head(self._spec, request)
        return self._cluster.reservations.ask(self._selecting, request)

    def start_worker(self, worker: Worker) -> None:
        """Reserve the devices of a worker and start its process, in the background."""
        name = f"start-{worker.name}"
        threading.Thread(target=self._start, args=(worker,), name=name, daemon=True).start()

    def _start(self, worker: Worker) -> None:
        reservations = self._cluster.reservations
        try:
            reservation, gpus = reservations.acquire(
                worker.home, worker.demand, process=worker.name
            )
            worker.reservation = reservation
            drives = worker.demand.drives
            specification = self._specification(Role.RUN, worker.name, gpus, drives=drives)
            worker.transport = reservations.start_process(reservation, specification)
            self._listen(worker, worker.transport)
            reservations.watch(
                reservation,
                lambda message: self._arrivals.put(ReservationLost(worker=worker, message=message)),
            )
        except CapacityError as problem:
            failed = ClusterFailed(message=problem.what, reason=StopReason.CAPACITY)
            self._arrivals.put(failed)
            self._arrivals.put((worker, [Exit(status=None, why=problem.what)]))
        except Exception as problem:  # noqa: BLE001
            # Whatever fails there is the end of that process.
            message = f"{type(problem).__name__}: {problem}".splitlines()[0]
            self._arrivals.put((worker, [Exit(status=None, why=message)]))

    def _listen(self, worker: Worker | None, transport: Transport) -> None:
        """Put the messages of a process into the queue until it has ended."""
        root = json.dumps(str(self._root))[1:-1].encode()

        def pump() -> None:
            ended = False
            while not ended:
                lines = transport.receive(RECEIVE_S)
                messages = [_decoded(line, root, transport) for line in lines]
                if messages:
                    ended = isinstance(messages[-1], Exit)
                    self._arrivals.put((worker, messages))

        name = f"listen-{worker.name if worker is not None else SELECTING}"
        threading.Thread(target=pump, name=name, daemon=True).start()

    def _specification(
        self, role: Role, name: str, gpus: tuple[Gpu, ...], *, drives: bool = False
    ) -> WorkerSpec:
        spec, state = self._spec, self._state
        request = spec.request
        ray = self._cluster.access() if drives else None
        return WorkerSpec(
            role=role,
            tree=TreePlaces(
                root=str(self._root),
                origin=request.origin,
                rootdir=str(self._root / request.rootdir),
                cwd=str(self._root / request.cwd),
            ),
            client=PytestFacts(
                plugins=request.plugins,
                program=request.program,
                sys_path=request.sys_path,
                color=request.color,
                columns=request.columns,
                seed=state.options.randomly_seed or request.seed,
                cache=request.cache,
                mtimes=request.mtimes,
            ),
            args=request.args,
            distribute=request.distribute,
            env=self._environment(gpus),
            passed=spec.passed if role is Role.SELECT else PassedValues(),
            worker=name,
            workers=self._cluster.width(),
            testrun=spec.session,
            scratch=str(spec.scratch / name),
            gpus=gpus,
            ray=ray,
            cluster=ClusterFacts(
                id=spec.cluster,
                session=spec.session,
                nodes=spec.nodes,
                store=spec.store,
                prefix=state.record.prefix,
                commit=request.git.commit,
                branch=request.git.branch,
                dirty=request.git.dirty,
            ),
            crashed_files=state.crashed_files,
            quarantined=request.quarantined,
        )

    def _environment(self, gpus: tuple[Gpu, ...]) -> dict[str, str]:
        """Return the passed variables, and exactly the process's devices."""
        return {
            **self._spec.env,
            **self._spec.request.git.variables(),
            "CUDA_VISIBLE_DEVICES": ",".join(gpu.id for gpu in gpus),
        }


def _decoded(line: bytes, root: bytes, transport: Transport) -> Message:
    """Return the message of a line.

    Records can name files of the tree only where its root occurs in the line. A process that sends
    anything but our messages is killed, and that is an internal error.
    """
    try:
        message = decode(line)
    except ValueError as problem:
        transport.kill()
        return InternalError(text=f"a test process sent a line that is no message: {problem}")
    if isinstance(message, Finished) and root not in line:
        return replace(message, paths=False)
    return message
