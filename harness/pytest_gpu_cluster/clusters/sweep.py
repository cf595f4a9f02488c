"""The sweep: it ends the clusters, and closes the records, that nobody holds any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pytest_gpu_cluster.clusters.held_cluster import state_of
from pytest_gpu_cluster.contract.cluster_record import (
    ClusterDescription,
    ClusterRecord,
    clusters,
)
from pytest_gpu_cluster.contract.errors import HarnessError, StoreError
from pytest_gpu_cluster.contract.failures import Closer
from pytest_gpu_cluster.contract.record import SessionRecord, session_ids
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.liveness import close_for_lost_client, is_served, silent
from pytest_gpu_cluster.providers import ClusterRef, Owned, Provider

RECENT = 50  # sessions that a sweep looks at


def sweep(store: Store | None, provider: Provider) -> list[str]:
    """End the clusters and close the records that neither a client nor a keeper holds.

    Those are clusters whose keeper is gone or silent, clusters past their deadline, what a double
    kill left of them, and records of lost clients. Return one line for each thing that was ended,
    or that would not end.
    """
    lines = [_end_left(provider, owned) for owned in provider.owned()]
    if store is None:
        return [*filter(None, lines)]
    described = [each for each in clusters(store) if each[0].provider == provider.name]
    sessions = [SessionRecord(store, name) for name in session_ids(store)[-RECENT:]]
    lost = silent(sessions, [ClusterRecord(store, cluster.id) for cluster, _ in described])
    for cluster, state in described:
        is_wanted = _is_wanted(store, state.session or cluster.session, lost)
        lines.append(_end_orphan(store, provider, cluster, is_wanted or cluster.id not in lost))
    lines += _close_records(record for record in sessions if record.session in lost)
    return [*filter(None, lines)]


def _is_wanted(store: Store, session: str, lost: set[str]) -> bool:
    """Return True while the client of a session waits for its cluster."""
    return bool(session) and session not in lost and not SessionRecord(store, session).is_closed()


def _end_left(provider: Provider, owned: Owned) -> str:
    """End what is over by the provider's own account."""
    ref = owned.ref
    if owned.expires_in_s is not None and owned.expires_in_s < 0:
        return _closed(provider, ref, "its deadline has passed; it is ended and removed")
    if state_of(provider, ref).state == "gone":
        return _closed(
            provider, ref, "its keeper was gone; what was left of it is ended and removed"
        )
    return ""


def _end_orphan(store: Store, provider: Provider, cluster: ClusterDescription, held: bool) -> str:
    """End a recorded cluster that nobody holds, and strike it off the list once it is gone."""
    ref = ClusterRef(provider=provider.name, id=cluster.id, where=cluster.where)
    record, line = ClusterRecord(store, cluster.id), ""
    state = state_of(provider, ref).state
    if state in ("starting", "running") and not held:
        line = _closed(provider, ref, "its keeper was silent; it is ended and removed")
        state = state_of(provider, ref).state
    if state == "gone" and not held:
        record.delete()
        line = line or f"cluster {ref.id}: struck off the store's list"
    return line


def _closed(provider: Provider, ref: ClusterRef, why: str) -> str:
    """Close a cluster; return the line that says so, or that it would not go."""
    try:
        provider.close(ref)
    except HarnessError as problem:  # the others are ended all the same
        return f"cluster {ref.id}: {why.partition(';')[0]}; it is NOT ended: {problem.what}"
    return f"cluster {ref.id}: {why}"


def _close_records(lost: Iterable[SessionRecord]) -> Iterator[str]:
    for record in lost:
        try:
            if is_served(record) or not close_for_lost_client(record, by=Closer.SWEEP):
                continue
            text = "its client was lost; the record is now closed"
        except StoreError as problem:  # the others are closed all the same
            text = f"its client was lost; the record is NOT closed: {problem.what}"
        yield f"session {record.session}: {text}"
