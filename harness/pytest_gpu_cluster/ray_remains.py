"""Ray's books, read without a connection of one's own: whose job is whose, and what was left there.

A test process marks every job that it starts (`job_config`), also those of its subprocesses. What
lives in Ray after such a job has ended (detached actors, among them Serve's, and detached placement
groups) holds devices that the next test waits for.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pytest_gpu_cluster.contract.frozen import dataclass

MARK = "gpu-cluster-process"  # in the metadata of a job: the test process that has started it
SERVE = "serve"  # the namespace of Ray Serve's actors
REPLICA = "SERVE_REPLICA::"  # begins the name of a replica; its application follows


class Job(NamedTuple):
    """A driver that is, or was, connected to Ray."""

    id: str
    process: str  # the `process_name` of who started it; "" for no test process
    ended: bool

    def is_of(self, session: str) -> bool:
        """Return True for a job of a test process of this session."""
        return self.process.startswith(process_name(session, ""))


class Actor(NamedTuple):
    """A living actor."""

    id: str
    job: str
    name: str  # "" for none
    namespace: str
    module: str  # of its class
    kind: str  # the name of its class
    node: str  # the IP address of its machine
    pid: int
    gpus: float

    def __str__(self) -> str:
        kind = f"actor {self.name!r} ({self.kind})" if self.name else f"an actor of {self.kind}"
        return f"{kind}, {self.gpus:g} GPU{'s' * (self.gpus != 1)}" if self.gpus else kind


class Group(NamedTuple):
    """A placement group that was not removed."""

    id: str
    job: str
    name: str

    def __str__(self) -> str:
        return f"placement group {self.name or self.id[:12]!r}"


@dataclass(frozen=True, kw_only=True)
class Remains:
    """What still lives."""

    actors: tuple[Actor, ...] = ()
    groups: tuple[Group, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.actors or self.groups)

    def of_jobs(self, jobs: Iterable[str]) -> Remains:
        """Return the part that belongs to these jobs."""
        names = set(jobs)
        return Remains(
            actors=tuple(actor for actor in self.actors if actor.job in names),
            groups=tuple(group for group in self.groups if group.job in names),
        )

    def of_session(self, session: str, jobs: Iterable[Job], agent: str) -> Remains:
        """Return the part of a session on a Ray that others use: of its `agent` and its tests."""
        return self.of_jobs([agent, *(job.id for job in jobs if job.is_of(session))])

    def of_tests(self) -> Remains:
        """Return what a test is to be told of.

        Ray Data and Ray Train keep detached actors of their own, for the next job, without devices.
        """
        own = [a for a in self.actors if a.module.startswith("ray.") and a.namespace != SERVE]
        if any(actor.gpus for actor in own):
            return self  # a job of theirs that still computes
        return replace(self, actors=tuple(actor for actor in self.actors if actor not in own))

    def lines(self) -> list[str]:
        """Return a text for each: Serve, which has an actor for each of its parts, is one."""
        serve = [actor for actor in self.actors if actor.namespace == SERVE]
        others = [str(actor) for actor in self.actors if actor not in serve]
        if serve:
            replicas = [a.name.removeprefix(REPLICA) for a in serve if a.name.startswith(REPLICA)]
            names = sorted({name.partition("#")[0] for name in replicas})
            others.append("Serve" + (f" with the application {', '.join(names)}" if names else ""))
        return others + [str(group) for group in self.groups]

    def end(self) -> None:
        """Kill the actors and remove the groups; this process is connected to Ray.

        Nameless actors, which Ray cannot be asked for, end by their process where it runs on this
        machine: Ray Train leaves one behind a job that was killed.
        """
        ray = _ray()
        for actor in self.actors:
            if actor.name:
                with contextlib.suppress(ValueError):  # it has ended meanwhile
                    ray.kill(ray.get_actor(actor.name, namespace=actor.namespace))
            elif actor.node == ray.util.get_node_ip_address():
                _kill_worker(actor.pid)
        for group in self.groups:
            ray.util.remove_placement_group(placement_group(group.id))


class Books:
    """Ray's books at an address, read by a client of the head alone: no job begins for it."""

    def __init__(self, address: str) -> None:
        ray = _ray()
        self._state = ray._private.state.GlobalState()
        self._state._initialize_global_state(
            ray._raylet.GcsClientOptions.create(
                address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False
            )
        )

    def close(self) -> None:
        self._state.disconnect()

    def jobs(self) -> list[Job]:
        """Return all jobs since Ray's start."""
        table = self._accessor().get_job_table(
            skip_submission_job_info_field=True, skip_is_running_tasks_field=True
        )
        entries = [_messages().JobTableData.FromString(data) for data in table]
        return [
            Job(each.job_id.hex(), each.config.metadata.get(MARK, ""), each.is_dead)
            for each in entries
        ]

    def remains(self) -> Remains:
        """Return the actors and placement groups that live now, whoever owns them."""
        return Remains(actors=tuple(self._actors()), groups=tuple(self._groups()))

    def _actors(self) -> Iterator[Actor]:
        table = _messages().ActorTableData
        for data in self._accessor().get_actor_table(None, None):
            each = table.FromString(data)
            if each.state != table.ActorState.DEAD:
                yield Actor(
                    each.actor_id.hex(),
                    each.job_id.hex(),
                    each.name,
                    each.ray_namespace,
                    each.function_descriptor.python_function_descriptor.module_name,
                    each.class_name,
                    each.address.ip_address,
                    each.pid,
                    each.required_resources.get("GPU", 0.0),
                )

    def _groups(self) -> Iterator[Group]:
        table = _messages().PlacementGroupTableData
        for data in self._accessor().get_placement_group_table():
            each = table.FromString(data)
            if each.state != table.PlacementGroupState.REMOVED:
                yield Group(each.placement_group_id.hex(), each.creator_job_id.hex(), each.name)

    def _accessor(self) -> Any:
        return self._state._connect_and_get_accessor()


def end_remains_of(
    address: str, belongs: Callable[[Job], bool], *, connect: Callable[[], object] = lambda: None
) -> Remains:
    """End what the jobs left for which `belongs` is true, and return it.

    `connect` connects this process to Ray; it is called when there is something to end.
    """
    books = Books(address)
    try:
        jobs = [job.id for job in books.jobs() if belongs(job)]
        found = books.remains().of_jobs(jobs).of_tests() if jobs else Remains()
    finally:
        books.close()
    if found:
        connect()
        found.end()
    return found


def process_name(session: str, worker: str) -> str:
    """Return the name of a test process that no other session's has, on whatever Ray."""
    return f"{session}/{worker}"


def job_config(process: str, runtime_env: Mapping[str, object]) -> Mapping[str, object]:
    """Return what every job of a test process has, as Ray takes it from the environment."""
    return {"runtime_env": runtime_env, "metadata": {MARK: process}}


def _kill_worker(pid: int) -> None:
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
            os.kill(pid, signal.SIGKILL)


def placement_group(group: str) -> Any:
    """Return Ray's handle of a placement group by its id."""
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup  # there is a function of that name, too

    return PlacementGroup(PlacementGroupID(bytes.fromhex(group)))


def _ray() -> Any:
    """Return Ray, imported late, and untyped: its stubs lag behind."""
    import ray

    return ray


def _messages() -> Any:
    from ray.core.generated import gcs_pb2

    return gcs_pb2
