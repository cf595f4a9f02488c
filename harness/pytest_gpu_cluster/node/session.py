"""One session on the head node: its agent is started, watched, and spoken for when it is lost."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from pytest_gpu_cluster.contract import procfs
from pytest_gpu_cluster.contract.bounded import parse_json, read_file
from pytest_gpu_cluster.contract.errors import InfrastructureError
from pytest_gpu_cluster.contract.events import Notice, SessionFinished
from pytest_gpu_cluster.contract.failures import Closer, KeeperStop, StopReason
from pytest_gpu_cluster.contract.fields import value_of
from pytest_gpu_cluster.contract.masking import Masker, PassedValues
from pytest_gpu_cluster.contract.messages import AgentFinished, EndSession, Exit, Raw, encode
from pytest_gpu_cluster.contract.outputs import HEAD, OutputsOrder
from pytest_gpu_cluster.contract.record import Ending, SessionRecord
from pytest_gpu_cluster.contract.request import SessionRequest
from pytest_gpu_cluster.contract.signing import session_key
from pytest_gpu_cluster.contract.silence import HeartbeatMonitor, Stopwatch
from pytest_gpu_cluster.contract.specs import AgentSpec
from pytest_gpu_cluster.contract.store import credentials
from pytest_gpu_cluster.contract.trees import code_directory, tree_directory
from pytest_gpu_cluster.contract.withheld import take_withheld
from pytest_gpu_cluster.node.context import Node, Shutdown, Stop
from pytest_gpu_cluster.node.lease import Lease
from pytest_gpu_cluster.node.outputs import Gate, collect, upload
from pytest_gpu_cluster.node.processes import private, stopped_for
from pytest_gpu_cluster.node.unpack import unpack
from pytest_gpu_cluster.node.visits import prepare
from pytest_gpu_cluster.node.working_trees import WorkingTrees

SESSION_FILE = "session"  # in the node's directory, while a session is served: its id
OVERTIME_S = 60.0  # an agent has this long to end a session whose deadline has passed
CLIENT_LOCAL_S, CLIENT_REMOTE_S = 0.25, 2.0  # between two looks at the client's word
TAIL_CHARS = 4000  # of a lost agent's output
KEEPER = "keeper"  # the writer of a session's journal
SILENT_BECAUSE = (
    "it was stopped, its machine slept, or it did not reach the store; what had finished is kept"
)


class ActiveSession:
    """The session that the cluster serves: its agent's process, its client's heartbeat, its end."""

    def __init__(
        self, node: Node, request: SessionRequest, lease: Lease, passed: PassedValues
    ) -> None:
        self.node, self.request, self.lease, self.passed = node, request, lease, passed
        self.mask = passed.masker()
        self.record = SessionRecord(node.store, request.session)
        self.client = HeartbeatMonitor()
        self.stopped = Stopwatch()  # its agent, as by SIGSTOP
        self.began = time.monotonic()
        self.polled = 0.0  # monotonic; the client's word, and the agent
        self.ordered = False  # the client's order to stop was passed on to the agent
        self.stop: Stop | None = None  # the keeper ends the session
        self.report: AgentFinished | None = None  # the agent has ended it
        self.exit: Exit | None = None  # no process of the session is left

    @property
    def scratch(self) -> Path:
        return scratch_of(self.node, self.record.session)

    @property
    def fit(self) -> bool:
        """True when the agent has left the cluster as clean as it was."""
        return self.report is not None and self.report.clean

    def watch(self) -> bool:
        """Look at agent and client; return True when no process is left. Raises StoreError."""
        for line in self.lease.receive(0):
            self._on_message(line)
        now = time.monotonic()
        if now - self.polled > (CLIENT_LOCAL_S if self.node.store.is_local else CLIENT_REMOTE_S):
            self.polled = now
            self.stopped.look(procfs.is_stopped(self.lease.pid))
            self.client.poll(self._client_word)
        if self.stop is None and (stop := self._overdue()) is not None:
            self.end(stop)
        return self.exit is not None

    def end(self, stop: Stop) -> None:
        """End the agent and all that it started; the first reason counts."""
        self.stop = self.stop or stop
        self.lease.kill()

    def cause(self, shutdown: Shutdown) -> Stop:
        """Return why the session ended, where its agent could not say so."""
        if self.stop is not None:
            return self.stop
        if shutdown.requested:
            return shutdown.stop
        status, err = (self.exit.status, self.exit.err) if self.exit is not None else (None, "")
        words = err.strip().splitlines()[-1:]  # of a traceback the error itself
        message = self.mask(": ".join([f"its agent ended with {status}", *words]))
        return Stop(kind=KeeperStop.AGENT_LOST, message=message)

    def store_files(self) -> Iterator[Notice]:
        """Store what the tests have left here, in the place of an agent that is lost.

        Yield what is held back, for it holds a secret. Raises StoreError.
        """
        gate = Gate(self.mask)
        for folder in self.scratch.glob("*/artifacts"):
            prefix = self.record.artifacts_prefix()
            upload(self.node.store, prefix, folder, gate, guest=self.node.guest)
        yield from (Notice(name="artifacts", text=str(held)) for held in gate.held)
        order = OutputsOrder(
            session=self.record.session,
            node=HEAD,
            root=tree_directory(self.scratch, self.request.root_name),
            tree=self.request.tree,
            globs=self.request.outputs,
            passed=self.passed,
        )
        held_outputs = collect(self.node.store, order, guest=self.node.guest)
        yield from (Notice(name="outputs", text=str(held)) for held in held_outputs)

    def tail(self) -> str:
        """Return the end of what the agent wrote."""
        path = self.node.directory / "agent.log"
        log = path.read_text(errors="replace") if path.exists() else ""
        whole = log + (self.exit.err if self.exit is not None else "")
        return self.mask(whole)[-TAIL_CHARS:]  # a cut may halve a secret

    def _client_word(self) -> bytes | None:
        """Return the client's heartbeat; its order to stop, which is in it, goes to the agent."""
        word = self.record.heartbeat()
        order = self.record.stop_order_in(word)
        if order is not None and not self.ordered:
            self.ordered = True
            self.lease.send(encode(EndSession(reason=order)))
        return word

    def _on_message(self, line: bytes) -> None:
        body = json.loads(line)
        match body.pop("kind"):
            case Exit.kind:
                self.exit = Exit.from_json(body)
            case AgentFinished.kind:
                self.report = AgentFinished.from_json(body)
            case Raw.kind:
                with open(self.node.directory / "agent.log", "a", opener=private) as log:
                    log.write(Raw.from_json(body).text)

    def _overdue(self) -> Stop | None:
        grace_s = self.node.boot.waits.grace_s
        if self.client.silent_s > grace_s:
            message = f"the client's heartbeat stopped for {grace_s:.0f} s: {SILENT_BECAUSE}"
            return Stop(kind=KeeperStop.CLIENT_SILENT, message=message)
        if self.stopped.seconds > grace_s:
            message = stopped_for("its agent", self.lease.pid, grace_s)
            return Stop(kind=KeeperStop.AGENT_LOST, message=message)
        if time.monotonic() - self.began > self.request.limits.max_s + OVERTIME_S:
            message = "its agent did not stop when the session's deadline passed"
            return Stop(kind=KeeperStop.DEADLINE, message=message)
        return None


