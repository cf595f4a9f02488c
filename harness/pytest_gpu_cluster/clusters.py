"""A cluster for one session: a warm one that agrees, or a new one.

The sweep ends what nobody holds.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import TypeAlias

from pytest_gpu_cluster.contract.background import Background
from pytest_gpu_cluster.contract.cluster_record import (
    Announcement,
    ClusterDescription,
    ClusterPhase,
    ClusterRecord,
    clusters,
)
from pytest_gpu_cluster.contract.errors import (
    InfrastructureError,
    RequestError,
    StoreError,
    TeardownError,
    UnreadableRecordError,
)
from pytest_gpu_cluster.contract.failures import Closer
from pytest_gpu_cluster.contract.record import SessionRecord, session_ids
from pytest_gpu_cluster.contract.specs import BootSpec
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.waits import WAITS
from pytest_gpu_cluster.environment import own_code
from pytest_gpu_cluster.liveness import close_for_lost_client, is_served, silent_sessions
from pytest_gpu_cluster.providers import (
    BootScript,
    ClusterRef,
    ClusterSpec,
    ClusterState,
    Provider,
)

PROTOCOL = 5  # of the keeper: a warm cluster must speak it
RECENT = 50  # sessions that a sweep looks at
FRESH_S = 2.0  # for which what the store's list says is taken as it was read

Listed: TypeAlias = list[tuple[ClusterDescription, Announcement]]


class Hold(Enum):
    """The stages of a held cluster."""

    HELD = "held"
    CLOSING = "closing"
    CLOSED = "closed"


class HeldCluster:
    """A cluster that serves the session, or is starting with the session in its inbox."""

    def __init__(self, store: Store, provider: Provider, ref: ClusterRef, note: str) -> None:
        self.ref, self.note = ref, note
        self.up = False  # it has served a session, or has joined its nodes for this one
        self.stage = Hold.HELD
        self._store, self._provider = store, provider
        self._seen: ClusterState | None = None

    def look(self) -> None:
        """Ask the provider about the cluster."""
        self._seen = self._provider.state(self.ref)

    def raise_if_gone(self) -> None:
        """Raise InfrastructureError where the cluster was gone when it was looked at."""
        if self._seen is not None and self._seen.state == "gone":
            raise InfrastructureError(
                f"cluster {self.ref.id} is gone: {self._seen.reason}",
                remedy="run again; what had finished is kept in the record",
            )

    def close(self, *, now: bool = False) -> TeardownError | None:
        """End the cluster, once; `now` does not wait for its own orderly end.

        Return why it would not go.
        """
        if self.stage is not Hold.HELD:
            return None
        failure: TeardownError | None = None
        self.stage = Hold.CLOSING
        try:
            self._provider.close(self.ref, now=now)
        except TeardownError as problem:
            failure = problem
        except BaseException:
            self.stage = Hold.HELD
            raise
        self.stage = Hold.CLOSED
        with contextlib.suppress(InfrastructureError):
            ClusterRecord(self._store, self.ref.id).delete()
        return failure


def new_id() -> str:
    return f"c{secrets.token_hex(3)}"


def listing(store: Store) -> Background[Listed]:
    """Begin to read which clusters there are; `acquire` comes to it later."""
    return Background(lambda: [*clusters(store)])


def acquire(
    store: Store,
    provider: Provider,
    spec: ClusterSpec,
    session: str,
    passed_env: Mapping[str, str],
    listed: Background[Listed],
) -> HeldCluster:
    """Ask the warm clusters of this shape, else launch one.

    Raises InfrastructureError, RequestError.
    """
    busy, known = "", listed.result()
    if listed.age_s > FRESH_S:
        known = [*clusters(store)]
    for description, state in interchangeable(known, provider, spec):
        ref = ClusterRef(provider=provider.name, id=description.id)
        if provider.state(ref).state == "gone":
            ClusterRecord(store, ref.id).delete()
        elif soon_idle(store, state) and offer_session(
            store, provider, ref, session, passed_env, first=state.inbox
        ):
            warm = HeldCluster(store, provider, ref, "warm")
            warm.up = True
            return warm
        else:
            serves = f"serves session {state.session}" if state.session else f"is {state.state}"
            busy = f"cluster {ref.id} {serves}; "
    ref = launch(store, provider, spec, session, passed_env)
    return HeldCluster(store, provider, ref, f"{busy}starting a new one")


def find_launched(store: Store, provider: Provider, spec: ClusterSpec) -> HeldCluster | None:
    """Return what an interrupted `acquire` has launched.

    None where that is nothing; then it has no record either.
    """
    for ref in provider.owned():
        if ref.id == spec.token:
            return HeldCluster(store, provider, ref, "")
    with contextlib.suppress(InfrastructureError):
        ClusterRecord(store, spec.token).delete()
    return None


def interchangeable(
    listed: Listed, provider: Provider, spec: ClusterSpec
) -> Iterator[tuple[ClusterDescription, Announcement]]:
    """Return the clusters that may stand in for a new one."""
    for description, state in listed:
        ours = (description.provider, description.protocol) == (provider.name, PROTOCOL)
        if ours and description.shape == spec.shape():
            yield description, state


def soon_idle(store: Store, state: Announcement) -> bool:
    """Return True for a cluster that is idle, or still puts away a finished session."""
    if state.session is not None:
        with contextlib.suppress(UnreadableRecordError):
            return SessionRecord(store, state.session).is_closed()
        return False
    return state.state is ClusterPhase.IDLE


def offer_session(
    store: Store,
    provider: Provider,
    ref: ClusterRef,
    session: str,
    passed_env: Mapping[str, str],
    *,
    first: int,
) -> bool:
    """Ask a warm cluster to serve the session, and return its keeper's decision.

    After `WAITS.decision_s` seconds the offer is withdrawn, once: whoever creates the decision
    first has decided.
    """
    with contextlib.suppress(InfrastructureError):
        record = ClusterRecord(store, ref.id)
        provider.hand_over(ref, session, passed_env)
        record.offer(session, first=first)
        deadline = time.monotonic() + WAITS.decision_s
        while time.monotonic() < deadline:
            if (decision := record.decision(session)) is not None:
                return decision
            time.sleep(0.01 if store.is_local else 0.3)
        return not record.decide(session, taken=False) and bool(record.decision(session))
    return False


def launch(
    store: Store, provider: Provider, spec: ClusterSpec, session: str, passed_env: Mapping[str, str]
) -> ClusterRef:
    """Put the record first, then rent: whatever happens, the next reader knows what to look for.

    The store is tried before: a warm cluster has shown that it decides between two clients.
    """
    check_store(store)
    plan = provider.plan(spec)
    record = ClusterRecord(store, spec.token)
    record.put_description(
        ClusterDescription(
            id=spec.token,
            provider=provider.name,
            protocol=PROTOCOL,
            shape=spec.shape(),
            deadline_s=spec.deadline_s,
        )
    )
    record.offer(session)
    ref = provider.launch(plan, BootScript(code=own_code(), spec=boot_spec(store, spec)))
    provider.hand_over(ref, session, passed_env)
    return ref


def check_store(store: Store) -> None:
    """Refuse a store that a cluster could not work with. Raises RequestError."""
    try:
        store.check_writable()
    except StoreError as problem:
        raise RequestError(problem.what, remedy=problem.remedy) from problem


def boot_spec(store: Store, spec: ClusterSpec) -> BootSpec:
    """Return what every keeper of a new cluster is told; with secrets of its own."""
    return BootSpec(
        cluster=spec.token,
        store=store.url,
        code=spec.code,
        ray_token=secrets.token_hex(24),
        keeper_secret=secrets.token_hex(32),
        nodes=spec.nodes,
        gpus_per_node=spec.gpus_per_node,
        simulated_gpus=spec.simulated_gpus,
        idle_s=spec.idle_s,
        deadline_s=spec.deadline_s,
        waits=WAITS,
    )


def sweep(store: Store | None, provider: Provider) -> list[str]:
    """End the clusters and close the records that neither a client nor a keeper holds.

    Those are clusters whose keeper is gone, what a double kill left of them, and records of lost
    clients. Return one line for each thing that was ended.
    """
    lines = []
    for ref in provider.owned():
        if provider.state(ref).state == "gone":
            provider.close(ref)
            lines.append(
                f"cluster {ref.id}: its keeper was gone; what was left of it is ended and removed"
            )
    return lines if store is None else lines + _sweep_records(store, provider)


def _sweep_records(store: Store, provider: Provider) -> list[str]:
    lines = []
    for description, _ in clusters(store):
        ref = ClusterRef(provider=description.provider, id=description.id)
        if description.provider == provider.name and provider.state(ref).state == "gone":
            ClusterRecord(store, ref.id).delete()
            lines.append(f"cluster {ref.id}: struck off the store's list")
    for record in silent_sessions(store, session_ids(store)[-RECENT:]):
        try:
            if is_served(record) or not close_for_lost_client(record, by=Closer.SWEEP):
                continue
            text = "its client was lost; the record is now closed"
        except StoreError as problem:  # the others are closed all the same
            text = f"its client was lost; the record is NOT closed: {problem.what}"
        lines.append(f"session {record.session}: {text}")
    return lines
