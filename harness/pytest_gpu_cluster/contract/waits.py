"""The seconds that each side waits before it gives up on the other.

They are constants of the product, which our own tests shorten.

They are no settings of a user: GPU_CLUSTER_INTERNAL_WAITS="grace_s=6,settle_s=3" holds for the
client that has it, and a cluster takes its client's values from the boot specification.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from pytest_gpu_cluster.contract.fields import JsonObject, Noun
from pytest_gpu_cluster.contract.frozen import dataclass

VARIABLE = "GPU_CLUSTER_INTERNAL_WAITS"


@dataclass(frozen=True, kw_only=True)
class Waits(Noun):
    """Seconds by the monotonic clock of the process that waits."""

    heartbeat_s: float = 5.0  # between two beats of a client
    grace_s: float = 45.0  # of silence, after which a keeper ends the session or closes the node
    # Without a beat, after which another process may speak for a client: one put may take a minute.
    lost_s: float = 60.0
    settle_s: float = 30.0  # for the agent of a session without a client to end
    decision_s: float = 4.0  # for a warm cluster to answer a client that asks for it
    store_patience_s: float = 30.0  # without the store, after which a session is given up
    stop_grace_s: float = 20.0  # for an agent to end a session that is no longer wanted
    store_gone_s: float = 120.0  # without the store, after which an idle cluster closes
    join_s: float = 180.0  # for the nodes of a new cluster to find each other
    unasked_s: float = 120.0  # for the first session of a new cluster to ask for it

    @property
    def head_beat_s(self) -> float:
        """Seconds between two beats of a head node, each of which is a write to the store."""
        return min(3 * self.heartbeat_s, self.grace_s / 3, self.lost_s / 4)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Waits:
        """Return the defaults with the changes of VARIABLE.

        Raises ValueError for an unknown name.
        """
        values: JsonObject = {}
        for item in environ.get(VARIABLE, "").split(","):
            name, _, seconds = item.strip().partition("=")
            if name:
                values[name] = float(seconds)
        return cls.from_json(values)


WAITS = Waits.from_environ(os.environ)
