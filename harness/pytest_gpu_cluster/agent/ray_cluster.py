"""The Ray cluster as the agent sees it: which nodes are there, what is free in our own books, tokens taken and given back."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_gpu_cluster.agent import plan
from pytest_gpu_cluster.agent.plan import Demand
from pytest_gpu_cluster.node import lease as leases


def the_ray() -> Any:
    """Ray, imported late (the client reads this package too) and untyped (its stubs lag behind its options)."""
    import ray

    return ray


READY_LIMIT_S = 180.0
RELEASE_LIMIT_S = 10.0
GIVE_BACK_LIMIT_S = 2.0


class Relay:
    """A process on another node, through the token that sits there: the verbs of a Lease."""

    def __init__(self, token: Any) -> None:
        self.token = token

    def _tell(self, verb: str, *arguments: Any) -> None:
        getattr(self.token, verb).options(concurrency_group="send").remote(*arguments)

    def send(self, message: bytes) -> None:
        self._tell("send", message)

    def signal(self, number: int) -> None:
        self._tell("signal", int(number))

    def kill(self) -> None:
        self._tell("kill")

    def stacks(self) -> None:
        self._tell("stacks")

    def receive(self, timeout_s: float) -> list[bytes]:
        ray = the_ray()
        try:
            lines: list[bytes] = ray.get(
                self.token.receive.options(concurrency_group="receive").remote(timeout_s)
            )
            return lines
        except ray.exceptions.RayError as problem:
            why = f"its slot was lost: {problem}".splitlines()[0]
            return [
                json.dumps({"kind": "exit", "status": None, "ordered": False, "why": why}).encode()
            ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Token:
    """A slot's actor, where it sits and what it holds."""

    actor: Any
    home: str
    gpus: float
    lasting: bool = True


