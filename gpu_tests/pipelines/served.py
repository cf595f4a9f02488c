"""Parcel inspection on Ray Serve: three uploads, eight models that each read some, one decision.

A model starts as soon as its own uploads have arrived, beside the others, in a process that has the
resources of its group: the nodes of `cpu_models`, the GPUs, the nodes of `api_models`. One process
holds all cases: a process per case would cost 0.6 s to start.
"""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayTaskError

from .cases import Answer, CaseError, Cases, Decided, RefusedUploadError
from .parcel import MODELS, ActorOptions, Upload, specimen

with warnings.catch_warnings():
    # Ray 2.60 declares its options in a way that pydantic has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from ray import serve

APP = "parcel-inspection"
ANSWER_S = 30.0  # beyond a case's own timeout, for an answer of the process that holds the cases


class ModelReplica:
    """One model in a process of its own.

    `simulated_s`: it waits for a simulated device or service. Calls wait concurrently; one that is
    cancelled ends its wait.
    """

    def __init__(self, name: str, simulated_s: float, cuda: bool) -> None:
        model = MODELS[name]
        self.function = (
            partial(model.function, device="cuda" if cuda else "cpu")
            if model.group == "gpu"
            else model.function
        )
        self.node = ray.get_runtime_context().get_node_id()
        self.simulated_s = simulated_s
        self.started = self.running = 0

    async def __call__(self, *inputs: Upload) -> Answer:
        began = time.time()
        self.started += 1
        self.running += 1
        try:
            await asyncio.sleep(self.simulated_s)
            return Answer(value=self.function(*inputs), began=began, node=self.node)
        finally:
            self.running -= 1

    async def calls(self) -> tuple[int, int]:
        """Return the number of calls since the process started, and of those still running."""
        return self.started, self.running

    async def simulate(self, seconds: float) -> None:
        """Change the seconds that each call waits."""
        self.simulated_s = seconds


class Client:
    """A client of the served cases and models, in a process that has joined the cluster.

    Threads may share it.
    """

    def __init__(self, cases: Any) -> None:
        self.cases = cases

    def upload(self, case: str, kind: str, content: Upload) -> None:
        """Upload as Cases.upload."""
        self.result(self.cases.upload.remote(case, kind, content))

    def decision(self, case: str, timeout_s: float) -> Decided:
        """Decide as Cases.decision."""
        decided: Decided = self.result(
            self.cases.decision.remote(case, timeout_s), timeout_s + ANSWER_S
        )
        return decided

    def answered(self, case: str) -> set[str]:
        """Return the names of Cases.answered."""
        return set(self.result(self.cases.answered.remote(case)))

    def open_cases(self) -> int:
        """Return the number of Cases.count."""
        return int(self.result(self.cases.count.remote()))

    def calls(self) -> dict[str, tuple[int, int]]:
        """Return the numbers of ModelReplica.calls for each model."""
        responses = {name: serve.get_deployment_handle(name, APP).calls.remote() for name in MODELS}
        return {name: self.result(response) for name, response in responses.items()}

    def simulate(self, model: str, seconds: float) -> None:
        """Let a model wait so long from now on, as a device or a service that hangs."""
        self.result(serve.get_deployment_handle(model, APP).simulate.remote(seconds))

    def result(self, response: Any, timeout_s: float = ANSWER_S) -> Any:
        """Return the result of a response.

        Raises CaseError and RefusedUploadError as the process raised them; of any other exception
        Ray shows the remote traceback as well.
        """
        try:
            return response.result(timeout_s=timeout_s)
        except RayTaskError as error:
            if isinstance(error.cause, CaseError | RefusedUploadError):
                raise error.cause from None
            raise


@contextmanager
def serving(
    simulated_s: Mapping[str, float], *, gpus: float = 0.25, cuda: bool = False
) -> Iterator[Client]:
    """Serve the app on the Ray cluster of this process, until the end of `with`.

    Serve itself is shut down when no other app is left. The cluster has nodes with the resources
    `cpu_models` and `api_models`, 3 and 2 or more. `gpus`: of a GPU, for each of three models;
    `cuda`: they are real. One case is decided before the client is yielded, so that the start is
    not measured.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="Disabled")
    try:
        models = {
            name: bind_deployment(
                ModelReplica, name, model.options(gpus), name, simulated_s.get(name, 0.0), cuda
            )
            for name, model in MODELS.items()
        }
        app = bind_deployment(Cases, "cases", {"num_cpus": 0}, models)
        quiet = {"enable_access_log": False}
        client = Client(serve.run(app, name=APP, route_prefix=None, logging_config=quiet))
        for kind, content in specimen(0).items():
            client.upload("the first", kind, content)
        client.decision("the first", timeout_s=60)
        yield client
    finally:
        serve.delete(APP)
        if not serve.status().applications:
            serve.shutdown()  # type: ignore[no-untyped-call]  # ray


def bind_deployment(
    deployed_class: type, name: str, resources: ActorOptions, *arguments: object
) -> Any:
    """Bind a deployment of one process.

    It accepts every call at once, and ends as soon as none is running.
    """
    deployment: Any = serve.deployment(
        deployed_class,
        name=name,
        ray_actor_options=dict(resources),
        max_ongoing_requests=10_000,
        graceful_shutdown_wait_loop_s=0.1,
    )
    return deployment.bind(*arguments)


def decision_latency_s(
    client: Client, case: str, uploads: Mapping[str, Upload], *, timeout_s: float = 60
) -> tuple[float, Decided]:
    """Return the seconds from the last upload to the decision, when all three come back to back."""
    *first, last = uploads.items()
    for kind, content in first:
        client.upload(case, kind, content)
    began = time.monotonic()
    client.upload(case, *last)
    decided = client.decision(case, timeout_s)
    return time.monotonic() - began, decided
