"""Served composition: eight models and one decision, whatever the order of the uploads, and whatever does not come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from typing import TypeVar

import pytest
import ray

from .conftest import Accelerators
from .nodes import Node
from .pipelines.served import (
    MODELS,
    UPLOADS,
    Answer,
    Cases,
    Decided,
    FailedModelError,
    LateModelError,
    MissingUploadError,
    RefusedUploadError,
    Served,
    Upload,
    decision_latency_s,
    one_after_another,
    serving,
    specimen,
)

# Serve, too, warns of Ray's own settings.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")
SIMULATED_S = 0.1  # of a device or a service, each model, where there is no GPU
DECISION_S = 60.0  # for what is to come: a busy machine may be slow
HANGS_S = 120.0  # a model that is ended in less was cancelled
CLOCKS_S = 0.01  # how far the clocks of two machines may lie apart
T = TypeVar("T")


@pytest.fixture
def simulated_s(accelerators: Accelerators) -> dict[str, float]:
    return {} if accelerators.cuda else dict.fromkeys(MODELS, SIMULATED_S)


@pytest.mark.ray(gpus=2)
def test_s1_eight_served_models_come_to_the_decision_of_a_plain_loop(
    accelerators: Accelerators,
    another_node: Callable[..., Node],
    simulated_s: dict[str, float],
    figures: Callable[..., None],
) -> None:
    """What a team composes of models in three places is to decide as their notebook did, sooner, and to keep nothing of a case that failed.

    One app for all of it: it starts in 10 s and more.
    """
    nodes = {"cpu": another_node(cpu_models=8).id, "api": another_node(api_models=8).id}
    began = time.monotonic()
    with serving(simulated_s, cuda=accelerators.cuda) as served:
        started_s = time.monotonic() - began
        latency_s, loop_s = check_sooner(served, simulated_s, must=not accelerators.cuda)
        for number, order in enumerate(permutations(UPLOADS)):
            check_order(served, f"order {number}", specimen(number), order, nodes)
        check_side_by_side(served)
        check_refusal(served)
        check_missing(served)
        check_hanging(served)
        check_failure(served)

    figures(
        start_s=round(started_s, 1),
        simulated_s=max(simulated_s.values(), default=0),
        decision_s=round(latency_s, 3),
        one_after_another_s=round(loop_s, 3),
        ratio=round(loop_s / latency_s, 2),
    )
    check_nothing_left()


def check_sooner(
    served: Served, simulated_s: dict[str, float], *, must: bool
) -> tuple[float, float]:
    """The median of three cases, in seconds from the last upload to the decision: served, and one model after another."""
    both = []
    for number in range(3):
        uploads = specimen(50 + number)
        latency_s, decided = decision_latency_s(served, f"timed {number}", uploads)
        began = time.monotonic()
        plain = one_after_another(uploads, simulated_s)
        both.append((latency_s, time.monotonic() - began))
        assert decided.decision == plain, f"served: {decided.decision}; one after another: {plain}"
    served_s, loop_s = (sorted(each)[1] for each in zip(*both, strict=True))
    if must:
        assert loop_s >= 2 * served_s, (
            f"{served_s:.2f} s served, {loop_s:.2f} s one after another: nothing overlaps"
        )
    return served_s, loop_s


def check_order(
    served: Served,
    case: str,
    uploads: dict[str, Upload],
    order: tuple[str, ...],
    nodes: dict[str, str],
) -> None:
    """Each upload twice, one by one: after each exactly the models run that have all they want, and at the end, all of them once."""
    before = served.calls()
    given: set[str] = set()
    for kind in order:
        served.upload(case, kind, uploads[kind])
        served.upload(case, kind, uploads[kind])
        given.add(kind)
        ready = {name for name, model in MODELS.items() if given >= set(model.triggers)}
        answered = after(lambda: served.answered(case), ready)
        assert answered == ready, (
            f"{order}: with {sorted(given)}, {sorted(answered)} have answered, not {sorted(ready)}"
        )
    decided = served.decision(case, DECISION_S)
    for kind in order:
        served.upload(case, kind, uploads[kind])
    again = served.decision(case, DECISION_S)

    plain = one_after_another(uploads, {})
    assert decided.decision == plain, (
        f"{order}: decided {decided.decision}; one after another: {plain}"
    )
    assert again == decided, f"{order}: asked again, the decision is {again.decision}"
    ran = {name: begun - before[name][0] for name, (begun, _) in served.calls().items()}
    assert set(ran.values()) == {1}, f"{order}: the models ran so often: {ran}"
    assert served.open_cases() == 0, f"{order}: a decided case is still open"
    check_beginnings(decided)
    check_places(decided, nodes)


def check_beginnings(decided: Decided) -> None:
    for name, model in MODELS.items():
        early_s = (
            max(decided.arrived[kind] for kind in model.triggers) - decided.answers[name].began
        )
        assert early_s <= CLOCKS_S, (
            f"{name} began {early_s:.3f} s before it had {' and '.join(model.triggers)}"
        )


def check_places(decided: Decided, nodes: dict[str, str]) -> None:
    """Where a model ran: on the node of its group, or on one that has GPUs."""
    gpus = {node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU", 0) > 0}  # type: ignore[no-untyped-call]  # ray
    for name, model in MODELS.items():
        allowed = gpus if model.group == "gpu" else {nodes[model.group]}
        assert decided.answers[name].node in allowed, (
            f"{name} ran on {decided.answers[name].node}; its group has {allowed}"
        )


def check_side_by_side(served: Served) -> None:
    """Six cases at once, two of them of the same uploads: each gets its own decision."""
    seeds = (20, 21, 22, 23, 24, 24)

    def inspect(number: int) -> Decided:
        return decision_latency_s(served, f"side by side {number}", specimen(seeds[number]))[1]

    with ThreadPoolExecutor(len(seeds)) as pool:
        decided = list(pool.map(inspect, range(len(seeds))))
    for seed, one in zip(seeds, decided, strict=True):
        plain = one_after_another(specimen(seed), {})
        assert one.decision == plain, f"beside others: {one.decision}; alone: {plain}"
    assert len({one.decision for one in decided}) == len(set(seeds)), (
        "cases of different uploads have one decision"
    )


def check_refusal(served: Served) -> None:
    """Another photo for a case that has one would make a decision that is about neither."""
    uploads, others = specimen(30), specimen(31)
    served.upload("refused", "photo", uploads["photo"])
    with pytest.raises(
        RefusedUploadError,
        match=r"case 'refused' was given another photo \(.*upload it as another case",
    ):
        served.upload("refused", "photo", others["photo"])
    with pytest.raises(
        RefusedUploadError, match=r"'video' is no upload of a case: those are photo, plan, report"
    ):
        served.upload("refused", "video", others["photo"])
    for kind in ("plan", "report"):
        served.upload("refused", kind, uploads[kind])
    decided = served.decision("refused", DECISION_S).decision
    plain = one_after_another(uploads, {})
    assert decided == plain, f"after a refusal: {decided}; without: {plain}"
    with pytest.raises(RefusedUploadError, match="another plan"):
        served.upload("refused", "plan", others["plan"])


def check_missing(served: Served) -> None:
    """A case whose report never comes: whoever waits is told so, and it can be begun anew with other uploads."""
    first, second = specimen(32), specimen(33)
    for kind in ("photo", "plan"):
        served.upload("missing", kind, first[kind])
    with pytest.raises(MissingUploadError, match=r"case 'missing' has no report after 0\.2 s"):
        served.decision("missing", timeout_s=0.2)
    assert served.open_cases() == 0, "a case whose time was over is still open"
    _, decided = decision_latency_s(served, "missing", second)
    plain = one_after_another(second, {})
    assert decided.decision == plain, f"begun anew: {decided.decision}; one after another: {plain}"


def check_hanging(served: Served) -> None:
    """What was asked for a case is not worth a GPU when nobody waits for it any more."""
    served.simulate("crowns", HANGS_S)
    uploads = specimen(34)
    served.upload("hangs", "photo", uploads["photo"])
    assert after(lambda: served.calls()["crowns"][1], 1) == 1, "the model was not asked"
    with pytest.raises(MissingUploadError, match="no plan and no report"):
        served.decision("hangs", timeout_s=0.2)
    check_ended(served)
    for kind, content in uploads.items():
        served.upload("hangs", kind, content)
    assert after(lambda: served.answered("hangs"), set(MODELS) - {"crowns"}) == set(MODELS) - {
        "crowns"
    }
    with pytest.raises(LateModelError, match=r"case 'hangs': no answer of crowns after 0\.2 s"):
        served.decision("hangs", timeout_s=0.2)
    check_ended(served)
    served.simulate("crowns", 0)


def check_failure(served: Served) -> None:
    """The report lacks what the registry's service asks for: whoever decides is to know which of eight it was."""
    uploads = specimen(35) | {"report": "flown: 2026-06-05\nNo parcel."}
    served.simulate("crowns", HANGS_S)
    for kind, content in uploads.items():
        served.upload("fails", kind, content)
    with pytest.raises(
        FailedModelError,
        match=r"case 'fails': the model 'registry' failed: ValueError\('the report has no line `parcel:",
    ):
        served.decision("fails", DECISION_S)
    check_ended(served)
    served.simulate("crowns", 0)


