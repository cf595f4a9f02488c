"""A cluster for one session: a warm one that agrees, or a new one; a heartbeat while it is ours; given back or closed."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_gpu_cluster.contract.errors import HarnessError, InfrastructureError
from pytest_gpu_cluster.contract.journal import JournalReader
from pytest_gpu_cluster.contract.model import CLIENT_LOST
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.waits import WAITS
from pytest_gpu_cluster.environment import own_code
from pytest_gpu_cluster.providers import BootScript, ClusterRef, ClusterSpec, Provider

PROTOCOL = 2  # of the keeper: a warm cluster must speak it
RECENT = 50  # sessions that a sweep looks at


@dataclass(frozen=True, kw_only=True)
class Lent:
    """A cluster that has taken the session, or is starting with the session in its inbox."""

    ref: ClusterRef
    warm: bool
    note: str


def owner() -> str:
    """Who may reuse a cluster: this user on this machine since its last start."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{getpass.getuser()}@{socket.gethostname()}/{boot.read_text().strip()[:8] if boot.exists() else ''}"


def new_id() -> str:
    return f"c{secrets.token_hex(3)}"


def records(store: Store) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each cluster's record and its last announced state, as the store has them."""
    for key in store.list("clusters/"):
        if key.endswith("/cluster.json"):
            raw, state = store.get(key), store.get(key.replace("/cluster.json", "/state.json"))
            if raw is not None:
                yield (
                    json.loads(raw),
                    json.loads(state) if state else {"state": "starting", "session": None},
                )


def acquire(
    store: Store, provider: Provider, spec: ClusterSpec, session: str, values: Mapping[str, str]
) -> Lent:
    """Ask the warm clusters of this shape, else launch one. Raises InfrastructureError, RequestError."""
    busy = ""
    for record, state in records(store):
        if (
            record["provider"] != provider.name
            or record["shape"] != spec.shape()
            or record["protocol"] != PROTOCOL
        ):
            continue
        ref = ClusterRef(provider=provider.name, id=record["id"])
        if provider.state(ref).state == "gone":
            store.delete(list(store.list(f"clusters/{ref.id}/")))
        elif soon_idle(store, state) and ask(store, provider, ref, session, values):
            return Lent(ref=ref, warm=True, note="warm")
        else:
            busy = (
                f"cluster {ref.id} serves session {state['session']}; "
                if state["session"]
                else f"cluster {ref.id} is {state['state']}; "
            )
    ref = launch(store, provider, spec, session, values)
    return Lent(ref=ref, warm=False, note=f"{busy}starting one of our own")


def soon_idle(store: Store, state: Mapping[str, Any]) -> bool:
    """Idle, or still putting away a session whose record is final already."""
    return state["state"] == "idle" or (
        state["session"] is not None
        and store.get(f"sessions/{state['session']}/result.json") is not None
    )


def ask(
    store: Store, provider: Provider, ref: ClusterRef, session: str, values: Mapping[str, str]
) -> bool:
    """Whether a warm cluster has taken the session. The keeper decides; after a wait the question is withdrawn, once."""
    with contextlib.suppress(InfrastructureError):
        provider.hand_over(ref, session, values)
        store.put(f"clusters/{ref.id}/inbox/{session}", session.encode())
        decision = f"clusters/{ref.id}/decision/{session}"
        deadline = time.monotonic() + WAITS.decision_s
        while time.monotonic() < deadline:
            if (said := store.get(decision)) is not None:
                return taken(said)
            time.sleep(0.01 if store.is_local else 0.3)
        withdrawn = json.dumps({"taken": False, "nonce": secrets.token_hex(8)}).encode()
        return not store.create(decision, withdrawn) and taken(store.get(decision))
    return False


def taken(decision: bytes | None) -> bool:
    return decision is not None and bool(json.loads(decision)["taken"])


def launch(
    store: Store, provider: Provider, spec: ClusterSpec, session: str, values: Mapping[str, str]
) -> ClusterRef:
    """Record first, then rent: whatever happens, the next reader knows what to look for."""
    plan = provider.plan(spec)
    record = {
        "v": 1,
        "id": spec.token,
        "provider": provider.name,
        "protocol": PROTOCOL,
        "shape": spec.shape(),
        "deadline_s": spec.deadline_s,
    }
    store.put(f"clusters/{spec.token}/cluster.json", json.dumps(record).encode())
    store.put(f"clusters/{spec.token}/inbox/{session}", session.encode())
    boot = {
        "cluster": spec.token,
        "store": store.url,
        "ray_token": secrets.token_hex(24),
        "nodes": spec.nodes,
        "gpus_per_node": spec.gpus_per_node,
        "simulated_gpus": spec.simulated_gpus,
        "idle_s": spec.idle_s,
        "deadline_s": spec.deadline_s,
        "waits": WAITS.to_json(),
    }
    ref = provider.launch(plan, BootScript(code=own_code(), spec=boot))
    provider.hand_over(ref, session, values)
    return ref


