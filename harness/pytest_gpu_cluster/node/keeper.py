"""The keeper of a node: as old as the cluster, owner of every process on the node.

    guard (this module, parent) ── keeper (child) ─┬─ ray start --block
                                                   ├─ template ── (forks)
                                                   └─ wardens ── agent, workers and all that they start

The guard is the last line of the boot script: when the keeper has ended, for any reason, it ends what is left of the tree,
removes the node's directory and says in the record what happened. When the guard dies, the keeper closes down.

The head's keeper takes sessions from `clusters/<id>/inbox/`; `decision/<session>` is created once, by it (taken) or by
a client that has waited too long (withdrawn). It watches the client's heartbeat, the session's deadline and its own.
Time never crosses machines: heartbeats are counters judged by this clock, deadlines arrive as seconds left.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_gpu_cluster.contract import gpus
from pytest_gpu_cluster.contract.errors import HarnessError, InfrastructureError
from pytest_gpu_cluster.contract.journal import JournalWriter
from pytest_gpu_cluster.contract.model import STORE_CREDENTIALS
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.waits import Waits
from pytest_gpu_cluster.node.forkserver import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    end_descendants,
    prctl,
    reap,
)
from pytest_gpu_cluster.node.lease import NODE_VARIABLE, Lease
from pytest_gpu_cluster.node.unpack import unpack

# Beside what tests import: what Ray imports in its first call, 0.3 s that every session would pay again. No pytest plugin may
# be among them: pytest could not rewrite its assertions any more.
PRELOADED = (
    "pytest",
    "torch",
    "ray",
    "ray._common.usage.usage_lib",
    "ray.dag",
    "ray._common.pydantic_compat",
    "pydantic.main",
    "pydantic.json_schema",
)


def comm(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def own_children() -> list[int]:
    """Living children of this process, zombies left out."""
    found, me = [], str(os.getpid()).encode()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (
                    Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[:2]
                )
                if parent == me and state != b"Z":
                    found.append(int(name))
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, all different; between this and their use somebody else may take one.

    Raises InfrastructureError when there are not as many.
    """
    held = [socket.socket() for _ in range(count)]
    try:
        for each in held:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in held]
    except OSError as problem:
        remedy = "end what holds them, or widen net.ipv4.ip_local_port_range"
        raise InfrastructureError(
            f"no free port for Ray, which needs {count}: {problem}", remedy=remedy
        ) from problem
    finally:
        for each in held:
            each.close()


class Session:
    """The one session the cluster is lent to."""

    def __init__(self, name: str, request: dict[str, Any], lease: Lease) -> None:
        self.name, self.request, self.lease = name, request, lease
        self.began = self.heard = time.monotonic()
        self.heartbeat: bytes | None = None
        self.finished: dict[str, Any] | None = None  # the agent's last word
        self.ended: dict[str, Any] | None = None  # the lease's
        self.why = ""  # set when the keeper ends it


