"""The processes and directories of clusters on this machine, and a wait for what is to happen.

Each process that runs tests has its clusters in a directory of its own, where the sweep of no other
one looks.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from pytest_gpu_cluster.contract.waits import VARIABLE

INTERNAL = "GPU_CLUSTER_INTERNAL_"  # how the names of variables begin that are no settings
# Short: Ray's sockets lie below it, and the path of a socket holds 107 bytes.
CLUSTERS = Path(f"/tmp/gpu-test-{os.getpid()}")
# The product in this process reads it too. A worker of xdist must not take over its parent's value.
os.environ[f"{INTERNAL}CLUSTERS"] = str(CLUSTERS)
# Silence counts after 5 s in place of 60. A warm cluster may be slow to answer on a busy machine,
# where the start of another one would make it busier.
ALWAYS = {"heartbeat_s": 1.5, "lost_s": 5, "decision_s": 20}


def waits(**seconds: float) -> dict[str, str]:
    """Return the variable that changes some of the product's waits for one run."""
    values = ALWAYS | seconds
    return {VARIABLE: ",".join(f"{name}={value:g}" for name, value in values.items())}


os.environ |= waits()


def processes_of(store: str) -> list[str]:
    """Guards and keepers whose cluster uses this store."""
    matches = []
    for path in CLUSTERS.glob("*/guards.json"):
        text = path.read_text()
        if store in text:
            matches.append(f"{path}: {text}")
    return matches


def left_of(cluster: str) -> list[str]:
    """Return the remains of a cluster: its directory, and processes that name it.

    A process names the cluster in its environment or command line.
    """
    mark = f"{CLUSTERS}/{cluster}/".encode()
    remaining = [str(CLUSTERS / cluster)] if cluster and (CLUSTERS / cluster).exists() else []
    for name in os.listdir("/proc") if cluster else ():
        if name.isdigit():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{name}/cmdline").read_bytes()
                if mark in line or mark in Path(f"/proc/{name}/environ").read_bytes():
                    remaining.append(
                        f"{name} {line.replace(bytes(1), b' ').decode(errors='replace')}"
                    )
    return remaining


def eventually(true: Callable[[], object], *, within_s: float = 30.0) -> bool:
    """Return whether a condition becomes true in time."""
    deadline = time.monotonic() + within_s
    while not (result := bool(true())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return result


def pid_of(cluster: str, part: str) -> int:
    """A process of the cluster whose command line or kernel name has `part`; the oldest of
    several.
    """
    pids = []
    for line in left_of(cluster):
        pid = line.split(" ", 1)[0]
        with contextlib.suppress(OSError):
            if pid.isdigit() and (
                part in line or part == Path(f"/proc/{pid}/comm").read_text().strip()
            ):
                pids.append(int(pid))
    assert pids, f"no {part} in cluster {cluster}: {left_of(cluster)}"
    return min(pids)


def agent_of(cluster: str) -> int:
    """The oldest of the forked processes."""
    return pid_of(cluster, "gpu-worker")


def keeper_of(cluster: str) -> int:
    """The child of the guard: both have the same command line."""
    guard = pid_of(cluster, "pytest_gpu_cluster.node.guard")
    return next(
        int(pid) for pid in Path(f"/proc/{guard}/task/{guard}/children").read_text().split()
    )


def raylet_of(cluster: str, node: str) -> int:
    pids = [line.split(" ", 1)[0] for line in left_of(cluster) if "raylet/raylet" in line]
    mark = f"{cluster}/{node}".encode()
    return next(
        int(pid)
        for pid in pids
        if pid.isdigit() and mark in Path(f"/proc/{pid}/environ").read_bytes()
    )