@contextlib.contextmanager
def heartbeat(store: Store, session: str) -> Iterator[None]:
    """Say that this client lives, until the block ends. The value is a counter: no clock crosses machines."""
    over = threading.Event()

    def beat() -> None:
        count = 0
        while True:
            count += 1
            with contextlib.suppress(HarnessError):
                store.put(
                    f"sessions/{session}/control/heartbeat", f"{os.getpid()} {count}".encode()
                )
            if over.wait(WAITS.heartbeat_s):
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=2)


def sweep(store: Store | None, provider: Provider) -> list[str]:
    """End what nobody holds: clusters whose keeper is gone, what a double kill left of them, records that nobody is left to close.

    Returns what was done, a line each.
    """
    done = []
    for ref in provider.owned():
        if provider.state(ref).state == "gone":
            provider.close(ref)
            done.append(
                f"cluster {ref.id}: its keeper was gone; what was left of it is ended and removed"
            )
    for record, _ in records(store) if store is not None else ():
        ref = ClusterRef(provider=record["provider"], id=record["id"])
        if (
            store is not None
            and record["provider"] == provider.name
            and provider.state(ref).state == "gone"
        ):
            store.delete(list(store.list(f"clusters/{ref.id}/")))
            done.append(f"cluster {ref.id}: struck off the store's list")
    for session in (
        silent(store, sorted(store.names("sessions"))[-RECENT:]) if store is not None else ()
    ):
        if (
            store is not None
            and not held(store, session)
            and _close(store, session, closed_by="sweep")
        ):
            done.append(f"session {session}: its record is final; it was lost with its client")
    return done


def silent(store: Store, sessions: Iterable[str]) -> list[str]:
    """Those of `sessions` whose record is open though nobody is there to make it final; their heartbeats are watched for a moment."""
    beats = {
        s: store.get(f"sessions/{s}/control/heartbeat")
        for s in sessions
        if store.get(f"sessions/{s}/result.json") is None
    }
    if beats:
        time.sleep(WAITS.silent_s)
    still = [
        session
        for session, beat in beats.items()
        if store.get(f"sessions/{session}/control/heartbeat") == beat
    ]
    return [session for session in still if store.get(f"sessions/{session}/result.json") is None]


def settle(store: Store, session: str) -> bool:
    """Make the record of a session final whose client is gone: its agent is asked to stop and waited for. False while the client lives."""
    if store.get(f"sessions/{session}/result.json") is not None:
        return True
    if not silent(store, [session]):
        return store.get(f"sessions/{session}/result.json") is not None
    store.put(f"sessions/{session}/control/stop", json.dumps({"why": CLIENT_LOST}).encode())
    deadline = time.monotonic() + WAITS.settle_s
    while held(store, session) and not ended(store, session) and time.monotonic() < deadline:
        time.sleep(0.2 if store.is_local else 1.0)
    _close(store, session, closed_by="report")
    return True


def held(store: Store, session: str) -> bool:
    """Whether a cluster has the session, or will find it when it has started."""
    return any(
        state["session"] == session
        or (
            state["state"] == "starting"
            and store.get(f"clusters/{record['id']}/inbox/{session}") is not None
        )
        for record, state in records(store)
    )


def ended(store: Store, session: str) -> bool:
    return any(
        event["kind"] == "session_finished"
        for event in JournalReader(store, f"sessions/{session}/events").poll()
    )


def _close(store: Store, session: str, *, closed_by: str) -> bool:
    """How it ended, its events say; if they do not, it was lost."""
    said = {
        "v": 1,
        "closed_by": closed_by,
        "exitstatus": None,
        "failure_class": None if ended(store, session) else "infrastructure",
        "message": f"{CLIENT_LOST}; what had finished is in the journal",
        "nonce": secrets.token_hex(8),
    }
    return store.create(f"sessions/{session}/result.json", json.dumps(said).encode())
