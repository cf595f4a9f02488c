"""A Ray that somebody else has started, on this machine: a head, other nodes, and another user.

Its GPUs are simulated: the variable for that is in the environment of its own processes alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import requests

from pytest_gpu_cluster.contract import loopback, procfs
from pytest_gpu_cluster.contract.gpus import SIMULATED
from pytest_gpu_cluster.node.processes import free_ports
from tests.acceptance.processes import eventually

START_LIMIT_S = 90.0
# Ray as its own command starts it, with the dashboard, and with a second node on loopback.
START = """
import sys
from pytest_gpu_cluster.node import ray_start
ray_start.UNASKED = ("start_ray_client_server",)
sys.argv[0] = "ray"
ray_start.main()
"""
# Ends Ray, and what is ours on it, when the test process ends in whatever way. First in order, so
# that our guards can remove their directories.
KEEP = """
import contextlib, os, signal, sys, time
from pytest_gpu_cluster.node.forkserver import (
    PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, descendants, end_descendants, prctl, reap)
prctl(PR_SET_CHILD_SUBREAPER, 1)
prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(True))
pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, *sys.argv[1:]])
while not told and pid not in reap():
    time.sleep(0.1)
with contextlib.suppress(ProcessLookupError):
    os.kill(pid, signal.SIGTERM)
deadline = time.monotonic() + 20
while descendants(os.getpid()) and time.monotonic() < deadline:
    reap()
    time.sleep(0.05)
end_descendants(os.getpid())
"""
# Another user of that Ray: a detached actor, a detached placement group and a job that goes on. It
# also tells what there is.
STRANGER = """
import json, sys, ray
from ray.util.placement_group import placement_group, placement_group_table
ray.init(namespace="production", log_to_driver=False)

@ray.remote(num_cpus=0.1)
class Trainer:
    def step(self):
        return 7

trainer = Trainer.options(name="trainer", lifetime="detached").remote()
group = placement_group([{"CPU": 0.1}], name="theirs", lifetime="detached")
ray.get([group.ready(), trainer.step.remote()])
from ray._private.state import GlobalState
from ray.core.generated import gcs_pb2
state = ray._private.state.state
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    table = gcs_pb2.ActorTableData
    rows = state._connect_and_get_accessor().get_actor_table(None, None)
    actors = [table.FromString(data) for data in rows]
    try:
        step = ray.get(trainer.step.remote(), timeout=10)
    except Exception as problem:
        step = str(problem)
    print(json.dumps({
        "step": step,
        "theirs": placement_group_table(group)["state"],
        "free": ray.available_resources().get("GPU", 0.0),
        "actors": sorted(
            f"{each.ray_namespace} {each.class_name}" for each in actors
            if each.state != table.ActorState.DEAD
        ),
        "groups": sorted(
            each["name"] or "unnamed" for each in placement_group_table().values()
            if each["state"] != "REMOVED"
        ),
    }), flush=True)
"""


class Process:
    """A process of the rig, and what it wrote."""

    def __init__(
        self, argv: list[str], environ: Mapping[str, str], log: Path, *, talks: bool = False
    ) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                argv,
                env=dict(environ),
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else file,
                stderr=file,
                cwd=log.parent,
            )

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=40)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Stranger:
    """Another user of the Ray, who also looks at it."""

    def __init__(self, rig: RayRig) -> None:
        argv = [sys.executable, "-c", STRANGER]
        environ = rig.environ | {"RAY_ADDRESS": rig.gcs}
        self._process = Process(argv, environ, rig.directory / "stranger.log", talks=True)
        assert self._line() == "ready", self._process.log.read_text()

    def look(self) -> dict[str, object]:
        """Return what the stranger has, and what there is in Ray beside it."""
        stdin = self._process.process.stdin
        assert stdin is not None
        stdin.write(b"look\n")
        stdin.flush()
        answer = self._line()
        assert isinstance(answer, dict)
        return answer

    def _line(self) -> object:
        stdout = self._process.process.stdout
        assert stdout is not None
        line = stdout.readline()
        assert line, self._process.log.read_text()
        return json.loads(line)

    def end(self) -> None:
        self._process.end()


class RayRig:
    """A Ray of `nodes` nodes with `gpus` simulated GPUs each. `environ` opens it."""

    def __init__(self, directory: Path, *, nodes: int = 2, gpus: int = 2) -> None:
        self.directory = directory
        self.token = secrets.token_hex(32)
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "GPU_CLUSTER_", "PYTEST_"))
        }
        self.environ = inherited | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
            **loopback.VARIABLES,
        }
        port, dashboard = free_ports(2)
        self.gcs, self.address = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        self._processes = []
        of_head = [
            "--head",
            f"--port={port}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}",
            f"--temp-dir={directory / 'r'}",
        ]
        for number in range(nodes):
            others = [f"--address={self.gcs}"]
            self._processes.append(self._start(number, gpus, of_head if not number else others))
            self._wait(number)

    def _start(self, number: int, gpus: int, options: list[str]) -> Process:
        agent, grpc, runtime, metrics = free_ports(4)
        argv = [
            *(sys.executable, "-c", KEEP, "-c", START, "start", "--block"),
            *("--node-ip-address=127.0.0.1", f"--num-gpus={gpus}", "--num-cpus=4"),
            *("--disable-usage-stats", "--log-color=false", "--include-log-monitor=false"),
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={grpc}",
            f"--runtime-env-agent-port={runtime}",
            f"--metrics-export-port={metrics}",
            *options,
        ]
        log = self.directory / f"ray-{number}.log"
        return Process(argv, self.environ | {SIMULATED: "1"}, log)

    def _wait(self, number: int) -> None:
        each = self._processes[number]
        is_up = eventually(
            lambda: "Ray runtime started" in each.log.read_text() and self._api_is_up(),
            within_s=START_LIMIT_S,
        )
        assert is_up, each.log.read_text()

    def _api_is_up(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return self.get("/api/jobs/").status_code == 200
        return False

    def get(self, path: str) -> requests.Response:
        """Ask the dashboard, as who has the token."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return requests.get(self.address + path, headers=headers, timeout=10)

    def post(self, path: str) -> requests.Response:
        """Send an order to the dashboard, as who has the token."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return requests.post(self.address + path, headers=headers, timeout=10)

    def kill_head(self) -> None:
        """Kill the process that has Ray's books."""
        below = {self._processes[0].process.pid}
        for _ in range(3):  # `ray start`, and what it starts
            below |= {each.pid for each in procfs.processes() if each.parent in below}
        for pid in below:
            if procfs.kernel_name(pid) == "gcs_server":
                os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        for each in reversed(self._processes):
            if each.process.poll() is None:
                each.end()


@contextlib.contextmanager
def ray_rig(directory: Path, *, nodes: int = 2, gpus: int = 2) -> Iterator[RayRig]:
    """Give a Ray of somebody else; at the end nothing of it is left."""
    directory.mkdir(mode=0o700)
    rig = RayRig(directory, nodes=nodes, gpus=gpus)
    try:
        yield rig
    finally:
        rig.end()
        shutil.rmtree(directory, ignore_errors=True)
