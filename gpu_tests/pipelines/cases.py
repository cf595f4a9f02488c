"""Open cases: their uploads, the calls of their models, and a decision or a failure for each."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from .parcel import MODELS, UPLOADS, Decision, Upload, decide


class CaseError(Exception):
    """A case without a decision; the message has the reason. Its next upload begins it anew."""


class MissingUploadError(CaseError):
    """The time was over before all three uploads had arrived."""


class LateModelError(CaseError):
    """The time was over before all eight models had answered."""


class FailedModelError(CaseError):
    """A model raised, or its process died."""


class RefusedUploadError(Exception):
    """The upload differs from an earlier one of the case, or no case has such an upload.

    The case is unchanged.
    """


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer.

    `began`: unix seconds by the clock of `node`, the id of the Ray node where the model ran.
    """

    value: float
    began: float
    node: str


@dataclass(frozen=True, kw_only=True)
class Decided:
    """A decision with its origins.

    `arrived`: of each upload, unix seconds by the clock of the process that holds the cases.
    """

    decision: Decision
    answers: Mapping[str, Answer]
    arrived: Mapping[str, float]


class ModelResponse(Awaitable[Answer], Protocol):
    """The pending answer of a model."""

    def cancel(self) -> object: ...


class ModelHandle(Protocol):
    """A model that is called by its uploads, as Serve's handles are."""

    def remote(self, *inputs: Upload) -> ModelResponse: ...


