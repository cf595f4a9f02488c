"""Three uploads of a case, eight models that each want some of them, one decision: parcel inspection, on Ray Serve.

A case is a photograph from the air, the registry's plan and the surveyor's report. A model starts as soon as its own
uploads are there, beside the others, in a process that has the resources of its group: the nodes of `cpu_models`, the
GPUs, the nodes of `api_models`. One process keeps all cases: one of its own for each would cost 0.6 s to start.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import RayTaskError

from .tiles import draw

with warnings.catch_warnings():
    warnings.simplefilter(
        "ignore", DeprecationWarning
    )  # Ray 2.60 declares its options in a way that pydantic has given up
    from ray import serve

if TYPE_CHECKING:
    from torch import Tensor, nn

APP = "parcel-inspection"
UPLOADS = ("photo", "plan", "report")
MOST_GREEN = 20  # by how much green must outweigh red and blue to be leaves
ANSWER_S = 30.0  # beyond a case's own timeout, until the process that keeps the cases is given up

Photo = npt.NDArray[np.uint8]  # (px, px, 3), RGB, px a multiple of 16
Plan = npt.NDArray[np.uint8]  # (px, px), above 0 where the registry has a crown
Upload = npt.NDArray[np.uint8] | str


class CaseError(Exception):
    """A case that comes to no decision, and why. It is forgotten: its next upload begins it anew."""


class MissingUploadError(CaseError):
    """The time was over before all three uploads were there."""


class LateModelError(CaseError):
    """The time was over before all eight models had answered."""


class FailedModelError(CaseError):
    """A model raised, or its process died."""


class RefusedUploadError(Exception):
    """An upload that the case has already, with other content, or that no case has. The case is as it was before."""


def sharpness(photo: Photo) -> float:
    """The mean step of brightness between neighbours in a row."""
    return float(np.abs(np.diff(photo.sum(2, dtype=np.int64), axis=1)).mean())


def outline(plan: Plan) -> float:
    """The length of all borders between crown and ground, in pixels."""
    crown = plan > 0
    return float((crown[1:] != crown[:-1]).sum() + (crown[:, 1:] != crown[:, :-1]).sum())


def words(report: str) -> float:
    return float(len(report.split()))


def crowns(photo: Photo, device: str = "cpu") -> float:
    """The mean probability of a crown, to six digits: in double precision, so that they are the same on every device."""
    import torch

    from .network import one_thread

    with torch.inference_mode(), one_thread():
        image = torch.tensor(photo, device=device).permute(2, 0, 1)[None].double() / 255
        return round(float(torch.sigmoid(network(device)(image)).mean()), 6)


@cache
def network(device: str) -> nn.Module:
    """CrownNet with weights from a seed, and the generator as it was."""
    import torch

    from .network import CrownNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return CrownNet().double().to(device).eval()


def leaves(photo: Photo, device: str) -> Tensor:
    """Where it is green, bool, (px, px). In whole numbers, which every device counts alike."""
    import torch  # here, not above: it takes 1.7 s, and only three of nine processes need it

    red, green, blue = torch.tensor(photo, device=device).int().unbind(-1)
    return 2 * green - red - blue > MOST_GREEN


def cover(photo: Photo, device: str = "cpu") -> float:
    """The share of the parcel that is green."""
    return int(leaves(photo, device).sum()) / photo[..., 0].size


def change(photo: Photo, plan: Plan, device: str = "cpu") -> float:
    """The share of the parcel where green and plan contradict each other. Raises ValueError when they differ in size."""
    if photo.shape[:2] != plan.shape:
        raise ValueError(f"the photo is {photo.shape[:2]} pixels, the plan {plan.shape}")
    green = leaves(photo, device).cpu().numpy()
    return int((green != (plan > 0)).sum()) / plan.size


def registry(plan: Plan, report: str) -> float:
    """How far the plan is from the share of crowns that is registered for the parcel of the report."""
    registered = zlib.crc32(field(report, "parcel").encode()) % 100 / 100
    return round(abs(float((plan > 0).mean()) - registered), 6)


def weather(report: str) -> float:
    """The cloud cover, in eighths, on the day of the flight."""
    return float(zlib.crc32(field(report, "flown").encode()) % 9)


def field(report: str, name: str) -> str:
    """What stands behind `name:` in a line of the report. Raises ValueError when no line has it."""
    if not (found := re.search(rf"^{name}: *(\S.*)$", report, re.MULTILINE)):
        raise ValueError(f"the report has no line `{name}: ...`")
    return found[1]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A pure function of its triggers, in their order; one of the GPU group also takes `device`, `cpu` or `cuda`."""

    group: str
    triggers: tuple[str, ...]
    function: Callable[..., float]

    def options(self, gpus: float) -> dict[str, Any]:
        """What Ray is asked for: `gpus` of a GPU, or one of the group's own resource. No core, so that eight fit on two."""
        return {
            "num_cpus": 0,
            **(
                {"num_gpus": gpus}
                if self.group == "gpu"
                else {"resources": {f"{self.group}_models": 1}}
            ),
        }


