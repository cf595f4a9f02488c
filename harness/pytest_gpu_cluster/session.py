"""One session, in the order it happens.

`Run.events` is the whole run: it yields every event for the sinks to show. Closing the generator
releases the cluster, as does an interrupt or a failure.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from enum import Enum, auto

from pytest_gpu_cluster import environment
from pytest_gpu_cluster.asked import cluster_spec, passed_values, session_request, ship_tree
from pytest_gpu_cluster.bundle.listing import listing
from pytest_gpu_cluster.bundle.repository import modification_times
from pytest_gpu_cluster.bundle.retention import prune
from pytest_gpu_cluster.bundle.ship import Tree, ship_files
from pytest_gpu_cluster.clusters.acquire import Listed, acquire, launch, listed_clusters, new_id
from pytest_gpu_cluster.clusters.held_cluster import HeldCluster, Hold
from pytest_gpu_cluster.contract.background import Background
from pytest_gpu_cluster.contract.errors import (
    HarnessError,
    StoreError,
    UnreadableRecordError,
)
from pytest_gpu_cluster.contract.events import Event, PhaseFinished, Requested, SessionFinished
from pytest_gpu_cluster.contract.failures import Closer, StopReason
from pytest_gpu_cluster.contract.record import AGENT_WRITER, Ending, SessionRecord
from pytest_gpu_cluster.contract.request import GitFacts, PytestFacts, ReportFacts, SessionRequest
from pytest_gpu_cluster.contract.settings import RunRequest, Settings
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.waits import WAITS
from pytest_gpu_cluster.contract.withheld import stored_request, withheld
from pytest_gpu_cluster.liveness import Heartbeat, heartbeat, recorded
from pytest_gpu_cluster.outputs import Homecoming, bring_home
from pytest_gpu_cluster.providers import LaunchPlan, Provider, load_provider

SILENCE_S = 2.0  # without an event for so long, it is asked whether the cluster is there


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: the orderly way out of a Ctrl-C, and no cluster stays."""


class Stage(Enum):
    """How far a run has come."""

    NEW = auto()  # nobody knows of it
    RECORDED = auto()  # the store has its request, so that others can say how it ended
    FOLLOWING = auto()  # a cluster has it
    FINISHED = auto()  # `session_finished` has arrived


