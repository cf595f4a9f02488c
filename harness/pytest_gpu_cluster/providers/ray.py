"""A job on a Ray cluster that is there, by its Jobs REST API.

The job's working directory is this package, its entrypoint the driver (`node/job.py`), and its
submission id the cluster's. What is sent there can be read by every user of that Ray: no secret is
in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shlex
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, cast

from pytest_gpu_cluster.contract.errors import (
    EnvironmentBuildError,
    HarnessError,
    InfrastructureError,
    RequestError,
    TeardownError,
)
from pytest_gpu_cluster.contract.failures import NOT_TESTS, FailureClass
from pytest_gpu_cluster.contract.fields import JsonObject
from pytest_gpu_cluster.contract.request import Shape
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.contract.specs import DriverSpec
from pytest_gpu_cluster.providers import (
    BootScript,
    ClusterRef,
    ClusterSpec,
    ClusterState,
    LaunchPlan,
    Owned,
    Patience,
)
from pytest_gpu_cluster.providers.ray_api import Job, JobStatus, RayApi
from pytest_gpu_cluster.settings_keys import Key, number, read_text

ENTRY = "pytest_gpu_cluster.node.job"
MARK = "gpu-cluster"  # in the metadata of a job: the owner of the cluster
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"  # Ray's own
LEAST_RAY = (2, 60)
STOP_WAIT_S = 45  # for the driver to end what is on the nodes, before Ray kills it
CLOSE_LIMIT_S = STOP_WAIT_S + 15
BOOT_S = 60.0  # for keeper and fork server to be up, once there is a place for them
SURE_S = 5.0  # until a job that is gone has to be gone again
OF_ENVIRONMENT = ("RUNTIME_ENV_SETUP_FAILURE",)  # among Ray's own errors of a job
NO_COMMAND = 127  # the shell's exit code: there is no Python
OURS = "gpu-cluster: "  # begins a line of the driver
DEFAULTS: Mapping[str, object] = {
    "token-env": "RAY_AUTH_TOKEN",
    "headers": {},
    "resources": {},
    "labels": {},
    "wait-minutes": 10.0,
}
LINES = 30  # of a job's log, in an error


def pairs(expected: str, of: type[str] | type[float]) -> Key:
    """Return a key for a table of names with texts, or with numbers above 0."""

    def read(value: object) -> Mapping[str, str | float]:
        if not isinstance(value, dict):
            raise ValueError
        check = read_text if of is str else number(zero=False).read
        return {str(name): cast("str | float", check(item)) for name, item in value.items()}

    return Key(expected=expected, read=read, from_text=json.loads)


class RayProvider:
    """Clusters that are jobs on a Ray cluster of somebody's."""

    name = "ray"
    keys: ClassVar[Mapping[str, Key]] = {
        "address": Key(expected='the URL of a dashboard: "http://head:8265"', read=read_text),
        "token-env": Key(expected="the name of an environment variable", read=read_text),
        "headers": pairs("a table of HTTP headers", str),
        "cpus-per-node": number(zero=False),
        "memory-gib": number(zero=False),
        "resources": pairs("a table of Ray's resources and their numbers", float),
        "labels": pairs("a table of the labels of Ray's nodes", str),
        "wait-minutes": number(zero=True),
    }

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        table = self._table = {**DEFAULTS, **settings.provider_settings.get("ray", {})}
        self._address = str(table.get("address") or environ.get(ADDRESS_VARIABLE, "")).rstrip("/")
        self._where = {"address": self._address}
        self._labels = cast("Mapping[str, str]", table["labels"])
        self._wait_s = float(cast("float", table["wait-minutes"])) * 60
        self._api = RayApi(
            self._address,
            token=environ.get(str(table["token-env"]), ""),
            headers=cast("Mapping[str, str]", table["headers"]),
        )

    def plan(self, spec: ClusterSpec) -> LaunchPlan:
        """Return the plan of a job. Raises RequestError."""
        if not self._address:
            raise RequestError(
                "provider ray has no address",
                remedy=f"set [tool.gpu-cluster.ray] address, or {ADDRESS_VARIABLE},"
                ' e.g. "http://head:8265"',
            )
        if spec.gpus_per_node in ("auto", 0):
            raise RequestError(
                f"gpus-per-node is {spec.gpus_per_node!r}, and a Ray cluster has other users",
                remedy="set gpus-per-node to the GPUs that each node is to give",
            )
        bundle = ", ".join(f"{name} {count:g}" for name, count in self._bundle(spec).items())
        return LaunchPlan(
            spec=spec,
            shape=Shape(
                owner=self._address,
                environment="",
                nodes=spec.nodes,
                gpus_per_node=spec.gpus_per_node,
                facts={"address": self._address, "bundle": bundle, "labels": str(self._labels)},
            ),
            environment=f"that of the nodes of {self._address}",
            where=self._where,
            patience=Patience(boot_s=self._wait_s / 2 + BOOT_S, sure_s=SURE_S),
            examine=partial(self._examine, spec, bundle),
        )

    def _examine(self, spec: ClusterSpec, bundle: str) -> Sequence[str]:
        """Ask the dashboard; return the lines of the plan. Raises HarnessError."""
        version = self._api.version()
        numbers = version.split(".")[:2]
        if all(each.isdigit() for each in numbers) and tuple(map(int, numbers)) < LEAST_RAY:
            raise EnvironmentBuildError(
                f"Ray at {self._address} is {version}, and 2.60 or later is needed",
                remedy="use a cluster of a later Ray",
            )
        labels = " ".join(f"{name}={value}" for name, value in self._labels.items())
        most = f"after {spec.deadline_s / 60:g}"
        limits = f"waits {self._wait_s / 60:g} minutes for them, holds none when idle, ends"
        return (
            f"provider  ray, a job at {self._address} (Ray {version})",
            f"nodes     {spec.nodes}, each gives {bundle}{labels and f'; labels {labels}'}",
            f"limits    {limits} after {spec.idle_s / 60:g} idle minutes, {most} in any case",
        )

    def launch(self, plan: LaunchPlan, boot: BootScript, tell: Callable[[str], None]) -> None:
        """Submit the job, unless Ray knows one of this id. Raises HarnessError."""
        api, cluster = self._api, plan.spec.token
        try:
            name, content = package(boot.code)
        except OSError as problem:
            raise InfrastructureError(
                f"the code for the cluster cannot be read: {problem}",
                remedy="install pytest-gpu-cluster again",
            ) from problem
        if not api.has_package(name):
            tell(f"sends {len(content) / 2**10:.0f} KiB of code to {self._address}")
            api.put_package(name, content)
        driver = DriverSpec(
            boot=boot.spec,
            bundle=self._bundle(plan.spec),
            labels=self._labels,
            wait_s=self._wait_s,
            pytest=plan.spec.pytest_version,
        )
        spec = shlex.quote(json.dumps(driver.to_json()))
        request: JsonObject = {
            "submission_id": cluster,
            "entrypoint": f'exec "$(command -v python || command -v python3)" -m {ENTRY} {spec}',
            "runtime_env": {
                "working_dir": f"gcs://{name}",
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
            },
            "metadata": {MARK: cluster},
        }
        try:
            api.submit(request)
        except HarnessError:
            if api.job(cluster) is None:  # else it was there, or its answer was lost
                raise

    def state(self, ref: ClusterRef) -> ClusterState:
        """Return the state of the job; of one that has ended, with the class of its failure."""
        try:
            job = self._at(ref).job(ref.id)
        except HarnessError as problem:
            return ClusterState(state="unknown", reason=problem.what)
        if job is None:
            return ClusterState(state="gone", reason=f"{self._address} knows no such job")
        match job.status:
            case JobStatus.PENDING:
                return ClusterState(state="starting", reason=job.message)
            case JobStatus.RUNNING:
                return ClusterState(state="running")
        return ClusterState(
            state="gone", reason=_reason(self._api, job), failure_class=_failure_class(job)
        )

    def close(self, ref: ClusterRef, *, now: bool = False) -> None:
        """Stop the job and wait for its end: then its devices are free. Raises TeardownError."""
        deadline = time.monotonic() + CLOSE_LIMIT_S
        try:
            api = self._at(ref)
            job, stopped = api.job(ref.id), False
            while job is not None and not job.status.is_terminal:
                if not stopped:
                    api.stop(ref.id)
                    stopped = True
                if time.monotonic() > deadline:
                    raise TeardownError(
                        f"job {ref.id} at {self._address} is still {job.status} after"
                        f" {CLOSE_LIMIT_S} s",
                        remedy=f"ray job stop {ref.id} --address {self._address}",
                    )
                time.sleep(0.2)
                job = api.job(ref.id)
        except TeardownError:
            raise
        except HarnessError as problem:
            raise TeardownError(
                f"job {ref.id} may still run: {problem.what}",
                remedy=f"ray job stop {ref.id} --address {self._address}",
            ) from problem

    def owned(self) -> Iterable[Owned]:
        """Yield a cluster for each job of ours that has not ended."""
        if not self._address:
            return
        for job in self._api.jobs():
            if job.metadata.get(MARK) == job.id and not job.status.is_terminal:
                yield Owned(ref=ClusterRef(provider=self.name, id=job.id, where=self._where))

    def _at(self, ref: ClusterRef) -> RayApi:
        """Return the dashboard that a record names. Raises RequestError for another than ours.

        Others may write a record: the token goes to the address of the settings alone.
        """
        address = ref.where.get("address", self._address)
        if address != self._address or not address:
            raise RequestError(
                f"cluster {ref.id} is at {address}, and the settings name"
                f" {self._address or 'no address'}",
                remedy=f"run this with {ADDRESS_VARIABLE}={address}, if it is yours",
            )
        return self._api

    def _bundle(self, spec: ClusterSpec) -> dict[str, float]:
        """Return what each node gives, as Ray names it."""
        gpus = float(spec.gpus_per_node)
        cpus = cast("float", self._table.get("cpus-per-node", gpus))
        gib = cast("float", self._table.get("memory-gib", 0.0))
        more = cast("Mapping[str, float]", self._table["resources"])
        bundle = {"GPU": gpus, "CPU": cpus, "memory": gib * 2**30, **more}
        return {name: count for name, count in bundle.items() if count}