def scratch_of(node: Node, session: str) -> Path:
    """Return the directory of a session, which ends with it."""
    return node.directory / "s" / session


def start_session(
    node: Node, request: SessionRequest, trees: WorkingTrees, values: dict[str, str]
) -> ActiveSession:
    """Start the agent of a session, whose tests get the values of variables.

    Raises StoreError: its code is not in the store.
    """
    scratch = scratch_of(node, request.session)
    scratch.mkdir(parents=True, mode=0o700)
    prepare(node, scratch)
    code = node.directory / "code" / code_directory(request.code)  # as old as the node
    unpack(node.store, request.code, code, cache=node.cache)
    (node.directory / SESSION_FILE).write_text(request.session)
    request = take_withheld(request, values)
    spec = AgentSpec(
        session=request.session,
        cluster=node.boot.cluster,
        store=node.boot.store,
        node=node.directory,
        scratch=scratch,
        code=code,
        request=request,
        env=values,
        credentials=credentials(os.environ),
        ray_token=node.ray_token,
        keeper_key=session_key(node.spec.secrets.keeper_secret, request.session),
        test_user=node.spec.test_user,
        nodes=node.boot.nodes,
        join_s=node.boot.waits.join_s,
        gpus=node.gpus,
        host=node.host,
        driver=node.driver,
    )
    trees.begin(request.tree, spec.tree_root)  # while the agent starts
    lease = Lease(
        node.directory,
        code=str(code),
        entry=request.agent,
        specification=spec.to_json(),
        as_keeper=True,
    )
    return ActiveSession(node, request, lease, spec.passed)


def take_passed(path: Path) -> dict[str, str]:
    """Return the values of passed variables from a file that is read once; none where it is absent.

    They are never part of the record. Raises InfrastructureError for anything else.
    """
    try:
        content = read_file(path)
    except FileNotFoundError:
        return {}
    path.unlink()
    try:
        return cast(dict[str, str], value_of(dict[str, str], parse_json(content)))
    except ValueError:  # whose text may have a value in it
        raise InfrastructureError(
            f"the values of passed variables in {path} are no object of texts",
            remedy="use the same version of pytest-gpu-cluster on both sides",
        ) from None


def append_lost_end(
    record: SessionRecord,
    stop: Stop,
    *,
    mask: Masker,
    tail: str = "",
    notices: Iterable[Notice] = (),
    timeout_s: float,
) -> None:
    """Say in a session's record why its agent will not, and close it when the client will not.

    Raises StoreError.
    """
    failure, message = stop.kind.failure_class, mask(stop.message)
    lost = StopReason.CLIENT_LOST if stop.kind.closes_record else None
    event = SessionFinished(failure_class=failure, stop=lost, message=message, tail=tail)
    record.append_end(KEEPER, event, mask=mask, notices=notices, timeout_s=timeout_s)
    if stop.kind.closes_record:
        record.close(Ending(failure_class=failure, message=message), by=Closer.KEEPER)