class Keeper:
    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.waits = Waits.from_json(spec["waits"])
        self.directory = Path(spec["directory"])
        self.cluster = str(spec["cluster"])
        self.head = bool(spec["head"])
        self.store = Store.open(spec["store"], base=Path("/"))
        self.closing = ""
        self.session: Session | None = None
        self.idle_since = time.monotonic()
        self.began = time.monotonic()
        self.store_seen = time.monotonic()
        self.pulse = 0
        self.swept = 0.0
        self.served = False
        self.pulsed = 0.0
        self.ray_ready = self.template_ready = False
        self.announced = ""
        self.listed = 0.0
        self.heartbeat_seen: tuple[bytes | None, float] = (None, time.monotonic())
        self.gpus, self.driver = gpus.devices(
            os.environ, wanted=spec["gpus_per_node"], simulated=spec["simulated_gpus"]
        )
        self.tick_s = 0.015 if self.store.is_local else 0.5

    # -- processes ---------------------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """What Ray and the template get: no credential of the keeper's, no Ray of the user's."""
        hidden = ("RAY_", "GPU_CLUSTER_", "PYTEST_", "PYTHON", *STORE_CREDENTIALS)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
        kept |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.spec["ray_token"],
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            NODE_VARIABLE: str(self.directory),
        }
        if any(device.simulated for device in self.gpus):
            kept.pop("CUDA_VISIBLE_DEVICES", None)
        return kept

    def spawn(self, name: str, argv: list[str]) -> int:
        """Start a process of the node, its output in the node's logs; it dies with the keeper."""
        with open(self.directory / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                argv,
                env=self.environment(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
            ).pid

    def start_template(self) -> None:
        script = Path(__file__).with_name("forkserver.py")
        self.template = self.spawn(
            "template",
            [sys.executable, str(script), str(self.directory / "spawn.sock"), *PRELOADED],
        )

    def start_ray(self, head_address: str | None) -> None:
        port, client, dashboard, agent, grpc, runtime = free_ports(6)
        self.ray_address = head_address or f"{self.spec['ip']}:{port}"
        own = [
            "--head",
            f"--port={port}",
            "--include-dashboard=false",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
            f"--temp-dir={self.spec['ray_directory']}",
        ]
        argv = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            "--disable-usage-stats",
            "--log-color=false",
            f"--node-ip-address={self.spec['ip']}",
            f"--num-gpus={len(self.gpus)}",
            "--include-log-monitor=false",
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={grpc}",
            f"--runtime-env-agent-port={runtime}",
            *(own if self.head else [f"--address={head_address}"]),
        ]
        self.ray = self.spawn("ray", argv)

    def look_after(self) -> None:
        """Notice what started and what died; end orphans, which belong to nobody once their owner is gone."""
        ended = reap()
        if not self.template_ready and "ready " in self.log("template"):
            self.template_ready = True
        if not self.ray_ready and hasattr(self, "ray") and "Ray runtime started" in self.log("ray"):
            self.ray_ready = True
            (self.directory / "ray.json.new").write_text(json.dumps({"address": self.ray_address}))
            (self.directory / "ray.json.new").rename(self.directory / "ray.json")
            if self.head and self.spec["nodes"] > 1:
                self.store.put(
                    f"clusters/{self.cluster}/head.json",
                    json.dumps({"address": self.ray_address}).encode(),
                )
        if self.template in ended:
            self.close(
                f"the fork server ended with {ended[self.template]}: {self.log('template')[-2000:]}"
            )
        if hasattr(self, "ray") and self.ray in ended:
            verb = "died" if self.ray_ready else "did not come up"
            self.close(
                f"Ray {verb} (exit {ended[self.ray]}); its log ends:\n{self.log('ray')[-3000:]}"
            )
        if time.monotonic() - self.swept < 1.0:
            return
        self.swept = time.monotonic()
        mine = {self.template, getattr(self, "ray", 0)}
        for pid in own_children():
            if pid not in mine and comm(pid) not in ("gpu-warden", "gpu-template"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def log(self, name: str) -> str:
        with contextlib.suppress(OSError):
            return (self.directory / f"{name}.log").read_text(errors="replace")
        return ""

    def close(self, why: str) -> None:
        self.closing = self.closing or why

    # -- requests of this node's processes -----------------------------------------------------------------------------

    def listen(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.directory / "keeper.sock"))
        listener.listen(16)
        threading.Thread(target=self._serve, args=(listener,), name="requests", daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rwb") as stream:
            try:
                request = json.loads(stream.readline())
                match request["op"]:
                    case "unpack":
                        for target, digest in request["trees"].items():
                            unpack(self.store, digest, Path(target), cache=self.directory / "cache")
                    case "upload":
                        for prefix, source in request["sources"].items():
                            self.upload(prefix, Path(source))
                    case unknown:
                        raise ValueError(f"unknown request {unknown!r}")
                answer = {
                    "gpus": [device.fact() for device in self.gpus],
                    "host": socket.gethostname(),
                    "driver": self.driver,
                }
            except HarnessError as problem:
                answer = {"error": problem.what, "remedy": problem.remedy}
            except Exception as problem:
                answer = {
                    "error": f"{type(problem).__name__}: {problem}",
                    "remedy": "see the node's log",
                }
            stream.write(json.dumps(answer).encode())

    def upload(self, prefix: str, source: Path) -> None:
        """A file, or every file of a directory, into the store below `prefix`."""
        if source.is_file():
            self.store.put(prefix, source.read_bytes())
        for path in sorted(source.rglob("*")) if source.is_dir() else ():
            if path.is_file():
                self.store.put(f"{prefix}/{path.relative_to(source).as_posix()}", path.read_bytes())

    # -- sessions ------------------------------------------------------------------------------------------------------

    def take_session(self) -> None:
        """Lend the cluster to the first session that asks for it."""
        prefix = f"clusters/{self.cluster}/"
        for key in self.store.list(prefix + "inbox/"):
            name = key.rpartition("/")[2]
            decision = json.dumps({"taken": True, "nonce": secrets.token_hex(8)}).encode()
            mine = self.store.create(f"{prefix}decision/{name}", decision)
            self.store.delete([key])
            if mine:
                try:
                    self.begin(name)
                except Exception as problem:
                    self.write_down(name, f"the keeper could not begin it: {problem}", "")
                    raise
                return

    def begin(self, name: str) -> None:
        self.served = True
        raw = self.store.get(f"sessions/{name}/request.json")
        if raw is None:
            return
        request = json.loads(raw)
        scratch = self.directory / "s" / name
        scratch.mkdir(parents=True, mode=0o700)
        code = (
            self.directory / "code" / request["code"][:16]
        )  # as old as the node, so that it is compiled once
        unpack(self.store, request["code"], code, cache=self.directory / "cache")
        (self.directory / "session").write_text(name)
        credentials = {k: v for k, v in os.environ.items() if k.startswith(STORE_CREDENTIALS)}
        specification = {
            "session": name,
            "store": self.spec["store"],
            "node": str(self.directory),
            "scratch": str(scratch),
            "code": str(code),
            "request": request,
            "env": self.handed_over(name),
            "credentials": credentials,
            "ray_token": self.spec["ray_token"],
            "cluster": self.cluster,
            "nodes": self.spec["nodes"],
            "gpus": [device.fact() for device in self.gpus],
            "host": socket.gethostname(),
            "driver": self.driver,
        }
        entry = "pytest_gpu_cluster.agent.loop:main"
        lease = Lease(str(self.directory), code=str(code), entry=entry, specification=specification)
        self.session = Session(name, request, lease)
        self.announce("busy")

    def handed_over(self, name: str) -> dict[str, str]:
        """The values of passed variables: a file consumed once, never part of the record."""
        path = self.directory / "handoff" / name
        try:
            values: dict[str, str] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        path.unlink()
        return values

    def watch_session(self, session: Session) -> None:
        for line in session.lease.receive(0):
            message = json.loads(line)
            if message["kind"] == "exit":
                session.ended = message
            elif message["kind"] == "finished":
                session.finished = message
            elif message["kind"] == "raw":
                with open(self.directory / "agent.log", "a") as log:
                    log.write(message["text"])
        now = time.monotonic()
        if now - self.listed > (0.5 if self.store.is_local else 5.0):
            self.listed = now
            beat = self.store.get(f"sessions/{session.name}/control/heartbeat")
            if beat != session.heartbeat:
                session.heartbeat, session.heard = beat, now
        if not session.why:
            if now - session.heard > self.waits.grace_s:
                session.why = f"the client's heartbeat stopped for {self.waits.grace_s:.0f} s"
            elif now - session.began > session.request["limits"]["max_s"] + 60:
                session.why = "its agent did not stop when the session's deadline passed"
            if session.why:
                session.lease.kill()
        if session.ended is not None:
            self.end_session(session)

    def end_session(self, session: Session) -> None:
        self.session = None
        clean = (
            session.finished is not None
            and bool(session.finished["clean"])
            and session.ended is not None
        )
        if session.finished is None:
            ended = session.ended or {"status": None, "err": ""}
            words = ended["err"].strip().splitlines()[-1:]  # of a traceback the error itself
            why = (
                session.why
                or self.closing
                or ": ".join([f"its agent ended with {ended['status']}", *words])
            )
            self.write_down(session.name, why, (self.log("agent") + ended["err"])[-4000:])
        shutil.rmtree(self.directory / "s" / session.name, ignore_errors=True)
        left = [pid for pid in own_children() if comm(pid) == "gpu-warden"]
        if left:
            time.sleep(0.2)
            left = [pid for pid in left if comm(pid) == "gpu-warden"]
        if not clean or left:
            detail = session.why or (session.finished or {}).get("why") or "its agent was lost"
            self.close(f"not lent again after session {session.name}: {detail}")
        elif session.request["limits"]["idle_s"] <= 0:
            self.close("the session is over")
        self.idle_since = time.monotonic()
        self.spec["idle_s"] = session.request["limits"]["idle_s"]
        with contextlib.suppress(OSError):
            (self.directory / "session").unlink()
        self.announce("idle")

    def turn_away(self, session: str) -> None:
        """A session that asked whether this cluster is free takes another; the one that it was started for has no other."""
        if self.served:
            refused = json.dumps({"taken": False, "nonce": secrets.token_hex(8)}).encode()
            self.store.create(f"clusters/{self.cluster}/decision/{session}", refused)
        else:
            self.write_down(session, self.closing, "")

    def write_down(self, session: str, why: str, tail: str) -> None:
        """Say in a session's record why its agent will not; close the record when its client is gone."""
        writer = JournalWriter(self.store, f"sessions/{session}/events", "keeper")
        failure = "limit" if why.endswith("deadline passed") else "infrastructure"
        writer.append(
            "session_finished",
            exitstatus=None,
            shouldfail=None,
            shouldstop=None,
            failure_class=failure,
            message=why,
            tail=tail,
        )
        writer.close(self.waits.store_patience_s)
        if "heartbeat" in why:
            result = {
                "v": 1,
                "closed_by": "keeper",
                "failure_class": failure,
                "message": why,
                "nonce": secrets.token_hex(8),
            }
            self.store.create(f"sessions/{session}/result.json", json.dumps(result).encode())

    def announce(self, state: str) -> None:
        idle_left_s = (
            max(0.0, self.spec["idle_s"] - (time.monotonic() - self.idle_since))
            if state == "idle"
            else None
        )
        said = {
            "state": state,
            "session": self.session.name if self.session else None,
            "idle_left_s": idle_left_s,
            "ready": self.ray_ready,
            "why": self.closing,
        }
        if json.dumps(said) != self.announced:
            self.announced = json.dumps(said)
            self.store.put(f"clusters/{self.cluster}/state.json", self.announced.encode())

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Keep the node until there is a reason to close it; returns the reason."""
        signal.signal(signal.SIGTERM, lambda *_: self.close("asked to close"))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.listen()
        self.start_template()
        if self.head:
            self.start_ray(None)
        while not self.closing:
            time.sleep(self.tick_s if self.session is None else 0.1)
            self.look_after()
            try:
                (self.tick_head if self.head else self.tick_node)()
                self.store_seen = time.monotonic()
            except HarnessError as problem:
                limit_s = self.waits.store_gone_s
                if self.session is None and time.monotonic() - self.store_seen > limit_s:
                    self.close(f"the store has been gone for {limit_s:.0f} s: {problem.what}")
        return self.closing

    def tick_head(self) -> None:
        now = time.monotonic()
        if now - self.pulsed > self.waits.heartbeat_s:
            self.pulsed, self.pulse = now, self.pulse + 1
            self.store.put(f"clusters/{self.cluster}/heartbeat", str(self.pulse).encode())
            if self.session is None:
                self.announce("idle" if self.ray_ready else "starting")
        if self.session is not None:
            self.watch_session(self.session)
        elif self.template_ready:
            self.take_session()
        if self.session is None and now - self.idle_since > (
            self.spec["idle_s"] if self.served else self.waits.unasked_s
        ):
            self.close("idle for as long as it may")
        if now - self.began > self.spec["deadline_s"]:
            self.close("the cluster's deadline passed")

    def tick_node(self) -> None:
        now = time.monotonic()
        if not hasattr(self, "ray"):
            raw = self.store.get(f"clusters/{self.cluster}/head.json")
            if raw is not None:
                self.start_ray(json.loads(raw)["address"])
        if now - self.pulsed > self.waits.heartbeat_s:
            self.pulsed = now
            beat = self.store.get(f"clusters/{self.cluster}/heartbeat")
            if beat != self.heartbeat_seen[0]:
                self.heartbeat_seen = (beat, now)
            elif now - self.heartbeat_seen[1] > self.waits.grace_s:
                self.close("the head's heartbeat stopped")
        if now - self.began > self.spec["deadline_s"]:
            self.close("the cluster's deadline passed")

    def shut(self) -> None:
        """Say why, end everything below, quietly."""
        if self.session is not None:
            self.session.why = self.session.why or self.closing
            self.session.lease.kill()
            deadline = time.monotonic() + 10
            while self.session is not None and time.monotonic() < deadline:
                with contextlib.suppress(HarnessError):
                    self.watch_session(self.session)
                time.sleep(0.02)
        with contextlib.suppress(HarnessError):
            for key in self.store.list(f"clusters/{self.cluster}/inbox/") if self.head else ():
                self.turn_away(key.rpartition("/")[2])
        for pid in (
            own_children()
        ):  # wardens first: a process that dies before its warden would look like a crash
            if comm(pid) == "gpu-warden":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        end_descendants(os.getpid())


def tend(spec: Mapping[str, Any]) -> int:
    """The keeper's process; returns its exit code."""
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    boot = os.getppid()
    keeper = Keeper(dict(spec))
    try:
        why = keeper.run()
        print(f"keeper: {why}", flush=True)
        return 0
    except Exception as problem:
        keeper.close(f"the keeper failed: {problem}")
        raise
    finally:
        keeper.shut()
        if os.getppid() != boot:  # the guard is gone: its work falls to us
            with contextlib.suppress(HarnessError):
                leave_record(spec, 0)
            remove_directory(keeper.directory)


def guard(path: Path) -> int:
    """Run the keeper in a child; when it has ended, leave nothing of the node: processes, directory, record."""
    spec = json.loads(path.read_bytes())
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = tend(spec)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, status = os.waitpid(pid, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_descendants(os.getpid())
    lost = ""
    try:
        lost = leave_record(spec, os.waitstatus_to_exitcode(status))
    except Exception as problem:  # a store that is gone must not keep the directory alive
        print(f"guard: {problem}", flush=True)
    remove_directory(Path(spec["directory"]))
    if lost:
        signal.signal(
            signal.SIGTERM, lambda *_: os._exit(0)
        )  # from a client, who is there to do it
        close_record(spec, lost)
    return 0


def remove_directory(directory: Path) -> None:
    """The node's directory, and the cluster's when this was its last node, and the user's when it was the last cluster."""
    shutil.rmtree(directory, ignore_errors=True)
    if not any(directory.parent.glob("n*")):
        shutil.rmtree(directory.parent, ignore_errors=True)
        with contextlib.suppress(OSError):
            directory.parent.parent.rmdir()


def leave_record(spec: Mapping[str, Any], status: int) -> str:
    """After the keeper's death: a session it held learns what happened, and is returned; the cluster is struck off the list."""
    store = Store.open(spec["store"], base=Path("/"))
    held = Path(spec["directory"], "session")
    session = held.read_text() if spec["head"] and status != 0 and held.exists() else ""
    if session:
        writer = JournalWriter(store, f"sessions/{session}/events", "guard")
        why = f"the keeper of the head node was lost (exit {status})"
        writer.append(
            "session_finished",
            exitstatus=None,
            shouldfail=None,
            shouldstop=None,
            failure_class="infrastructure",
            message=why,
            tail="",
        )
        writer.close(Waits.from_json(spec["waits"]).store_patience_s)
    if spec["head"]:
        store.delete(list(store.list(f"clusters/{spec['cluster']}/")))
    return session


def close_record(spec: Mapping[str, Any], session: str) -> None:
    """Make the record of a lost session final when its client, whose part that is, is gone too."""
    store = Store.open(spec["store"], base=Path("/"))
    result, beat = f"sessions/{session}/result.json", f"sessions/{session}/control/heartbeat"
    before = store.get(beat)
    time.sleep(Waits.from_json(spec["waits"]).heartbeat_s * 1.5)
    if store.get(result) is None and store.get(beat) == before:
        said = {
            "v": 1,
            "closed_by": "guard",
            "exitstatus": None,
            "failure_class": "infrastructure",
            "message": "client and keeper were lost; what had finished is in the journal",
            "nonce": secrets.token_hex(8),
        }
        store.create(result, json.dumps(said).encode())


if __name__ == "__main__":
    sys.exit(guard(Path(sys.argv[1])))