def _reason(api: RayApi, job: Job) -> str:
    """Return the last lines of what a job said, the oldest first.

    Ray's own message has but ten of them.
    """
    text = job.message
    with contextlib.suppress(HarnessError):
        text = api.log(job.id) or text
    lines = [line for line in text.strip().splitlines() if line.strip()]
    last = max((n for n, line in enumerate(lines) if line.startswith(OURS)), default=-LINES)
    return "\n".join(lines[last:]).removeprefix(OURS) or f"its job was {job.status.lower()}"


def _failure_class(job: Job) -> FailureClass:
    """Return the class of what ended a job: the driver's exit code, or what Ray itself says."""
    if job.error in OF_ENVIRONMENT:
        return FailureClass.ENVIRONMENT
    for each in NOT_TESTS:
        if job.exit_code == each.exit_code:
            return each
    return FailureClass.ENVIRONMENT if job.exit_code == NO_COMMAND else FailureClass.INFRASTRUCTURE


def package(code: Mapping[str, Path]) -> tuple[str, bytes]:
    """Return the archive of this package, which is the same for the same files, and its name."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
        for relative in sorted(code):
            entry = zipfile.ZipInfo(relative)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, code[relative].read_bytes(), zipfile.ZIP_DEFLATED)
    content = body.getvalue()
    return f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:16]}.zip", content