class Run:
    """A session: the request, the cluster that it holds, and the failure of that cluster."""

    def __init__(
        self, request: RunRequest, pytest_version: str, local: PytestFacts, report: ReportFacts
    ) -> None:
        self.id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
        self._asked, self._pytest_version = request, pytest_version  # with values of variables
        self.settings: Settings = request.settings
        # Before the store, which a refused request must not create.
        self.provider: Provider = load_provider(self.settings.provider, self.settings, os.environ)
        self.store = Store.open(self.settings.store, base=request.project)
        self.record = SessionRecord(self.store, self.id)
        self.request = session_request(self.id, request, local, report)
        self.passed = passed_values(request)
        self.mask = self.passed.masker()  # for the store and the terminal
        self.stage = Stage.NEW
        self.cluster: HeldCluster | None = None
        self.reusable = False  # the agent says that the cluster may serve another session
        self.interrupted = False  # by the user
        self.must_end = False  # the cluster: by a second Ctrl-C, or by SIGTERM
        self.releasing = False  # a further Ctrl-C hurries it
        self.say: Callable[[str], None] = lambda line: None  # shows a line to the user
        self.waiting: Callable[[float], None] = lambda seconds: None  # shows that a start goes on
        self.teardown_failure: HarnessError | None = None
        self._last: dict[str, int] = {}  # the seq of the last event that was yielded, by writer

    def events(self) -> Generator[Event, None, None]:
        """THE RUN: ship, rent, follow, give back.

        Raises HarnessError. A session that keeper or guard report as lost ends with an event.
        """
        began = time.monotonic()
        yield Requested(request=self.stored_request())
        listed = listed_clusters(self.store)
        # Without one, a request looks abandoned to whoever finds it.
        with heartbeat(self.record) as beats:
            with recorded(self.put_request):
                plan = self.planned()
                yield phase("environment", plan.environment, began)

                began = time.monotonic()
                tree, code, git = self.ship()
            yield phase("tree", tree.detail, began)

            began = time.monotonic()
            times = (
                modification_times(self.store, tree.digest, self._asked.tree.top)
                if self._asked.newest_first
                else {}
            )
            self.request = replace(
                self.request,
                tree=tree.digest,
                code=code.digest,
                git=git,
                mtimes=times,
                shape=plan.shape,
                limits=replace(self.request.limits, grace_s=plan.patience.grace_s),
            )
            self.put_request()
            yield Requested(request=self.stored_request())
            with self.hold(plan, listed) as cluster:
                # A new one has begun to start: how long that takes is not known yet.
                since = began if cluster.up else None
                yield phase("cluster", f"{cluster.ref.id}, {cluster.note}", since)
                yield from self.follow(cluster, beats)

    def planned(self) -> LaunchPlan:
        """Return the plan of the cluster that this session wants; spends nothing.

        Raises RequestError for one that cannot run it.
        """
        token = new_id()
        return self.provider.plan(
            cluster_spec(self.settings, token=token, pytest_version=self._pytest_version)
        )

    def plan_lines(self) -> list[str]:
        """Return what would be launched and sent, a line each. Raises RequestError."""
        plan, tree = self.planned(), self._asked.tree
        include, exclude = tree.files.include, tree.files.exclude
        paths = listing(tree.top, start=tree.start, include=include, exclude=exclude)
        usd = plan.price_ceiling_usd
        price = "not known" if usd is None else f"at most {usd:.2f} USD"
        price = f"price     {price}; nothing was started"
        return [*plan.examine(), f"tree      files: {len(paths)}", price]

    def closing_lines(self, *, simulated: bool, quiet: bool) -> list[str]:
        """Return the last lines: the record, the machines, and the time that the cluster stays.

        `quiet`: only what must not be missed.
        """
        if quiet:
            return ["on SIMULATED GPUs"] if simulated else []
        suffix = "; on SIMULATED GPUs" if simulated else ""
        lines = [f"session {self.id}  {self.record.url}{suffix}"]
        if self.cluster is not None and self.cluster.stage is Hold.HELD and self.stays_warm():
            idle_s = self.settings.limits.idle_minutes * 60
            until = time.strftime("%H:%M:%S", time.localtime(time.time() + idle_s))
            name = self.cluster.ref.id
            down = f"{self._asked.command} down {name}"
            lines.append(f"cluster {name} stays warm until {until}; to end it now: {down}")
        return lines

    # -- stages ------------------------------------------------------------------------------------

    def put_request(self) -> None:
        self.record.put_request(self.stored_request())
        self.stage = Stage.RECORDED

    def stored_request(self) -> SessionRequest:
        """Return the request as others may read it."""
        return stored_request(self.request, self.mask)

    def ship(self) -> tuple[Tree, Tree, GitFacts]:
        """Put the working tree, and this package's own code for the cluster, into the store.

        Return both, and what git says of the working tree.
        """
        ci = self.request.ci
        branch = ci.branch if ci is not None else ""
        code = Background(lambda: ship_files(self.store, environment.own_code()))
        tree, git = ship_tree(self.store, self._asked.tree, self.settings, branch)
        return tree, code.result(), git

    @contextlib.contextmanager
    def hold(self, plan: LaunchPlan, listed: Background[Listed]) -> Iterator[HeldCluster]:
        """Hold a cluster, and close it unless it may stay warm.

        No way out of the block leaves it unattended.
        """
        values = self._asked.passed_env | withheld(self.request, self.mask)
        cluster = acquire(self.store, self.provider, plan, self.id, values, listed)
        self.cluster = cluster
        try:
            if cluster.stage is Hold.PLANNED:
                code, say = self.request.code, self.say
                launch(cluster, code=code, session=self.id, values=values, tell=say)
            yield cluster
        except KeyboardInterrupt as problem:  # the user's: a test's own arrives as an event
            self.interrupt(problem)
            raise
        finally:
            self.release(cluster)

    def interrupt(self, problem: BaseException) -> None:
        """Note that the user ends the run, and with SIGTERM or SIGHUP the cluster too."""
        self.interrupted = True
        self.must_end = self.must_end or isinstance(problem, Terminated)

    def release(self, cluster: HeldCluster) -> None:
        """End the session, then let the cluster stay warm or close it.

        After a Ctrl-C it stays where it is up and would have stayed; a further one closes it.
        """
        self.releasing, hurried = True, False
        try:
            keeps = not self.must_end and cluster.up and self.settings.limits.idle_minutes > 0
            if self.stage is not Stage.FINISHED and self.interrupted and keeps:
                name = cluster.ref.id
                self.say(f"the tests end, cluster {name} stays warm; Ctrl-C again ends it too")
                self.stop(StopReason.CANCELLED)
            elif self.stage is Stage.FOLLOWING and not (self.interrupted or cluster.lost):
                self.stop(StopReason.CLIENT_DONE)
        except KeyboardInterrupt:
            self.interrupted = self.must_end = hurried = True
        try:
            if not self.stays_warm():
                if self.interrupted:
                    self.say(f"the tests and cluster {cluster.ref.id} end")
                self.close_cluster(now=hurried)
        finally:
            self.releasing = False

    def end_late(self) -> None:
        """Close a cluster that was to stay, for a Ctrl-C that came after its release."""
        if self.must_end and self.cluster is not None and self.cluster.stage is Hold.HELD:
            self.say(f"cluster {self.cluster.ref.id} ends too")
            self.close_cluster(now=True)

    def stays_warm(self) -> bool:
        """Return True where the cluster may wait for the next session."""
        return self.reusable and not self.must_end and self.settings.limits.idle_minutes > 0

    def follow(self, cluster: HeldCluster, beats: Heartbeat) -> Iterator[Event]:
        """Yield the journal to the agent's last event.

        When it falls silent, the cluster is looked after. Raises HarnessError where that or the
        store is gone, once everything was read that was written before.
        """
        reader, self.stage = self.record.reader(expected=(AGENT_WRITER,)), Stage.FOLLOWING
        began = last_event = time.monotonic()
        failing: float | None = None  # since when; not since the last success: this was stopped
        is_due = True
        while self.stage is not Stage.FINISHED:
            if not is_due:
                reader.wait()
            try:
                events, failing = reader.poll(), None
            except UnreadableRecordError:  # and it stays so
                raise
            except StoreError:  # away is not dead: the next poll goes on from here
                failing = failing or time.monotonic()
                if time.monotonic() - failing > WAITS.store_patience_s:
                    raise
                events = []
            for event in events:
                last_event = time.monotonic()
                self.on_event(event)
                self._last[event.writer] = event.seq
                yield event
            if not events:
                beats.raise_if_refused()
                cluster.raise_if_lost()
                if not cluster.up:
                    self.waiting(time.monotonic() - began)
                if not cluster.up or time.monotonic() - last_event > SILENCE_S:
                    cluster.look()
            is_due = bool(events) and self.store.is_local

    def unread(self) -> list[Event]:
        """Return the events that `events` has not yielded: what came while it was interrupted."""
        with contextlib.suppress(HarnessError):
            events = self.record.reader().poll()
            return [event for event in events if event.seq > self._last.get(event.writer, -1)]
        return []

    def stop(self, reason: StopReason) -> None:
        """Ask the agent to end the session, and wait for its last event.

        Then the cluster can serve the next.
        """
        with contextlib.suppress(HarnessError):
            self.record.order_stop(reason)
            reader = self.record.reader()
            deadline = time.monotonic() + WAITS.stop_grace_s
            while self.stage is not Stage.FINISHED and time.monotonic() < deadline:
                for event in reader.poll():
                    self.on_event(event)
                reader.wait()

    def on_event(self, event: Event) -> None:
        """Note the end of the session, and whether the cluster is whole.

        One that has lost something must not serve again.
        """
        if isinstance(event, SessionFinished):
            self.stage, self.reusable = Stage.FINISHED, event.fit
        elif isinstance(event, PhaseFinished) and event.name == "ray" and self.cluster is not None:
            self.cluster.up = True  # the agent has joined every node

    def close_cluster(self, *, now: bool = False) -> None:
        """End the cluster, once. One that would not go is the failure of the session."""
        if self.cluster is not None:
            self.teardown_failure = self.cluster.close(now=now) or self.teardown_failure

    def bring_home(self) -> Homecoming:
        """Write what the tests wrote below `outputs` into the working tree. Raises StoreError."""
        return bring_home(
            self.record,
            self._asked.tree.top,
            tree=self.request.tree,
            outputs=self._asked.tree.files.outputs,
            of_options=self._asked.option_outputs,
            began=self.request.asked_at,
        )

    def write_result(self, ending: Ending, counts: Mapping[str, int]) -> None:
        """Make the record final, once; forget the oldest sessions of a local store.

        Raises StoreError.
        """
        seconds = round(time.time() - self.request.asked_at, 3)
        masked = Ending.from_json(self.mask.json(ending.to_json()))
        self.record.close(masked, by=Closer.CLIENT, seconds=seconds, counts=counts)
        if self.store.is_local:
            prune(self.store, keep_sessions=self.settings.keep_sessions)


def phase(name: str, detail: str, began: float | None) -> Event:
    """Return the event of a phase that began at `began`, by the monotonic clock; None: it goes on.

    Seconds of 0 are not shown.
    """
    seconds = time.monotonic() - began if began is not None else 0.0
    return PhaseFinished(writer="client", name=name, detail=detail, seconds=seconds)
