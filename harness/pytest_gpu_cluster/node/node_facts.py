"""A node of a Ray that is there, before anything of ours runs on it, and if it will do."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from pytest_gpu_cluster.contract.cluster_directory import is_private
from pytest_gpu_cluster.contract.errors import EnvironmentBuildError, InfrastructureError
from pytest_gpu_cluster.contract.fields import Noun
from pytest_gpu_cluster.contract.frozen import dataclass

# Short, for a socket's path holds 107 bytes. Another than the provider `local` has: the sweep of
# that one, on the same machine, ends what it finds in its own.
PLACES = ("/tmp", "/var/tmp", "/dev/shm")
LEAST_BYTES = 64 * 2**20  # of free space
DISTRIBUTIONS = (
    "pytest",
    "obstore",
    "pynacl",
    "ray",
)  # whose versions decide whether tests can run


@dataclass(frozen=True, kw_only=True)
class Facts(Noun):
    """A node before anything of ours runs there."""

    host: str
    ip: str
    python: str  # version
    versions: Mapping[str, str]  # by distribution; absent: it is not installed
    places: tuple[str, ...]  # where directories of ours can be
    refused: tuple[str, ...]  # where they cannot, and why


def facts(ip: str) -> Facts:
    """Return the facts of this node."""
    installed: dict[str, str] = {}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    usable, refused = _places(PLACES)
    return Facts(
        host=socket.gethostname(),
        ip=ip,
        python=platform.python_version(),
        versions=installed,
        places=tuple(usable),
        refused=tuple(refused),
    )


def _places(candidates: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the directories of this user that clusters can have theirs in; and why not others."""
    usable, refused = [], []
    for candidate in candidates:
        base = Path(candidate, f"gpu-ray-{os.getuid()}")
        try:
            with contextlib.suppress(FileExistsError):
                base.mkdir(mode=0o700)
            if not is_private(base):
                raise PermissionError(f"{base} belongs to somebody else or is open to others")
            disk = os.statvfs(base)
            free = disk.f_bavail * disk.f_frsize
            if free < LEAST_BYTES:
                raise OSError(f"{candidate} has {free / 2**20:.0f} MiB free")
            usable.append(str(base))
        except OSError as problem:
            refused.append(str(problem))
    return usable, refused


def check_versions(nodes: Sequence[Facts], pytest: str) -> None:
    """Refuse nodes on which no test of the client's can run. Raises EnvironmentBuildError."""
    wanted = pytest.split(".")[:2]
    for node in nodes:
        missing = [name for name in DISTRIBUTIONS if name not in node.versions]
        if missing:
            names = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
            raise EnvironmentBuildError(
                f"{names} not installed on {node.host} (python {node.python})",
                remedy="in the environment of Ray's nodes:"
                f" pip install pytest=={pytest} obstore pynacl nvidia-ml-py",
            )
        if node.versions["pytest"].split(".")[:2] != wanted:
            raise EnvironmentBuildError(
                f"pytest is {pytest} on the client and {node.versions['pytest']} on {node.host};"
                " reports differ between the two",
                remedy=f"install the same on both sides, e.g. pytest=={pytest} on Ray's nodes",
            )


def common_place(nodes: Sequence[Facts]) -> Path:
    """Return where all nodes can have a directory of ours. Raises InfrastructureError."""
    for place in nodes[0].places:
        if all(place in node.places for node in nodes):
            return Path(place)
    reasons = "; ".join(f"{node.host}: {', '.join(node.refused) or 'fine'}" for node in nodes)
    raise InfrastructureError(
        f"no directory for files of a cluster on all nodes: {reasons}",
        remedy="have /tmp, /var/tmp or /dev/shm writable there, with 64 MiB free",
    )