def check_ended(served: Served) -> None:
    assert served.open_cases() == 0, "the case is still open"

    def under_way() -> list[str]:
        return [name for name, (_, running) in served.calls().items() if running]

    nothing: list[str] = []
    running = after(under_way, nothing)
    assert not running, f"still under way for a case that has ended: {running}"


def check_nothing_left() -> None:
    """All that the app held of the cluster is free again."""

    def held() -> set[str]:
        free, all_of_it = ray.available_resources(), ray.cluster_resources()  # type: ignore[no-untyped-call]  # ray
        return {
            name
            for name in ("GPU", "cpu_models", "api_models")
            if free.get(name, 0) < all_of_it[name]
        }

    nothing: set[str] = set()
    left = after(held, nothing)
    assert not left, f"still held when the app is gone: {left}"


def after(read: Callable[[], T], wanted: T, *, seconds: float = 20) -> T:
    """What is read when it is as wanted, or at last."""
    end = time.monotonic() + seconds
    while (found := read()) != wanted and time.monotonic() < end:
        time.sleep(0.02)
    return found


class Here:
    """A model in this process, called as Serve's handles are."""

    def __init__(self, name: str) -> None:
        self.name = name

    def remote(self, *inputs: Upload) -> asyncio.Task[Answer]:
        async def run() -> Answer:
            return Answer(value=MODELS[self.name].function(*inputs), began=time.time(), node="")

        return asyncio.ensure_future(run())


def test_s1_what_is_kept_of_cases_is_bounded() -> None:
    """A process that serves for months must not grow with the cases that nobody asks for, nor with those that were decided."""

    async def serve_some() -> tuple[Cases, int]:
        cases = Cases({name: Here(name) for name in MODELS}, limit_s=0.5, kept=2)
        for number in range(4):
            for kind, content in specimen(number).items():
                await cases.upload(f"decided {number}", kind, content)
            await cases.decision(f"decided {number}", DECISION_S)
        await cases.upload("nobody asks", "photo", specimen(4)["photo"])
        with pytest.raises(
            MissingUploadError, match=r"no photo and no plan and no report after 0\.5 s"
        ):
            await cases.decision("somebody asks", DECISION_S)
        await asyncio.sleep(0)
        return cases, len(asyncio.all_tasks())

    cases, tasks = asyncio.run(serve_some())

    assert list(cases.decided) == ["decided 2", "decided 3"], (
        f"the two last decisions are to be kept, not {list(cases.decided)}"
    )
    assert not cases.open, f"still open after their limit: {list(cases.open)}"
    assert tasks == 1, f"{tasks - 1} tasks still wait for uploads"
