"""The agent's loop: whatever happens arrives in one queue, and each outcome is committed once.

The loop alone acts on a message of a process, a lost node or a limit. While the agent lives it is
the only writer of the session's journal, and the only place that decides where a test runs.
"""

from __future__ import annotations

import contextlib
import os
import queue
import time
from pathlib import Path

from pytest_gpu_cluster.agent import admission, plan
from pytest_gpu_cluster.agent.admission import Cancel, Decision, Finish, Give, Open
from pytest_gpu_cluster.agent.arrivals import (
    Arrivals,
    ClusterChange,
    ClusterFailed,
    ClusterReady,
    FromProcess,
    NodeJoined,
    NodeLost,
    ReservationLost,
)
from pytest_gpu_cluster.agent.cases import Resources
from pytest_gpu_cluster.agent.limits import Orders, TimeLimits
from pytest_gpu_cluster.agent.masking import JournalMask
from pytest_gpu_cluster.agent.node_answer import ask_head
from pytest_gpu_cluster.agent.outputs import store_outputs
from pytest_gpu_cluster.agent.plan import Demand
from pytest_gpu_cluster.agent.processes import SELECTING, Launcher
from pytest_gpu_cluster.agent.ray_cluster import Cleanup, Cluster
from pytest_gpu_cluster.agent.reservations import SHOWN_ID
from pytest_gpu_cluster.agent.selection import Selection, SelectionStage, unused_gpus
from pytest_gpu_cluster.agent.state import SessionState
from pytest_gpu_cluster.agent.worker import Worker
from pytest_gpu_cluster.agent.workers import Workers
from pytest_gpu_cluster.contract import events
from pytest_gpu_cluster.contract.background import Background
from pytest_gpu_cluster.contract.errors import HarnessError
from pytest_gpu_cluster.contract.events import Message
from pytest_gpu_cluster.contract.failures import FailureClass, StopReason
from pytest_gpu_cluster.contract.record import (
    AGENT_WRITER,
    SessionRecord,
    durations,
    put_durations,
)
from pytest_gpu_cluster.contract.specs import SPOOL, AgentSpec
from pytest_gpu_cluster.contract.store import Store

TICK_S = 0.05
TOLD_S = 1.0  # a tree that takes longer to unpack has a line of its own