class Case:
    """An open case and the calls of its models. `outcome` has its decision, or the exception.

    After `limit_s`, if it is still open, `forget` is called with it and the limit.
    """

    def __init__(
        self,
        name: str,
        models: Mapping[str, ModelHandle],
        limit_s: float,
        forget: Callable[[Case, float], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.name = name
        self.received = {kind: asyncio.Event() for kind in UPLOADS}
        self.contents: dict[str, Upload] = {}
        self.digests: dict[str, str] = {}
        self.arrived: dict[str, float] = {}
        self.tasks: dict[str, asyncio.Task[Answer]] = {}
        self.outcome: asyncio.Future[Decided] = loop.create_future()
        # An exception that nobody retrieves would be logged by asyncio.
        self.outcome.add_done_callback(lambda outcome: outcome.exception())
        self.task = loop.create_task(self.run(models))
        self.limit = loop.call_later(limit_s, forget, self, limit_s)

    def receive(self, kind: str, content: Upload, digest: str) -> None:
        """Accept an upload and wake the models that wait for it."""
        self.contents[kind], self.digests[kind], self.arrived[kind] = content, digest, time.time()
        self.received[kind].set()

    async def run(self, models: Mapping[str, ModelHandle]) -> None:
        """Call every model when its triggers have arrived; the first failure ends all calls."""
        try:
            async with asyncio.TaskGroup() as group:
                self.tasks = {
                    name: group.create_task(self.call_model(name, models[name])) for name in MODELS
                }
            answers = {name: task.result() for name, task in self.tasks.items()}
            decision = decide({name: answer.value for name, answer in answers.items()})
            self.outcome.set_result(
                Decided(decision=decision, answers=answers, arrived=self.arrived)
            )
        except* Exception as failed:  # noqa: BLE001 - whatever a case raises is that case's answer
            self.outcome.set_exception(failed.exceptions[0])

    async def call_model(self, name: str, model: ModelHandle) -> Answer:
        """Call one model when its triggers have arrived. Raises FailedModelError."""
        triggers = MODELS[name].triggers
        for kind in triggers:
            await self.received[kind].wait()
        response = model.remote(*(self.contents[kind] for kind in triggers))
        try:
            answer: Answer = await response
        except asyncio.CancelledError:
            response.cancel()  # Serve cancels a call only with the request that made it
            raise
        except Exception as error:
            raise FailedModelError(
                f"case {self.name!r}: the model {name!r} failed: {getattr(error, 'cause', error)!r}"
            ) from error
        return answer

    def answered(self) -> list[str]:
        """Return the models that have answered."""
        return [name for name, task in self.tasks.items() if task.done()]

    def timeout_error(self, seconds: float) -> CaseError:
        """Return the reason for no decision after so many seconds."""
        if missing := [kind for kind in UPLOADS if kind not in self.contents]:
            return MissingUploadError(
                f"case {self.name!r} has no {' and no '.join(missing)} after {seconds:g} s: "
                "upload all of it again"
            )
        silent = [name for name in MODELS if name not in self.answered()]
        return LateModelError(
            f"case {self.name!r}: no answer of {' and '.join(silent)} after {seconds:g} s: "
            "upload it again"
        )


class Cases:
    """The process that holds all cases. `models`: handles by the names of MODELS.

    A case is open from its first upload until its decision, or the error, is delivered, and for
    `limit_s` at most. The last `retained` decisions are remembered with the digests of their
    uploads, so that a repeated upload is recognised and not computed again.
    """

    def __init__(
        self, models: Mapping[str, ModelHandle], *, limit_s: float = 3600, retained: int = 1000
    ) -> None:
        self.models, self.limit_s, self.retained = models, limit_s, retained
        self.open: dict[str, Case] = {}
        self.decided: dict[str, tuple[Decided, dict[str, str]]] = {}

    async def upload(self, case: str, kind: str, content: Upload) -> None:
        """Accept an upload, once or more often.

        Raises RefusedUploadError when it differs from an earlier upload of the case.
        """
        if kind not in UPLOADS:
            raise RefusedUploadError(
                f"{kind!r} is no upload of a case: those are {', '.join(UPLOADS)}"
            )
        digest, before = upload_digest(content), self.digests(case).get(kind)
        if before is None:
            self.open_case(case).receive(kind, content, digest)
        elif before != digest:
            raise RefusedUploadError(
                f"case {case!r} was given another {kind} ({before[:8]}, not {digest[:8]}): "
                "upload it as another case"
            )

    async def decision(self, case: str, timeout_s: float) -> Decided:
        """Wait for the decision. Raises CaseError, for all who wait, when there is none."""
        if case in self.decided:
            return self.decided[case][0]
        pending = self.open_case(case)
        await asyncio.wait([pending.outcome], timeout=timeout_s)
        self.forget(pending, timeout_s)
        if not pending.outcome.exception():
            self.decided[case] = pending.outcome.result(), pending.digests
        for old in list(self.decided)[: -self.retained]:
            del self.decided[old]
        await asyncio.wait([pending.task])
        return pending.outcome.result()

    async def answered(self, case: str) -> list[str]:
        """Return the models that have answered for a case; none when it is not open."""
        return self.open[case].answered() if case in self.open else []

    async def count(self) -> int:
        """Return the number of open cases."""
        return len(self.open)

    def digests(self, case: str) -> dict[str, str]:
        """Return the digests of a case's uploads so far."""
        if case in self.open:
            return self.open[case].digests
        return self.decided[case][1] if case in self.decided else {}

    def open_case(self, case: str) -> Case:
        """Return the open case of that name; begin it when there is none."""
        if case not in self.open:
            self.open[case] = Case(case, self.models, self.limit_s, self.forget)
        return self.open[case]

    def forget(self, case: Case, seconds: float) -> None:
        """Cancel the calls of a case whose `seconds` are over, and close it."""
        if not case.outcome.done():
            case.outcome.set_exception(case.timeout_error(seconds))
        case.task.cancel()
        case.limit.cancel()
        if self.open.get(case.name) is case:
            del self.open[case.name]


def upload_digest(content: Upload) -> str:
    """Return the SHA-256 of an upload: of an array its shape and type too."""
    if isinstance(content, str):
        return hashlib.sha256(content.encode()).hexdigest()
    return hashlib.sha256(
        f"{content.shape} {content.dtype.str}\n".encode() + content.tobytes()
    ).hexdigest()