MODELS: Mapping[str, Model] = {
    "sharpness": Model(group="cpu", triggers=("photo",), function=sharpness),
    "outline": Model(group="cpu", triggers=("plan",), function=outline),
    "words": Model(group="cpu", triggers=("report",), function=words),
    "crowns": Model(group="gpu", triggers=("photo",), function=crowns),
    "cover": Model(group="gpu", triggers=("photo",), function=cover),
    "change": Model(group="gpu", triggers=("photo", "plan"), function=change),
    "registry": Model(group="api", triggers=("plan", "report"), function=registry),
    "weather": Model(group="api", triggers=("report",), function=weather),
}


@dataclass(frozen=True, kw_only=True)
class Decision:
    """`values`: of each model, in the order of MODELS. `score`: 0 would be a parcel as it is registered."""

    verdict: str
    score: float
    values: tuple[tuple[str, float], ...]


def decide(values: Mapping[str, float]) -> Decision:
    """Raises KeyError when a model's value is not there."""
    known = tuple((name, values[name]) for name in MODELS)
    doubt = [
        values["weather"] / 8,
        1 / (1 + values["sharpness"]),
        1 / (1 + values["words"]),
        1 / (1 + values["outline"]),
    ]
    score = math.fsum(
        [
            values["change"],
            values["registry"],
            abs(values["crowns"] - values["cover"]),
            *(one / 4 for one in doubt),
        ]
    )
    return Decision(verdict="accept" if score < 1 else "inspect", score=score, values=known)


def specimen(seed: int) -> dict[str, Upload]:
    """The uploads of a case: a landscape that is drawn, and a plan of the year before, one crown of which is gone."""
    photo, plan = draw(17, seed, 0, seed=seed)
    plan[:, : 8 + seed % 24] = 0
    return {
        "photo": photo,
        "plan": plan,
        "report": f"parcel: 17-{seed:03d}\nflown: 2026-06-{1 + seed % 28:02d}\n"
        + "An oak. " * seed,
    }