class Agent:
    """One session: collects once, hands out tests, and leaves the cluster clean."""

    def __init__(self, spec: AgentSpec, orders: Orders) -> None:
        os.environ.update(spec.credentials)  # of the store; no test process gets them
        store = Store.open(spec.store, base=Path("/"))
        record = SessionRecord(store, spec.session)
        self._mask = JournalMask(spec.passed.masker())
        journal = record.writer(AGENT_WRITER, spool=spec.scratch / SPOOL, mask=self._mask)
        self.spec = spec
        self._held: list[Message] = []  # of the selection, until all nodes have joined
        self._history = Background(lambda: durations(store))  # while the selection starts
        self.state = SessionState(record, journal, spec.request.limits)
        self._arrivals: Arrivals = queue.SimpleQueue()
        self._cluster = Cluster(spec, store, self._arrivals)
        self._launcher = Launcher(spec, self.state, self._cluster, self._arrivals)
        self._selection = Selection(self.state, self._launcher)
        self._workers = Workers(spec, self.state, self._cluster, self._launcher)
        self._limits = TimeLimits(self.state, orders)

    def run(self) -> Cleanup:
        """Run the whole session; return the state in which it leaves the cluster."""
        self._prepare()
        if not self._selects_late:
            self._selection.start()
        self._cluster.connect()
        self.state.history = self._mask.by_real_id(self._history.result())
        self._cluster.reservations.prestart()
        opened_early = False
        while not self._finished():
            with contextlib.suppress(queue.Empty):
                self._handle(self._arrivals.get(timeout=TICK_S))
                while True:
                    self._handle(self._arrivals.get_nowait())
            self._release_held()
            if self.state.stop is None and self._selection.stage is SelectionStage.COLLECTING:
                if self._cluster.ready and not opened_early:
                    opened_early = True
                    self._open_early()
            elif self.state.stop is None and not self.state.journal.stalled:
                self._admit()  # with a stalled journal results could be lost: nothing new starts
            self._limits.check()
        return self._finish()

    @property
    def _selects_late(self) -> bool:
        """True where the selection waits for Ray: for a node with a GPU, or for devices of ours."""
        return self._cluster.shared or not self._launcher.can_select_here

    def fail(self, message: str) -> None:
        """Write down that the agent itself failed, unless the session's end is written already."""
        journal, infrastructure = self.state.journal, FailureClass.INFRASTRUCTURE
        ending = events.SessionFinished(
            failure_class=infrastructure, stop=StopReason.INFRASTRUCTURE, message=message
        )
        with contextlib.suppress(HarnessError, ValueError):  # ValueError: the journal is closed
            journal.append(events.InternalError(text=message, worker="agent"))
            journal.append(ending)
            journal.close()

    # -- the beginning -----------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Have the tree unpacked on this node. Raises RuntimeError."""
        spec = self.spec
        began = time.monotonic()
        trees = {str(spec.tree_root): spec.request.tree}
        ask_head(spec, {"op": "unpack", "trees": trees})
        seconds = time.monotonic() - began
        if seconds > TOLD_S:
            self.state.journal.append(
                events.PhaseFinished(
                    name="unpack", detail=f"the tree on {spec.host}", seconds=seconds
                )
            )
        self.state.journal.append(
            events.NodeReady(
                node="head",
                cluster=spec.cluster,
                host=spec.host,
                gpus=spec.gpus,
                driver=spec.driver,
                simulated=any(gpu.simulated for gpu in spec.gpus),
            )
        )

    def _open_early(self) -> None:
        """Open processes while the selection still runs."""
        cluster, history = self._cluster, self.state.history
        demand = Demand(gpus=cluster.default_gpus())
        for opening in admission.early(demand, history, cluster.width(), cluster.free()):
            self._workers.open(opening.demand, opening.devices)

    # -- arrivals ----------------------------------------------------------------------------------

    def _handle(self, arrival: FromProcess | ClusterChange) -> None:
        if not isinstance(arrival, tuple):
            self._on_change(arrival)
            return
        worker, messages = arrival
        if worker is not None:
            self._workers.on_messages(worker, messages)
            return
        self._held += messages
        self._release_held()

    def _release_held(self) -> None:
        """Act on what the selection has sent.

        What a cluster of several nodes can run is known when all have joined: until then the
        collected tests wait, and what was sent after them.
        """
        while self._held:
            waits = self.spec.nodes > 1 and self._cluster.joining and self.state.stop is None
            if waits and isinstance(self._held[0], events.Collected):
                return
            self._selection.on_message(self._held.pop(0), self._resources)

    def _resources(self) -> Resources:
        cluster = self._cluster
        return Resources(
            nodes=cluster.capacity(),
            gpus=cluster.devices(),
            default_gpus=cluster.default_gpus(),
            cpus=self._cluster.cpus(),
            has_ray=not self.spec.test_user,
            shared=cluster.shared,
        )

    def _on_change(self, change: ClusterChange) -> None:
        state = self.state
        match change:
            case ReservationLost():
                change.worker.lose(change.message)
            case NodeJoined():
                state.journal.append(change.node)
            case ClusterReady():
                if self._selects_late and state.stop is None:
                    self._selection.start()
                nodes = self.spec.nodes
                detail = f"{nodes} node{'s' if nodes > 1 else ''}"
                state.journal.append(
                    events.PhaseFinished(name="ray", detail=detail, seconds=change.seconds)
                )
            case NodeLost() if self._cluster.lose(change.node):
                state.damage = f"node {change.node[:SHOWN_ID]} is lost: {change.message}"
                state.journal.append(events.NodeLost(node=change.node, message=state.damage))
            case ClusterFailed():
                state.end(change.reason, change.message)

    # -- deciding ----------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Open processes for tests that wait, hand out tests, end processes that nobody needs."""
        now, state = time.monotonic(), self.state
        self._fail_stranded()
        situation = admission.Situation(
            backlog=state.backlog,
            workers=[_view(worker, now) for worker in state.workers],
            capacity=self._cluster.capacity(),
            free=self._cluster.free(),
            cpus=self._cluster.cpus(),
            mean_s=state.outcomes.mean_s,
            serial=state.serial,
        )
        by_name = {worker.name: worker for worker in state.workers}
        for decision in admission.decide(situation):
            self._carry_out(decision, by_name)

    def _fail_stranded(self) -> None:
        """Make errors of tests whose devices were on a node that is lost, and on no other."""
        state, capacity = self.state, self._cluster.capacity()
        if state.damage is None:
            return
        for demand in state.backlog.demands():
            if problem := plan.impossible(demand, capacity):
                stranded = state.backlog.front(demand, state.backlog.waiting(demand))
                state.backlog.remove(stranded)
                for test in stranded:
                    text = f"infrastructure: {state.damage}; {problem}"
                    state.fail(test, text, FailureClass.INFRASTRUCTURE)

    def _carry_out(self, decision: Decision, workers: dict[str, Worker]) -> None:
        match decision:
            case Open():
                if decision.demand.drives:
                    self._cluster.reservations.drop_idle()
                self._workers.open(decision.demand, decision.devices)
            case Give():
                self.state.backlog.remove(decision.tests)
                workers[decision.worker].give(decision.tests, last=decision.last)
            case Finish():
                workers[decision.worker].finish()
            case Cancel():
                workers[decision.worker].cancel()

    # -- the end -----------------------------------------------------------------------------------

    def _finished(self) -> bool:
        """Return True when all processes have ended.

        Once nothing runs and nothing waits, the selecting process is told of the session's end.
        """
        state, selection = self.state, self._selection
        if state.backlog or any(worker.result is None for worker in state.workers):
            return False
        if selection.stage is SelectionStage.COLLECTING and state.stop is None:
            return False
        if selection.stage is SelectionStage.ENDED:
            return not state.workers  # their files may still be on their way to the store
        selection.finish()
        return False

    def _finish(self) -> Cleanup:
        """Write the session's end, then leave the cluster."""
        self._put_durations()
        self._upload_coverage()
        for notice in store_outputs(self.spec, self._cluster):
            self.state.journal.append(notice)
        state, result = self.state, self._selection.result
        for notice in unused_gpus(state.ends.unused_gpu, len(state.outcomes.seconds)):
            state.journal.append(notice)
        state.journal.append(
            events.SessionFinished(
                pytest_status=result.exitstatus,
                tests_status=result.tests_status,
                worker_status=state.ends.status,
                shouldfail=result.shouldfail,
                shouldstop=result.shouldstop,
                failure_class=state.outcomes.failure_class,
                stop=state.stop,
                message=state.stop_message,
                coverage=tuple(state.ends.coverage),
                fit=state.damage is None,
            )
        )
        state.journal.close()  # the client need not wait for what follows
        if state.damage is not None:
            return Cleanup(clean=False, message=state.damage)
        warm = state.limits.idle_s > 0
        return self._cluster.leave(idle_gpus=self._cluster.default_gpus() if warm else 0.0)

    def _put_durations(self) -> None:
        """Add the seconds of this session's tests to the history, if the store can be reached."""
        state, seconds = self.state, self.state.outcomes.seconds
        measured = {t.nodeid: seconds[t.index] for t in state.tests if t.index in seconds}
        if measured:
            with contextlib.suppress(HarnessError):
                history = self._mask.by_masked_id(self._history.result())
                measured = self._mask.by_masked_id(measured)
                put_durations(state.record.store, plan.merged(history, measured))

    def _upload_coverage(self) -> None:
        if source := self._selection.result.coverage:
            key = self.state.record.coverage_key(SELECTING)
            request = {"op": "upload", "sources": {key: source}}
            answer = self._launcher.ask_selecting(request | {"passed": self.spec.passed.to_json()})
            for held in answer.held:
                self.state.journal.append(events.Notice(name="coverage", text=str(held)))
            self.state.ends.coverage.append(key)


def _view(worker: Worker, now: float) -> admission.WorkerView:
    return admission.WorkerView(
        name=worker.name,
        demand=worker.demand,
        home=worker.home,
        stage=worker.stage,
        queue=worker.queue,
        late=worker.running is not None and now - worker.since > plan.START_S,
    )
