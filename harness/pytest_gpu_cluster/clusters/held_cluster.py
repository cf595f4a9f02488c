"""The cluster that a session holds, from its plan to its end.

Three voices tell of it: its provider, the heartbeat of its keeper in the store, and the events of
the session. The client has limits of its own for each, because any of them may be wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from enum import Enum

from pytest_gpu_cluster.contract.cluster_directory import is_own
from pytest_gpu_cluster.contract.cluster_record import ClusterRecord
from pytest_gpu_cluster.contract.errors import (
    HarnessError,
    InfrastructureError,
    StoreError,
    TeardownError,
    error_of,
)
from pytest_gpu_cluster.contract.ids import check_id
from pytest_gpu_cluster.contract.sealing import seal
from pytest_gpu_cluster.contract.silence import HeartbeatMonitor, Stopwatch
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.waits import WAITS
from pytest_gpu_cluster.providers import (
    BootScript,
    ClusterRef,
    ClusterState,
    LaunchPlan,
    Provider,
)

KEY_POLL_S = 0.5  # between two looks for the key of a cluster that starts


class Hold(Enum):
    """The stages of a held cluster."""

    PLANNED = "planned"  # nothing is rented
    HELD = "held"  # or about to be launched
    CLOSING = "closing"
    CLOSED = "closed"


class HeldCluster:
    """A cluster that serves the session, or is starting with the session in its inbox."""

    def __init__(
        self, store: Store, provider: Provider, plan: LaunchPlan, note: str, *, warm: str = ""
    ) -> None:
        self.ref = ClusterRef(
            provider=provider.name, id=warm or plan.spec.token, where=dict(plan.where)
        )
        self.note = note
        self.up = bool(warm)  # it has served a session, or has joined its nodes for this one
        self.stage = Hold.HELD if warm else Hold.PLANNED
        self.lost: HarnessError | None = None
        self.store, self.plan, self._provider = store, plan, provider
        self._record = ClusterRecord(store, self.ref.id)
        self._undelivered: tuple[str, Mapping[str, str]] | None = None  # values of a session
        self._key_looked = Stopwatch()
        self._seen = ClusterState(state="unknown", reason="not asked yet")
        self._asked = Stopwatch()  # the provider
        self._gone = Stopwatch()
        self._silent = Stopwatch()  # no beat has ever come
        self._listened = Stopwatch()
        self._heartbeat = HeartbeatMonitor()
        self._spoken = bool(warm)

    def launch(
        self,
        boot: BootScript,
        session: str,
        values: Mapping[str, str],
        tell: Callable[[str], None],
    ) -> None:
        """Launch the planned cluster. Raises HarnessError; what is there then is to be closed."""
        self.stage = Hold.HELD
        self._provider.launch(self.plan, boot, tell)
        if self.plan.directory is not None:
            hand_over(self.plan, self._record, session, values)
        else:
            self._undelivered = session, values
        self._silent = Stopwatch()

    def look(self) -> None:
        """Look after the cluster: bring it the values that it waits for, and ask how it is."""
        if self._asked.look(True) >= self.plan.patience.ask_s:
            self._asked = Stopwatch()
            self._seen = state_of(self._provider, self.ref)
        self._gone.look(self._seen.state == "gone")
        self._silent.look(not self._spoken)
        # Whoever follows the journal notices a store that is away.
        with contextlib.suppress(StoreError):
            self._deliver()
            self._listen()

    def _deliver(self) -> None:
        """Seal the values of the session as soon as the keeper has made its key."""
        if self._undelivered is not None and self._key_looked.look(True) >= KEY_POLL_S:
            self._key_looked = Stopwatch()
            session, values = self._undelivered
            if (key := self._record.key()) is not None:
                self._record.put_sealed(session, seal(key, session, values))
                self._undelivered = None

    def _listen(self) -> None:
        """Read the keeper's heartbeat, as often as it beats."""
        if self._listened.look(True) >= WAITS.heartbeat_s:
            self._listened = Stopwatch()
            if self._spoken:
                self._heartbeat.poll(self._record.heartbeat)
            self._spoken = self._spoken or self._record.heartbeat() is not None

    def raise_if_lost(self) -> None:
        """Raise the error of a cluster from which nothing more is to be expected."""
        self.lost = self._loss()
        if self.lost is not None:
            raise self.lost

    def _loss(self) -> HarnessError | None:
        patience, name, seen = self.plan.patience, self.ref.id, self._seen
        said = f"{self.ref.provider} says: {seen.state}" + f"; {seen.reason}" * bool(seen.reason)
        limit_s, grace_s = 2 * patience.boot_s, max(WAITS.grace_s, patience.grace_s)
        if seen.state == "gone" and self._gone.seconds >= patience.sure_s:
            return error_of(
                seen.failure_class,
                f"cluster {name} is gone: {seen.reason}",
                remedy="run again; what had finished is kept in the record",
            )
        if self._silent.seconds > limit_s:
            return error_of(
                seen.failure_class,
                f"cluster {name} has said nothing for {limit_s:.0f} s since its launch; {said}",
                remedy="look whether its nodes reach the store, and at the log of their boot",
            )
        if self._heartbeat.silent_s > grace_s:
            return InfrastructureError(
                f"the heartbeat of cluster {name} stopped for {grace_s:.0f} s; {said}",
                remedy="run again; what had finished is kept in the record",
            )
        return None

    def close(self, *, now: bool = False) -> TeardownError | None:
        """End the cluster, once; `now` does not wait for its own orderly end.

        Return why it would not go. Its record is kept then, for whoever ends it later.
        """
        if self.stage is not Hold.HELD:
            return None
        self.stage = Hold.CLOSING
        try:
            self._provider.close(self.ref, now=now)
        except TeardownError as problem:
            self.stage = Hold.CLOSED
            return problem
        except BaseException:
            self.stage = Hold.HELD
            raise
        self.stage = Hold.CLOSED
        with contextlib.suppress(InfrastructureError):
            self._record.delete()
        return None


def state_of(provider: Provider, ref: ClusterRef) -> ClusterState:
    """Return the state of a cluster; "unknown" also where the provider raises, as it should not."""
    try:
        return provider.state(ref)
    except HarnessError as problem:
        return ClusterState(state="unknown", reason=problem.what)


def hand_over(
    plan: LaunchPlan, record: ClusterRecord, session: str, values: Mapping[str, str]
) -> None:
    """Bring the values of a session to a cluster that is there; its head's keeper reads them once.

    Raises InfrastructureError.
    """
    if plan.directory is None:
        if (key := record.key()) is None:
            raise _gone(record.cluster)
        record.put_sealed(session, seal(key, session, values))
        return
    directory = plan.directory / record.cluster
    path = directory / "n0" / "handoff" / check_id(session, "session")
    try:
        if not is_own(directory):
            raise FileNotFoundError(directory)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(dict(values), file)
    except FileNotFoundError as error:
        raise _gone(record.cluster) from error
    except OSError as error:
        raise InfrastructureError(
            f"cluster {record.cluster} cannot take the variables of session {session}: {error}",
            remedy=f"look at the disk below {plan.directory}, then run again",
        ) from error


def _gone(cluster: str) -> HarnessError:
    return InfrastructureError(
        f"cluster {cluster} is gone", remedy="run again; a new one will be started"
    )