def one_after_another(uploads: Mapping[str, Upload], simulated_s: Mapping[str, float]) -> Decision:
    """The plain loop: when all uploads are there, model by model; each waits for `simulated_s`, if it is named there."""
    values = {}
    for name, model in MODELS.items():
        time.sleep(simulated_s.get(name, 0.0))
        values[name] = model.function(*(uploads[kind] for kind in model.triggers))
    return decide(values)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`began`: unix seconds by the clock of `node`, the id of the Ray node where the model ran."""

    value: float
    began: float
    node: str


@dataclass(frozen=True, kw_only=True)
class Decided:
    """`arrived`: of each upload, unix seconds by the clock of the process that keeps the cases."""

    decision: Decision
    answers: Mapping[str, Answer]
    arrived: Mapping[str, float]


class Host:
    """One model in a process of its own. `simulated_s`: it waits for a device or a service that is not there; calls wait
    beside each other, and one that is cancelled ends there."""

    def __init__(self, name: str, simulated_s: float, cuda: bool) -> None:
        model = MODELS[name]
        self.function = (
            partial(model.function, device="cuda" if cuda else "cpu")
            if model.group == "gpu"
            else model.function
        )
        self.node = ray.get_runtime_context().get_node_id()
        self.simulated_s = simulated_s
        self.begun = self.under_way = 0

    async def __call__(self, *inputs: Upload) -> Answer:
        began = time.time()
        self.begun += 1
        self.under_way += 1
        try:
            await asyncio.sleep(self.simulated_s)
            return Answer(value=self.function(*inputs), began=began, node=self.node)
        finally:
            self.under_way -= 1

    async def calls(self) -> tuple[int, int]:
        """How many have begun since the process did, and how many have not ended."""
        return self.begun, self.under_way

    async def simulate(self, seconds: float) -> None:
        self.simulated_s = seconds


class Case:
    """A case that is open, and what is asked for it. `ended` has its decision, or why there is none.

    After `limit_s`, if it is still there, `forget` is called with it and the limit.
    """

    def __init__(
        self,
        name: str,
        models: Mapping[str, Any],
        limit_s: float,
        forget: Callable[[Case, float], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.name = name
        self.given = {kind: asyncio.Event() for kind in UPLOADS}
        self.contents: dict[str, Upload] = {}
        self.digests: dict[str, str] = {}
        self.arrived: dict[str, float] = {}
        self.asked: dict[str, asyncio.Task[Answer]] = {}
        self.ended: asyncio.Future[Decided] = loop.create_future()
        self.ended.add_done_callback(
            lambda ended: ended.exception()
        )  # else asyncio complains where nobody asks for it
        self.life = loop.create_task(self.live(models))
        self.limit = loop.call_later(limit_s, forget, self, limit_s)

    def give(self, kind: str, content: Upload, mark: str) -> None:
        self.contents[kind], self.digests[kind], self.arrived[kind] = content, mark, time.time()
        self.given[kind].set()

    async def live(self, models: Mapping[str, Any]) -> None:
        """Ask every model when its triggers are there; the first that fails ends the others."""
        try:
            async with asyncio.TaskGroup() as group:
                self.asked = {
                    name: group.create_task(self.ask(name, models[name])) for name in MODELS
                }
            answers = {name: task.result() for name, task in self.asked.items()}
            decision = decide({name: answer.value for name, answer in answers.items()})
            self.ended.set_result(Decided(decision=decision, answers=answers, arrived=self.arrived))
        except* Exception as failed:
            self.ended.set_exception(failed.exceptions[0])

    async def ask(self, name: str, model: Any) -> Answer:
        triggers = MODELS[name].triggers
        for kind in triggers:
            await self.given[kind].wait()
        response = model.remote(*(self.contents[kind] for kind in triggers))
        try:
            answer: Answer = await response
        except asyncio.CancelledError:
            response.cancel()  # Serve lets it run: only with a request itself it cancels what that asked for
            raise
        except Exception as error:
            raise FailedModelError(
                f"case {self.name!r}: the model {name!r} failed: {getattr(error, 'cause', error)!r}"
            ) from error
        return answer

    def answered(self) -> list[str]:
        return [name for name, task in self.asked.items() if task.done()]

    def late(self, seconds: float) -> CaseError:
        """Why there is no decision after so many seconds."""
        if missing := [kind for kind in UPLOADS if kind not in self.contents]:
            return MissingUploadError(
                f"case {self.name!r} has no {' and no '.join(missing)} after {seconds:g} s: upload all of it again"
            )
        silent = [name for name in MODELS if name not in self.answered()]
        return LateModelError(
            f"case {self.name!r}: no answer of {' and '.join(silent)} after {seconds:g} s: upload it again"
        )


class Cases:
    """The process that keeps all cases. `models`: what has `remote`, by the names of MODELS.

    A case is open from its first upload until its decision, or the error, is delivered, and for `limit_s` at most. Of the
    last `kept` decisions it knows the digests of their uploads too: what comes again is known, and not done again.
    """

    def __init__(
        self, models: Mapping[str, Any], *, limit_s: float = 3600, kept: int = 1000
    ) -> None:
        self.models, self.limit_s, self.kept = models, limit_s, kept
        self.open: dict[str, Case] = {}
        self.decided: dict[str, tuple[Decided, dict[str, str]]] = {}

    async def upload(self, case: str, kind: str, content: Upload) -> None:
        """Once or more often. Raises RefusedUploadError when it is not what this case was given before."""
        if kind not in UPLOADS:
            raise RefusedUploadError(
                f"{kind!r} is no upload of a case: those are {', '.join(UPLOADS)}"
            )
        mark, before = digest(content), self.digests(case).get(kind)
        if before is None:
            self.opened(case).give(kind, content, mark)
        elif before != mark:
            raise RefusedUploadError(
                f"case {case!r} was given another {kind} ({before[:8]}, not {mark[:8]}): upload it as another case"
            )

    async def decision(self, case: str, timeout_s: float) -> Decided:
        """Waits for it. Raises CaseError, to all who wait for it, when there is none and none will come."""
        if case in self.decided:
            return self.decided[case][0]
        asked = self.opened(case)
        await asyncio.wait([asked.ended], timeout=timeout_s)
        self.forget(asked, timeout_s)
        if not asked.ended.exception():
            self.decided[case] = asked.ended.result(), asked.digests
        for old in list(self.decided)[: -self.kept]:
            del self.decided[old]
        await asyncio.wait([asked.life])
        return asked.ended.result()

    async def answered(self, case: str) -> list[str]:
        """The models that have answered for a case; none when it is not open."""
        return self.open[case].answered() if case in self.open else []

    async def count(self) -> int:
        """How many cases are open."""
        return len(self.open)

    def digests(self, case: str) -> dict[str, str]:
        """Of what the case was given."""
        if case in self.open:
            return self.open[case].digests
        return self.decided[case][1] if case in self.decided else {}

    def opened(self, case: str) -> Case:
        if case not in self.open:
            self.open[case] = Case(case, self.models, self.limit_s, self.forget)
        return self.open[case]

    def forget(self, case: Case, seconds: float) -> None:
        """End what is under way for a case that `seconds` were given to."""
        if not case.ended.done():
            case.ended.set_exception(case.late(seconds))
        case.life.cancel()
        case.limit.cancel()
        if self.open.get(case.name) is case:
            del self.open[case.name]


def digest(content: Upload) -> str:
    """SHA-256 of an upload: of an array its shape and type too."""
    if isinstance(content, str):
        return hashlib.sha256(content.encode()).hexdigest()
    return hashlib.sha256(
        f"{content.shape} {content.dtype.str}\n".encode() + content.tobytes()
    ).hexdigest()


class Served:
    """The cases and models that are served, from a process that has joined the cluster. Threads may share it."""

    def __init__(self, cases: Any) -> None:
        self.cases = cases

    def upload(self, case: str, kind: str, content: Upload) -> None:
        """As Cases.upload."""
        self.done(self.cases.upload.remote(case, kind, content))

    def decision(self, case: str, timeout_s: float) -> Decided:
        """As Cases.decision."""
        found: Decided = self.done(
            self.cases.decision.remote(case, timeout_s), timeout_s + ANSWER_S
        )
        return found

    def answered(self, case: str) -> set[str]:
        """As Cases.answered."""
        return set(self.done(self.cases.answered.remote(case)))

    def open_cases(self) -> int:
        """As Cases.count."""
        return int(self.done(self.cases.count.remote()))

    def calls(self) -> dict[str, tuple[int, int]]:
        """Of each model, as Host.calls."""
        asked = {name: serve.get_deployment_handle(name, APP).calls.remote() for name in MODELS}
        return {name: self.done(response) for name, response in asked.items()}

    def simulate(self, model: str, seconds: float) -> None:
        """From now on a model waits so long: a device or a service that hangs."""
        self.done(serve.get_deployment_handle(model, APP).simulate.remote(seconds))

    def done(self, response: Any, timeout_s: float = ANSWER_S) -> Any:
        """What came back. What it refuses is raised here as it was there; of anything else Ray shows the place as well."""
        try:
            return response.result(timeout_s=timeout_s)
        except RayTaskError as error:
            if isinstance(error.cause, CaseError | RefusedUploadError):
                raise error.cause from None
            raise


@contextmanager
def serving(
    simulated_s: Mapping[str, float], *, gpus: float = 0.25, cuda: bool = False
) -> Iterator[Served]:
    """The app on the Ray cluster that this process has joined; afterwards it is gone, and Serve with it if it has no other.

    The cluster has nodes with the resources `cpu_models` and `api_models`, 3 and 2 or more. `gpus`: of a GPU, for each of
    three models; `cuda`: whether they are real. One case has been decided when it is yielded, so that the start is not measured.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="Disabled")
    try:
        models = {
            name: bound(Host, name, model.options(gpus), name, simulated_s.get(name, 0.0), cuda)
            for name, model in MODELS.items()
        }
        app = bound(Cases, "cases", {"num_cpus": 0}, models)
        served = Served(
            serve.run(app, name=APP, route_prefix=None, logging_config={"enable_access_log": False})
        )
        for kind, content in specimen(0).items():
            served.upload("the first", kind, content)
        served.decision("the first", timeout_s=60)
        yield served
    finally:
        serve.delete(APP)
        if not serve.status().applications:
            serve.shutdown()  # type: ignore[no-untyped-call]  # ray


def bound(made: type, name: str, resources: dict[str, Any], *given: Any) -> Any:
    """A deployment of one process, which takes all that it is asked and ends as soon as nothing is under way."""
    deployment: Any = serve.deployment(
        made,
        name=name,
        ray_actor_options=resources,
        max_ongoing_requests=10_000,
        graceful_shutdown_wait_loop_s=0.1,
    )
    return deployment.bind(*given)


def decision_latency_s(
    served: Served, case: str, uploads: Mapping[str, Upload], *, timeout_s: float = 60
) -> tuple[float, Decided]:
    """Seconds from the last upload to the decision, when all three come one right behind the other."""
    *first, last = uploads.items()
    for kind, content in first:
        served.upload(case, kind, content)
    began = time.monotonic()
    served.upload(case, *last)
    decided = served.decision(case, timeout_s)
    return time.monotonic() - began, decided
