"""Another Ray node of the session's cluster, on this machine, for nodes that join and die."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import ray

START_S = 60


class Node:
    """A node with these resources (`CPU` and `GPU` among them).

    It lives until `die` or the end of `with`.
    """

    def __init__(self, folder: Path, resources: dict[str, float]) -> None:
        self.log = folder / "ray-node.log"
        custom = {name: count for name, count in resources.items() if name not in ("CPU", "GPU")}
        agent, grpc, runtime = free_ports(3)
        address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # ray
        self.command = [
            *(
                sys.executable,
                "-m",
                "ray.scripts.scripts",
                "start",
                "--block",
                "--disable-usage-stats",
                "--log-color=false",
            ),
            f"--address={ray.get_runtime_context().gcs_address}",
            f"--node-ip-address={address}",
            *(
                f"--num-cpus={resources.get('CPU', 0):.0f}",
                f"--num-gpus={resources.get('GPU', 0):.0f}",
                f"--resources={json.dumps(custom)}",
            ),
            *("--object-store-memory=200000000", "--include-log-monitor=false"),
            *(
                f"--dashboard-agent-listen-port={agent}",
                f"--dashboard-agent-grpc-port={grpc}",
                f"--runtime-env-agent-port={runtime}",
            ),
        ]

    def __enter__(self) -> Node:
        before = living_nodes()
        # CUDA_VISIBLE_DEVICES hides GPUs from a test; the node must see all of them.
        environ = {
            name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                env=environ,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        end = time.monotonic() + START_S
        while not (joined := living_nodes() - before):
            if self.process.poll() is not None or time.monotonic() > end:
                self.die()
                raise RuntimeError(
                    f"another Ray node did not join within {START_S} s: "
                    f"{self.log.read_text()[-1000:]}"
                )
            time.sleep(0.1)
        (self.id,) = joined
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        """Kill all processes of the node at once and without notice, as a power failure does."""
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def living_nodes() -> set[str]:
    """Return the ids of the nodes that Ray counts as alive."""
    nodes: list[dict[str, object]] = ray.nodes()  # type: ignore[no-untyped-call]  # ray
    return {str(node["NodeID"]) for node in nodes if node["Alive"]}


def descendants(pid: int) -> Iterator[int]:
    """Yield the id of every process below `pid`, from /proc."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                yield int(child)
                yield from descendants(int(child))


def free_ports(count: int) -> list[int]:
    """Return `count` different ports that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for bound in sockets:
            bound.bind(("", 0))
        return [bound.getsockname()[1] for bound in sockets]
