"""The driver: the entrypoint of a job on a Ray that is there, and the parent of all that is ours.

    driver ─┬─ placement group: the same resources on each of our nodes
            └─ a node actor on each ── guard ── keeper

Nothing of it is detached: it ends with the driver. The driver ends with the keeper of the first
node, with its job, at its deadline, or when Ray's head is gone. Its exit code is that of a failure
class, 0 once a session was served or nothing was asked.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_gpu_cluster.contract.errors import (
    CapacityError,
    EnvironmentBuildError,
    HarnessError,
    InfrastructureError,
    LimitError,
)
from pytest_gpu_cluster.contract.ray_place import NAMESPACE, RayNode, RayPlace, Scope
from pytest_gpu_cluster.contract.specs import ClusterSecrets, DriverSpec, KeeperSpec
from pytest_gpu_cluster.node.node_actor import VARIABLES, GuardEnd, NodeActor
from pytest_gpu_cluster.node.node_facts import Facts, check_versions, common_place
from pytest_gpu_cluster.node.ray_view import free_gpus, head_answers, ray_status

TICK_S = 0.5
CALL_LIMIT_S = 60.0  # for an actor to start, and to answer
CLOSE_LIMIT_S = 40.0  # for all node actors to end their nodes
SAY_S = 10.0  # between two lines about what is waited for
MARGIN_S = 60.0  # of the cluster's deadline, for its keepers to act on it first
HEAD_GONE_S = 30.0  # without an answer of Ray's head, which may be started again


class _Told(Exception):  # noqa: N818 - no error
    """The driver was told to end while it waited for nodes to start."""


class Driver:
    """One cluster on a Ray that is there."""

    def __init__(self, spec: DriverSpec) -> None:
        self.spec, self.secrets = spec, ClusterSecrets.new()
        self.told = threading.Event()  # to end
        self.closing = False
        self.ray: Any = None  # untyped: its stubs lag behind
        self.address = ""  # of its head
        self.group: Any = None
        self.actors: list[Any] = []

    def run(self) -> None:
        """Hold the cluster until it is over. Raises HarnessError: why it could not be, or ended."""
        import ray

        self.ray = ray
        namespace = f"{NAMESPACE}-{self.spec.boot.cluster}"
        ray.init(namespace=namespace, log_to_driver=False, logging_level=logging.ERROR)
        signal.signal(signal.SIGTERM, lambda *_: self.told.set())  # after Ray has set its own
        self.address = ray.get_runtime_context().gcs_address
        try:
            self._start(self._reserve(), namespace)
            self._watch()
        except _Told:
            _say("told to end")
        finally:
            self._close()

    # -- the beginning -----------------------------------------------------------------------------

    def _reserve(self) -> Sequence[str]:
        """Return Ray's id of a node for each bundle, once all are ours. Raises CapacityError."""
        from ray.util.placement_group import placement_group, placement_group_table

        spec, nodes = self.spec, self.spec.boot.nodes
        self.group = placement_group(
            [dict(spec.bundle)] * nodes,
            strategy="STRICT_SPREAD" if nodes > 1 else "PACK",
            bundle_label_selector=[dict(spec.labels)] * nodes if spec.labels else None,
        )
        began = said = time.monotonic()
        while True:
            table = placement_group_table(self.group)
            if table["state"] == "CREATED":
                found: Mapping[int, str] = table["bundles_to_node_id"]
                return [found[number] for number in range(nodes)]
            now = time.monotonic()
            if now - began > spec.wait_s:
                print(ray_status(self.ray))
                raise CapacityError(
                    f"Ray had no {self._wanted()} within {spec.wait_s / 60:g} minutes;"
                    f" {free_gpus(self.ray)}",
                    remedy="ask for less, raise wait-minutes in [tool.gpu-cluster.ray],"
                    " or end what holds them",
                )
            if now - said > SAY_S:
                said = now
                _say(f"waits for {self._wanted()}; {free_gpus(self.ray)}")
            if self.told.wait(0.1):
                raise _Told

    def _wanted(self) -> str:
        each = ", ".join(f"{name} {count:g}" for name, count in self.spec.bundle.items())
        labels = "".join(f", label {name}={value}" for name, value in self.spec.labels.items())
        nodes = self.spec.boot.nodes
        return f"{nodes} node{'s' * (nodes != 1)} with {each}{labels} free"

    def _start(self, nodes: Sequence[str], namespace: str) -> None:
        """Start a keeper on each node. Raises EnvironmentBuildError, InfrastructureError."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        kind = self.ray.remote(num_cpus=0, num_gpus=0, max_restarts=0, max_concurrency=4)(NodeActor)
        silence_s = self.spec.boot.waits.grace_s
        for node in nodes:
            # Not in the placement group, which is dropped for a test that drives Ray.
            strategy = NodeAffinitySchedulingStrategy(node, soft=False)
            options = {"scheduling_strategy": strategy, "runtime_env": {"env_vars": VARIABLES}}
            self.actors.append(kind.options(**options).remote(silence_s))
        facts = [Facts.from_json(each) for each in self._get([a.facts for a in self.actors])]
        check_versions(facts, self.spec.pytest)
        base = common_place(facts)
        cluster = base / self.spec.boot.cluster
        scope = Scope(
            namespace=namespace,
            nodes=tuple(
                RayNode(id=node, directory=str(cluster / f"n{number}"), gpus=gpus)
                for number, (node, gpus) in enumerate(zip(nodes, self._gpus(), strict=True))
            ),
            bundle=dict(self.spec.bundle),
            group=self.group.id.hex(),
            wait_s=self.spec.wait_s,
        )
        starts = []
        for number, (actor, each) in enumerate(zip(self.actors, facts, strict=True)):
            keeper = KeeperSpec(
                boot=self.spec.boot,
                secrets=self.secrets,
                directory=Path(scope.nodes[number].directory),
                ray_directory=Path(scope.nodes[number].directory),
                head=number == 0,
                ip=each.ip,
                ray=RayPlace(address=self.address, scope=scope),
            )
            starts.append(actor.start.remote(keeper.to_json()))
        self._await(starts)
        for each, place in zip(facts, scope.nodes, strict=True):
            versions = ", ".join(f"{name} {version}" for name, version in each.versions.items())
            _say(f"{each.host}: GPUs {', '.join(place.gpus)}; python {each.python}, {versions}")

    def _gpus(self) -> list[tuple[str, ...]]:
        """Return the ids of the devices in each bundle, which Ray tells who holds them all."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        count = self.spec.bundle.get("GPU", 0)
        if not count:
            return [()] * len(self.actors)
        task = self.ray.remote(num_cpus=0, num_gpus=count, max_retries=0)(held_gpus)
        places = [
            PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=number)
            for number in range(len(self.actors))
        ]
        held = [task.options(scheduling_strategy=place).remote() for place in places]
        return [tuple(ids) for ids in self._await(held)]

    def _get(self, methods: Sequence[Any]) -> list[Any]:
        return self._await([method.remote() for method in methods])

    def _await(self, references: Sequence[Any], limit_s: float = CALL_LIMIT_S) -> list[Any]:
        """Return the answers of actors. Raises InfrastructureError, EnvironmentBuildError."""
        deadline, waiting = time.monotonic() + limit_s, list(references)
        while waiting:
            _, waiting = self.ray.wait(waiting, num_returns=len(waiting), timeout=TICK_S)
            if self.told.is_set() and not self.closing:
                raise _Told
            if waiting and time.monotonic() > deadline:
                raise _no_answer(f"{len(waiting)} of {len(references)} after {limit_s:.0f} s")
        try:
            answers: list[Any] = self.ray.get(list(references))
        except self.ray.exceptions.RuntimeEnvSetupError as problem:
            raise EnvironmentBuildError(
                f"Ray could not set up our code on a node: {problem}",
                remedy="look at the log of the runtime environment agent there",
            ) from problem
        except self.ray.exceptions.RayError as problem:
            raise _no_answer(str(problem).strip().splitlines()[-1]) from problem
        return answers

    # -- while it lives ----------------------------------------------------------------------------

    def _watch(self) -> None:
        """Wait for the end of the first node's keeper, or for a reason to end it.

        Raises InfrastructureError, LimitError, and the failure of that keeper.
        """
        began = answered = time.monotonic()
        asked: dict[int, Any] = {}  # a question to each node that has not ended
        ended: set[int] = set()
        while not self.told.is_set():
            for number, actor in enumerate(self.actors):
                if number not in asked and number not in ended:
                    asked[number] = actor.ended.remote()
            self.told.wait(TICK_S)
            for number in [each for each in asked if self._has_answer(asked[each])]:
                if (end := self._end_of(asked.pop(number))) is not None:
                    ended.add(number)
                    _say(f"node {number} has ended, with {end.status}")
                    if number == 0:
                        _raise_failure(end)
                        return
            now = time.monotonic()
            if head_answers(self.address):
                answered = now
            elif now - answered > HEAD_GONE_S:
                raise InfrastructureError(
                    f"Ray's head did not answer for {HEAD_GONE_S:.0f} s", remedy="start Ray again"
                )
            if now - began > self.spec.boot.deadline_s + MARGIN_S:
                raise LimitError("the cluster's deadline passed", remedy="raise max-minutes")

    def _has_answer(self, reference: Any) -> bool:
        return bool(self.ray.wait([reference], timeout=0)[0])

    def _end_of(self, answer: Any) -> GuardEnd | None:
        """Return the end of a node by an answer of its actor; None while it lives."""
        try:
            body = self.ray.get(answer)
        except self.ray.exceptions.RayError as problem:
            return GuardEnd(status=1, tail=f"its actor was lost: {problem}".splitlines()[0])
        return None if body is None else GuardEnd.from_json(body)

    # -- the end -----------------------------------------------------------------------------------

    def _close(self) -> None:
        """End every node, then give the devices back."""
        from ray.util import remove_placement_group

        self.closing = True
        with contextlib.suppress(Exception):  # whatever does not answer ends with this process
            self._await([actor.close.remote() for actor in self.actors], CLOSE_LIMIT_S)
        with contextlib.suppress(Exception):
            if self.group is not None and head_answers(self.address):
                remove_placement_group(self.group)


def held_gpus() -> list[str]:
    """Return the ids of the devices that Ray has given to this task."""
    import ray

    ids: list[str] = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return ids


def _no_answer(why: str) -> InfrastructureError:
    return InfrastructureError(
        f"nodes do not answer: {why}",
        remedy="look at `ray status` and at the logs of the nodes; then run again",
    )


def _raise_failure(end: GuardEnd) -> None:
    """Raise the failure of a keeper that has not ended in order."""
    if end.status == 0:
        return
    kinds = (EnvironmentBuildError, CapacityError, LimitError)
    kind = next((k for k in kinds if k.failure_class.exit_code == end.status), InfrastructureError)
    raise kind(
        f"the keeper of the first node ended with {end.status}; its log ends:\n{end.tail}",
        remedy="see its last lines",
    )


def _say(text: str) -> None:
    print(f"gpu-cluster: {text}", flush=True)


def main(text: str) -> int:
    """Run the driver of a DriverSpec, as JSON; return its exit code."""
    driver = Driver(DriverSpec.from_json(json.loads(text)))
    try:
        driver.run()
    except HarnessError as problem:
        _say(str(problem))
        return problem.exit_code
    return 0
