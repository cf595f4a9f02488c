"""Nouns that the parts of a keeper share: its node, and a reason to stop."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from pytest_gpu_cluster.contract.cluster_record import ClusterRecord
from pytest_gpu_cluster.contract.failures import KeeperStop
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.gpus import Gpu, given_gpus, node_gpus
from pytest_gpu_cluster.contract.specs import BootSpec, KeeperSpec
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.node.guest import Guest


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of a cluster, as its keeper found it."""

    spec: KeeperSpec
    store: Store
    gpus: tuple[Gpu, ...]
    driver: str | None  # version of the GPUs' driver
    host: str
    guest: Guest | None = None  # the tests' user, where it is another

    @classmethod
    def of(cls, spec: KeeperSpec) -> Node:
        """Open the store and count the GPUs. Raises StoreError, InfrastructureError."""
        devices, driver = _gpus(spec)
        return cls(
            spec=spec,
            store=Store.open(spec.boot.store, base=Path("/")),
            gpus=tuple(devices),
            driver=driver,
            host=socket.gethostname(),
            guest=Guest.named(spec.test_user),
        )

    @property
    def ray_token(self) -> str:
        """The token of Ray: the cluster's own, or that of a Ray that is there; "" for none."""
        return self.spec.secrets.ray_token if self.spec.ray is None else given_token(os.environ)

    @property
    def boot(self) -> BootSpec:
        return self.spec.boot

    @property
    def directory(self) -> Path:
        return self.spec.directory

    @property
    def cache(self) -> Path:
        """The directory of blobs that serve every tree unpacked on this node."""
        return self.directory / "cache"

    @property
    def cluster(self) -> ClusterRecord:
        return ClusterRecord(self.store, self.boot.cluster)


def _gpus(spec: KeeperSpec) -> tuple[list[Gpu], str | None]:
    """Return the devices of a node. Raises InfrastructureError."""
    if spec.ray is None:
        return node_gpus(
            os.environ,
            requested=spec.boot.gpus_per_node,
            simulated=spec.boot.simulated_gpus,
            required=spec.boot.require_gpu,
        )
    ids = next(n.gpus for n in spec.ray.scope.nodes if n.directory == str(spec.directory))
    return given_gpus(os.environ, ids)


def given_token(environ: Mapping[str, str]) -> str:
    """Return the token by which processes of a Ray that is there connect to it; "" for none.

    Ray looks for it in this order.
    """
    if environ.get("RAY_AUTH_MODE") == "disabled":
        return ""
    if token := environ.get("RAY_AUTH_TOKEN", ""):
        return token
    path = Path(environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """The end of a session that its agent has not ended. Code decides by `kind`, not by text."""

    kind: KeeperStop
    message: str


class Shutdown:
    """The request to close this node. The first reason counts, also for the session served."""

    def __init__(self) -> None:
        self.requested = False
        self.stop = Stop(kind=KeeperStop.CLUSTER_CLOSED, message="")

    def request(self, message: str, kind: KeeperStop = KeeperStop.CLUSTER_CLOSED) -> None:
        """Close the node soon; `kind` is what becomes of a session that it serves."""
        if not self.requested:
            self.requested, self.stop = True, Stop(kind=kind, message=message)

    @property
    def message(self) -> str:
        """The reason for people; "" while nothing requests it."""
        return self.stop.message
