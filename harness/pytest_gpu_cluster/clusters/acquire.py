"""A cluster for one session: a warm one that agrees, or a new one."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

from pytest_gpu_cluster.clusters.held_cluster import HeldCluster, hand_over, state_of
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
    UnreadableRecordError,
)
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.sealing import check_sealing
from pytest_gpu_cluster.contract.specs import BootSpec
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.waits import WAITS
from pytest_gpu_cluster.environment import own_code
from pytest_gpu_cluster.providers import BootScript, ClusterRef, LaunchPlan, Provider

PROTOCOL = 6  # of the keeper: a warm cluster must speak it
FRESH_S = 2.0  # for which the store's list of clusters is taken as it was read

Listed: TypeAlias = list[tuple[ClusterDescription, Announcement]]


def new_id() -> str:
    return f"c{secrets.token_hex(3)}"


def listed_clusters(store: Store) -> Background[Listed]:
    """Begin to read which clusters there are; `acquire` comes to it later."""
    return Background(lambda: [*clusters(store)])


def acquire(
    store: Store,
    provider: Provider,
    plan: LaunchPlan,
    session: str,
    values: Mapping[str, str],
    listed: Background[Listed],
) -> HeldCluster:
    """Return a warm cluster of this shape that has taken the session, else one to be launched.

    Raises InfrastructureError, RequestError.
    """
    busy, known = "", listed.result()
    if listed.age_s > FRESH_S:
        known = [*clusters(store)]
    for description, state in interchangeable(known, provider, plan):
        ref = ClusterRef(provider=provider.name, id=description.id, where=description.where)
        record = ClusterRecord(store, ref.id)
        if state_of(provider, ref).state == "gone":
            if plan.patience.sure_s == 0:
                strike_off(record)
        elif soon_idle(store, state) and offer_session(
            plan, record, session, values, first=state.inbox
        ):
            return HeldCluster(store, provider, plan, "warm", warm=ref.id)
        else:
            serves = f"serves session {state.session}" if state.session else f"is {state.state}"
            busy = f"cluster {ref.id} {serves}; "
    return HeldCluster(store, provider, plan, f"{busy}starting a new one")


def strike_off(record: ClusterRecord) -> None:
    """Delete the record of a cluster that is gone for certain, if it has ever been there.

    One that nobody has heard of may still be about to start; the sweep knows when it is not.
    """
    if record.heartbeat() is not None:
        record.delete()


def interchangeable(
    listed: Listed, provider: Provider, plan: LaunchPlan
) -> Iterator[tuple[ClusterDescription, Announcement]]:
    """Return the clusters that may stand in for a new one."""
    for description, state in listed:
        ours = (description.provider, description.protocol) == (provider.name, PROTOCOL)
        if ours and (description.shape, description.where) == (plan.shape, dict(plan.where)):
            yield description, state


def soon_idle(store: Store, state: Announcement) -> bool:
    """Return True for a cluster that is idle, or still puts away a finished session."""
    if state.session is not None:
        with contextlib.suppress(UnreadableRecordError):
            return SessionRecord(store, state.session).is_closed()
        return False
    return state.state is ClusterPhase.IDLE


def offer_session(
    plan: LaunchPlan,
    record: ClusterRecord,
    session: str,
    values: Mapping[str, str],
    *,
    first: int,
) -> bool:
    """Ask a warm cluster to serve the session, and return its keeper's decision.

    After some seconds the offer is withdrawn, once: whoever creates the decision first has decided.
    """
    with contextlib.suppress(InfrastructureError):
        hand_over(plan, record, session, values)
        record.offer(session, first=first)
        patience_s = max(WAITS.decision_s, plan.patience.boot_s / 10)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if (decision := record.decision(session)) is not None:
                return decision
            time.sleep(0.01 if record.store.is_local else 0.3)
        return not record.decide(session, taken=False) and bool(record.decision(session))
    return False


def launch(
    cluster: HeldCluster,
    *,
    code: str,
    session: str,
    values: Mapping[str, str],
    tell: Callable[[str], None],
) -> None:
    """Put the record first, then rent: whatever happens, the next reader knows what to look for.

    `code` is the digest of the keepers' code. The store is tried before: a warm cluster has shown
    that it decides between two clients. Raises HarnessError.
    """
    store, plan = cluster.store, cluster.plan
    check_store(store)
    plan.examine()
    if plan.directory is None:
        check_sealing()
    record = ClusterRecord(store, plan.spec.token)
    record.put_description(
        ClusterDescription(
            id=plan.spec.token,
            provider=cluster.ref.provider,
            protocol=PROTOCOL,
            shape=plan.shape,
            where=plan.where,
            session=session,
            deadline_s=plan.spec.deadline_s,
        )
    )
    record.offer(session)
    boot = BootScript(code=own_code(), spec=boot_spec(store, plan, code))
    cluster.launch(boot, session, values, tell)


def check_store(store: Store) -> None:
    """Refuse a store that a cluster could not work with. Raises RequestError."""
    try:
        store.check_writable()
    except StoreError as problem:
        raise RequestError(problem.what, remedy=problem.remedy) from problem


def boot_spec(store: Store, plan: LaunchPlan, code: str) -> BootSpec:
    """Return what every keeper of a new cluster is told."""
    spec = plan.spec
    return BootSpec(
        cluster=spec.token,
        store=store.url,
        code=code,
        nodes=spec.nodes,
        gpus_per_node=spec.gpus_per_node,
        simulated_gpus=plan.simulated_gpus,
        require_gpu=plan.require_gpu,
        idle_s=spec.idle_s,
        deadline_s=spec.deadline_s,
        waits=replace(
            WAITS,
            grace_s=max(WAITS.grace_s, plan.patience.grace_s),
            join_s=max(WAITS.join_s, 2 * plan.patience.boot_s),
        ),
        sealed=plan.directory is None,
    )