class Cluster:
    """Ray's nodes and this session's ledger of their devices. Every change arrives in `events` as `{"kind": "cluster", …}`."""

    def __init__(
        self, spec: Mapping[str, Any], events: queue.SimpleQueue[Any], trees: Mapping[str, str]
    ) -> None:
        self.spec, self.events, self.trees = spec, events, dict(trees)
        self.ready = self.failed = False
        self.address = ""
        self.head = ""
        self.free: dict[str, float] = {}
        self.total: dict[str, float] = {}
        self.devices: dict[str, list[dict[str, Any]]] = {}
        self.tokens: list[Token] = []  # whose processes live
        self.standby: dict[
            tuple[str, float], list[Token]
        ] = {}  # tokens that wait for a process, also those of the last session
        self.standby_name = f"standby-{spec['request']['code'][:16]}"
        self.spare: leases.Lease | None = None
        self.lost: set[str] = set()
        self.lock = threading.Lock()

    # -- joining -------------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Join in the background, so that the selection need not wait for it."""
        threading.Thread(target=self._connect, name="ray", daemon=True).start()

    def _connect(self) -> None:
        began = time.monotonic()
        try:
            self._join(began + READY_LIMIT_S)
        except Exception as problem:
            self.failed = True
            self.events.put(
                (
                    None,
                    [
                        {
                            "kind": "cluster",
                            "error": f"Ray could not be joined: {type(problem).__name__}: {problem}",
                        }
                    ],
                )
            )
            return
        self.ready = True
        self.events.put((None, [{"kind": "cluster", "seconds": time.monotonic() - began}]))
        self._watch_nodes()

    def _join(self, deadline: float) -> None:
        ray = the_ray()
        path = Path(self.spec["node"], "ray.json")
        while not path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"Ray was not up after {READY_LIMIT_S:.0f} s")
            time.sleep(0.02)
        self.address = json.loads(path.read_text())["address"]
        ray.init(
            address=self.address,
            namespace="gpu-cluster",
            log_to_driver=False,
            configure_logging=False,
        )
        while len(alive := [node for node in ray.nodes() if node["Alive"]]) < self.spec["nodes"]:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{len(alive)} of {self.spec['nodes']} nodes joined in {READY_LIMIT_S:.0f} s"
                )
            time.sleep(0.1)
        self.head = ray.get_runtime_context().get_node_id()
        for node in alive:
            self.total[node["NodeID"]] = float(node["Resources"].get("GPU", 0.0))
        self.devices[self.head] = list(self.spec["gpus"])
        self._find_standby()
        self.free = dict(self.total)

    def _find_standby(self) -> None:
        """Tokens of the last session, when they run this session's code; others are dropped."""
        ray = the_ray()
        for named in ray.util.list_named_actors(all_namespaces=True):
            actor = ray.get_actor(named["name"], namespace=named["namespace"])
            if named["name"].startswith(self.standby_name):
                home, gpus = named["name"].split(":")[1:3]
                self.standby.setdefault((home, float(gpus)), []).append(
                    Token(actor=actor, home=home, gpus=float(gpus))
                )
            else:
                ray.kill(actor)

    def leave_standby(self, gpus: float) -> None:
        """Have a token of the default demand for each that fits, for the next session: it then need not wait for Ray's processes."""
        for home, count in self.capacity().items():
            there = len(self.standby.get((home, gpus), ()))
            for _ in range(there, int((count + 1e-9) / gpus) if gpus else 0):
                self._token(home, gpus)

    def drop_standby(self, *, but: float = 0.0) -> None:
        """Give the devices of waiting tokens back to Ray, for a demand that is not theirs; those of `but` devices stay."""
        with self.lock:
            kept = {key: tokens for key, tokens in self.standby.items() if but and key[1] == but}
            dropped = [
                token for key, tokens in self.standby.items() if key not in kept for token in tokens
            ]
            self.standby = kept
        for token in dropped:
            the_ray().kill(token.actor)

    def _token(self, home: str, gpus: float, *, lasting: bool = True) -> Token:
        """A new token. A lasting one has a name, by which the next session of the same code finds it."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray = the_ray()
        ray.cloudpickle.register_pickle_by_value(leases)
        groups = {"send": 1, "receive": 1, "hold": 1}
        actor = ray.remote(num_cpus=0, num_gpus=gpus, max_restarts=0, concurrency_groups=groups)(
            leases.Slot
        )
        name = f"{self.standby_name}:{home}:{gpus:g}:{secrets.token_hex(4)}"
        options = (
            {"name": name, "namespace": "gpu-cluster", "lifetime": "detached"} if lasting else {}
        )
        made = actor.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(home, soft=False), **options
        ).remote()
        return Token(actor=made, home=home, gpus=gpus, lasting=lasting)

    def _watch_nodes(self) -> None:
        ray = the_ray()
        while True:
            time.sleep(1.0)
            try:
                alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            except Exception:  # Ray is being left, or its head has died: then the keeper says so
                return
            for node in set(self.total) - alive - self.lost:
                self.lost.add(node)
                with self.lock:
                    self.free.pop(node, None)
                self.events.put((None, [{"kind": "cluster", "lost": [node]}]))

    def capacity(self) -> dict[str, float]:
        """Devices per node; before Ray is up, what the shape of the cluster promises."""
        if self.total:
            return {node: count for node, count in self.total.items() if node not in self.lost}
        return {f"node-{n}": float(len(self.spec["gpus"])) for n in range(self.spec["nodes"])}

    def start_spare(self, code: str, entry: str) -> None:
        """Start a process on this node before its slot is known: the first worker need not wait for its fork and imports."""
        self.spare = leases.Lease(self.spec["node"], code=code, entry=entry)

    # -- tokens --------------------------------------------------------------------------------------------------------

    def place(self, demand: Demand, *, avoid: Iterable[str] = ()) -> dict[str, float] | None:
        """Take devices for this demand in our books, its own node first; None when they are not free now."""
        with self.lock:
            taken = plan.nodes_for(demand, self.free, avoid=avoid)
            for node, count in (taken or {}).items():
                self.free[node] -= count
        return taken

    def reserve(self, home: str, demand: Demand) -> tuple[Token, list[dict[str, Any]]]:
        """A token for the devices of a test process on node `home`, and the facts of exactly these devices."""
        gpus = demand.gpus
        ray = the_ray()
        with self.lock:
            waiting = self.standby.get((home, gpus)) if not demand.drives else None
            token = waiting.pop() if waiting else None
        if token is None:
            if gpus or demand.drives:
                self.drop_standby()
            token = self._token(
                home, gpus, lasting=not demand.drives
            )  # a driving test is to find no actor that is not its own
        self.tokens.append(token)
        facts = ray.get(token.actor.facts.remote(), timeout=60)
        if home != self.head:
            said = ray.get(token.actor.prepare.remote(self.trees), timeout=300)
            if "error" in said:
                raise RuntimeError(said["error"])
            if home not in self.devices:
                self.devices[home] = said["gpus"]
                simulated = any(device["simulated"] for device in said["gpus"])
                node = {
                    "node": home[:12],
                    "host": said["host"],
                    "gpus": said["gpus"],
                    "driver": said["driver"],
                    "simulated": simulated,
                }
                self.events.put((None, [{"kind": "cluster", "joined": [node]}]))
        ids = set(facts["gpu_ids"]) if gpus else set()
        return token, [device for device in self.devices[home] if device["id"] in ids]

    def transport(self, token: Token, code: str, entry: str, specification: dict[str, Any]) -> Any:
        """Start a process in the token's slot: directly on the agent's own node, else through the token."""
        if token.home == self.head:
            with self.lock:
                lease, self.spare = self.spare, None
            lease = lease or leases.Lease(self.spec["node"], code=code, entry=entry)
            lease.specify(specification)
            return lease
        the_ray().get(token.actor.open.remote(code, entry, specification), timeout=60)
        return Relay(token.actor)

    def upload(self, token: Token, sources: Mapping[str, str]) -> None:
        """Have files or directories of the token's node (by key prefix) put into the store by its keeper."""
        if token.home == self.head:
            leases.ask(self.spec["node"], {"op": "upload", "sources": dict(sources)})
        else:
            the_ray().get(token.actor.upload.remote(dict(sources)), timeout=120)

    def watch(self, token: Token, tell: Callable[[str], None]) -> None:
        """Call `tell` when the token dies before it is released."""
        ray = the_ray()
        reference = token.actor.hold.options(concurrency_group="hold").remote()

        def wait() -> None:
            try:
                ray.get(reference)
            except ray.exceptions.RayActorError as problem:
                if token in self.tokens:
                    tell(str(problem).splitlines()[0])
            except Exception:  # Ray is being left
                return

        threading.Thread(target=wait, daemon=True).start()

    def release(self, token: Token | None, taken: Mapping[str, float], *, whole: bool) -> None:
        """Count the devices of a token as free whose processes are gone. A `whole` one waits for the next process."""
        if token is not None:
            self.tokens.remove(token)
            whole = whole and token.lasting and self._given_back(token)
            if not whole:
                the_ray().kill(token.actor)
        with self.lock:
            if token is not None and whole:
                self.standby.setdefault((token.home, token.gpus), []).append(token)
            for node, count in taken.items():
                if node in self.free:
                    self.free[node] += count

    @staticmethod
    def _given_back(token: Token) -> bool:
        ray = the_ray()
        try:
            ray.get(
                token.actor.give_back.options(concurrency_group="send").remote(),
                timeout=GIVE_BACK_LIMIT_S,
            )
        except ray.exceptions.RayError:  # it has died, or hangs
            return False
        return True

    # -- leaving -------------------------------------------------------------------------------------------------------

    def leave(self, *, standby_gpus: float = 0.0) -> tuple[bool, str]:
        """End what the session left in Ray; whether nothing of it remains, and what does. Tokens may stay for the next."""
        ray = the_ray()
        deadline = time.monotonic() + READY_LIMIT_S
        while not self.ready and not self.failed and time.monotonic() < deadline:
            time.sleep(0.05)  # a session may end before a cold Ray is up
        if not self.ready:
            return False, "Ray was never joined"
        if self.spare is not None:
            self.spare.kill()
        self.drop_standby(but=standby_gpus)
        for token in list(self.tokens):
            ray.kill(token.actor)
        deadline = time.monotonic() + RELEASE_LIMIT_S
        while remains := self._remains():
            if time.monotonic() > deadline:
                return False, f"left in Ray: {remains}"
            time.sleep(0.02)
        self.leave_standby(standby_gpus)
        ray.shutdown()
        return True, ""

    def _remains(self) -> list[str]:
        """Living actors and placement groups. Those that can be named are ended here, others of this machine by their process:
        Ray Train leaves a nameless one behind a job that was killed, which waits for ever where Ray has no dashboard."""
        from ray._private import state
        from ray._raylet import PlacementGroupID
        from ray.util.placement_group import (
            PlacementGroup,
        )  # `ray.util.placement_group` is a function of that name

        ray = the_ray()
        waiting = {
            token.actor._actor_id.hex() for tokens in self.standby.values() for token in tokens
        }
        for named in ray.util.list_named_actors(all_namespaces=True):
            try:
                actor = ray.get_actor(named["name"], namespace=named["namespace"])
            except ValueError:
                continue
            if actor._actor_id.hex() not in waiting:
                ray.kill(actor)
        groups = [
            name
            for name, group in ray.util.placement_group_table().items()
            if group["state"] not in ("REMOVED",)
        ]
        for name in groups:
            ray.util.remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))
        actors = [
            a
            for a in state.actors().values()
            if a["State"] not in ("DEAD",) and a["ActorID"] not in waiting
        ]
        here = ray.util.get_node_ip_address()
        for pid in [int(a.get("Pid") or 0) for a in actors if a["Address"]["IPAddress"] == here]:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
                    os.kill(pid, signal.SIGKILL)
        return [f"actor {a.get('ActorClassName') or a['ActorID']}" for a in actors] + [
            f"placement group {name}" for name in groups
        ]
