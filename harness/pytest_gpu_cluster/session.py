"""One session, in the order it happens.

`Session.events` is the whole run: it yields every event for the sinks to show, and its `with` blocks put out what it lit,
also when the consumer stops listening (`close()`), is interrupted, or fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_gpu_cluster import clusters, environment
from pytest_gpu_cluster.bundle.ship import ship, ship_files
from pytest_gpu_cluster.contract.codec import Event
from pytest_gpu_cluster.contract.errors import (
    HarnessError,
    InfrastructureError,
    RequestError,
    StoreError,
    TeardownError,
)
from pytest_gpu_cluster.contract.journal import JournalReader
from pytest_gpu_cluster.contract.model import RunRequest, Settings, Tree
from pytest_gpu_cluster.contract.store import Store, prune
from pytest_gpu_cluster.contract.waits import WAITS
from pytest_gpu_cluster.providers import ClusterSpec, LaunchPlan, Provider, provider

SILENCE_S = (
    2.0  # this long without an event, the provider is asked whether the cluster is still there
)
CLUSTER_MARGIN_S = (
    600.0  # a cluster outlives the deadline of its first session by this and the idle time
)


@dataclass
class Session:
    """A run: what was asked, what it holds while it goes on, and what is to be said of it at the end."""

    request: RunRequest
    pytest_version: str
    facts: dict[
        str, Any
    ]  # of the local pytest that the cluster needs: colour, columns, cache, arguments
    id: str = field(
        default_factory=lambda: (
            f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
        )
    )
    lent: clusters.Lent | None = None
    interrupted: bool = False
    closing: bool = False  # a further Ctrl-C hurries it
    closed: bool = False
    over: bool = False  # the session's last event has arrived
    fit: bool = False  # and says that the cluster can be lent again
    failure: HarnessError | None = None
    asked: dict[str, Any] = field(
        default_factory=dict
    )  # the request as the record holds it; no value of a variable, no secret
    recorded: bool = False

    def __post_init__(self) -> None:
        self.settings: Settings = self.request.settings
        self.provider: Provider = provider(
            self.settings.provider
        )  # before the store, which a refused request must not create
        self.store = Store.open(self.settings.store, base=self.request.root)
        self.asked = self.described()

    @property
    def record(self) -> str:
        """Where the record of this session is."""
        return f"{self.store.url.rstrip('/')}/sessions/{self.id}"

    def events(self) -> Generator[Event, None, None]:
        """THE RUN: ship, rent, ask, follow, give back. Raises HarnessError; a failure after launch is an event first."""
        began = time.monotonic()
        try:
            self.store.check_writable()
        except StoreError as problem:
            raise RequestError(problem.what, remedy=problem.remedy) from problem
        self.put_request()
        with clusters.heartbeat(
            self.store, self.id
        ):  # who finds the request finds its client alive
            installed = environment.describe(self.settings.local_python)
            environment.check(installed, pytest_version=self.pytest_version)
            yield self.phase("environment", f"{installed.python} ({installed.digest})", began)

            began = time.monotonic()
            tree, code = self.ship()
            yield self.phase("tree", f"{tree.files} files, {tree.sent_blobs} sent", began)

            began = time.monotonic()
            spec = self.cluster_spec(installed)
            self.asked |= {"tree": tree.digest, "code": code.digest, "shape": spec.shape()}
            self.put_request()
            with self.cluster(spec):
                assert self.lent is not None
                yield self.phase("cluster", f"{self.lent.ref.id}, {self.lent.note}", began)
                yield from self.follow()

    def plan(self) -> LaunchPlan:
        """What would be launched; spends nothing. Raises RequestError."""
        installed = environment.describe(self.settings.local_python)
        environment.check(installed, pytest_version=self.pytest_version)
        return self.provider.plan(self.cluster_spec(installed))

    def farewell(self, *, simulated: bool) -> list[str]:
        """The last lines: where the record is, on what it ran, until when the cluster stays and how to end it."""
        ran = "; on SIMULATED GPUs" if simulated else ""
        lines = [f"session {self.id}  {self.record}{ran}"]
        if (
            self.lent is not None
            and self.fit
            and not self.interrupted
            and self.settings.idle_minutes > 0
        ):
            until = time.strftime(
                "%H:%M:%S", time.localtime(time.time() + self.settings.idle_minutes * 60)
            )
            lines.append(
                f"cluster {self.lent.ref.id} stays warm until {until}; to end it now: gpu-cluster down {self.lent.ref.id}"
            )
        return lines

    # -- stages --------------------------------------------------------------------------------------------------------

    def ship(self) -> tuple[Tree, Tree]:
        """The working tree, and this package's own code for the cluster."""
        s = self.settings
        tree = ship(
            self.store,
            self.request.root,
            include=s.include,
            exclude=s.exclude,
            allow_files=s.allow_files,
        )
        return tree, ship_files(self.store, environment.own_code())

    def put_request(self) -> None:
        """From here on the store knows of the session, and somebody else can say how it ended."""
        self.store.put(f"sessions/{self.id}/request.json", json.dumps(self.asked).encode())
        self.recorded = True

    def cluster_spec(self, installed: environment.Environment) -> ClusterSpec:
        s = self.settings
        return ClusterSpec(
            token=clusters.new_id(),
            owner=clusters.owner(),
            python=installed.python,
            environment=installed.digest,
            nodes=s.nodes,
            gpus_per_node=s.gpus_per_node,
            simulated_gpus=s.simulated_gpus,
            require_gpu=s.require_gpu,
            idle_s=s.idle_minutes * 60,
            deadline_s=s.max_minutes * 60 + s.idle_minutes * 60 + CLUSTER_MARGIN_S,
        )

    def described(self) -> dict[str, Any]:
        """What is known of the request before anything is done."""
        s = self.settings
        limits = {
            "max_s": s.max_minutes * 60,
            "idle_s": s.idle_minutes * 60,
            "test_timeout_s": s.test_timeout_s,
            "infra_retries": s.infra_retries,
            "default_gpus": s.default_gpus,
        }
        request = self.request
        return {
            "v": 1,
            "session": self.id,
            "asked_at": time.time(),
            "provider": s.provider,
            "root_name": tree_name(request.root, request.invocation_dir),
            "origin": str(request.root),
            "cwd": os.path.relpath(request.invocation_dir, request.root),
            "args": list(request.pytest_args),
            "passed": sorted(request.passed_env),
            "limits": limits,
            **self.facts,
        }

    @contextlib.contextmanager
    def cluster(self, spec: ClusterSpec) -> Iterator[None]:
        """Hold a cluster; put it out unless it may stay warm. No way out of the block leaves it unattended."""
        try:
            self.lent = clusters.acquire(
                self.store, self.provider, spec, self.id, self.request.passed_env
            )
        except BaseException:
            for ref in self.provider.owned():
                if ref.id == spec.token:
                    self.lent = clusters.Lent(ref=ref, warm=False, note="")
            self.close()
            if self.lent is None:
                with contextlib.suppress(
                    HarnessError
                ):  # nothing was rented: nothing is to be looked for
                    self.store.delete(list(self.store.list(f"clusters/{spec.token}/")))
            raise
        try:
            yield
        except KeyboardInterrupt:  # the user's: a test's own arrives as an event
            self.interrupted = True
            raise
        finally:
            if not self.over and not self.interrupted:
                self.stop()
            if self.interrupted or not self.fit or self.settings.idle_minutes <= 0:
                self.close()

    def follow(self) -> Iterator[Event]:
        """The journal, to the agent's last event; when it falls silent, the provider is asked why."""
        reader = JournalReader(self.store, f"sessions/{self.id}/events")
        heard = read = time.monotonic()
        while not self.over:
            try:
                events, read = reader.poll(), time.monotonic()
            except (
                StoreError
            ):  # away is not dead: nothing is lost, and the next poll goes on from here
                if time.monotonic() - read > WAITS.store_patience_s:
                    raise
                events = []
            for event in events:
                heard = time.monotonic()
                self.hear(event)
                yield Event.of(event)
            if not events:
                reader.wait()
            if time.monotonic() - heard > SILENCE_S:
                heard = time.monotonic()
                self.ask_why(reader)

    def ask_why(self, reader: JournalReader) -> None:
        """Silence: a long test, or a cluster that is gone. Raises InfrastructureError when it is gone."""
        assert self.lent is not None
        state = self.provider.state(self.lent.ref)
        if state.state == "gone" and not reader.poll():
            raise InfrastructureError(
                f"cluster {self.lent.ref.id} is gone: {state.why}",
                remedy="run again; what had finished is kept in the record",
            )

    def stop(self) -> None:
        """Ask the agent to end the session, and wait a while for its last event, so that the cluster can be lent again."""
        with contextlib.suppress(HarnessError):
            self.store.put(
                f"sessions/{self.id}/control/stop",
                json.dumps({"why": "the client needs no more results"}).encode(),
            )
            reader = JournalReader(self.store, f"sessions/{self.id}/events")
            deadline = time.monotonic() + WAITS.stop_grace_s
            while not self.over and time.monotonic() < deadline:
                for event in reader.poll():
                    self.hear(event)
                reader.wait()

    def hear(self, event: Mapping[str, Any]) -> None:
        """The last event says whether the cluster is whole: one that has lost something must not serve the next session."""
        if event["kind"] == "session_finished":
            self.over, self.fit = True, bool(event.get("fit"))

    def close(self, *, now: bool = False) -> None:
        """Put the cluster out, once; `now` does not wait for its own orderly end. A cluster that would not go is the session's failure."""
        if self.lent is None or self.closed:
            return
        self.closing = True
        try:
            self.provider.close(self.lent.ref, now=now)
        except TeardownError as problem:
            self.failure = problem
        finally:
            self.closing = False
        self.closed = True
        with contextlib.suppress(HarnessError):
            self.store.delete(list(self.store.list(f"clusters/{self.lent.ref.id}/")))

    def finish(self, **end: Any) -> None:
        """Make the record final, once; forget the oldest sessions of a local store."""
        result = {"v": 1, "closed_by": "client", **end, "nonce": secrets.token_hex(8)}
        self.store.create(f"sessions/{self.id}/result.json", json.dumps(result).encode())
        if self.store.is_local:
            prune(self.store, keep_sessions=self.settings.keep_sessions)

    def phase(self, name: str, detail: str, began: float) -> Event:
        return Event.of(
            {
                "kind": "phase",
                "writer": "client",
                "name": name,
                "detail": detail,
                "seconds": time.monotonic() - began,
            }
        )


def tree_name(root: Path, invocation_dir: Path) -> str:
    """Where a tree lies on a node, so that its place relative to the invocation directory is the same as here.

    >>> tree_name(Path("/a/project"), Path("/a/project/tests")), tree_name(Path("/a/b/c"), Path("/a"))
    ('project', 'a/b/c')
    """
    common = Path(os.path.commonpath([root, invocation_dir]))
    return str(Path(common.name, root.relative_to(common)))
