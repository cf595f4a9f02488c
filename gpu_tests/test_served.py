"""Served composition: eight models and one decision, in every order, and with failures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from typing import TypeVar

import pytest
import ray

from .accelerators import Accelerators
from .nodes import Node
from .pipelines.cases import (
    Answer,
    Cases,
    Decided,
    FailedModelError,
    LateModelError,
    MissingUploadError,
    RefusedUploadError,
)
from .pipelines.parcel import MODELS, UPLOADS, Upload, decide_sequentially, specimen
from .pipelines.served import Client, decision_latency_s, serving

# Serve, too, warns of Ray's own settings.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")
SIMULATED_S = 0.1  # of a device or a service, each model, where there is no GPU
DECISION_S = 60.0  # for a decision: a busy machine may be slow
HANGS_S = 120.0  # a model that is ended in less was cancelled
CLOCKS_S = 0.01  # between the clocks of two machines, at most
Value = TypeVar("Value")


@pytest.fixture
def simulated_s(accelerators: Accelerators) -> dict[str, float]:
    """Return the simulated seconds of each model; none on GPUs."""
    return {} if accelerators.cuda else dict.fromkeys(MODELS, SIMULATED_S)


@pytest.mark.ray(gpus=2)
def test_s1_eight_served_models_come_to_the_decision_of_a_plain_loop(
    accelerators: Accelerators,
    another_node: Callable[..., Node],
    simulated_s: dict[str, float],
    figures: Callable[..., None],
) -> None:
    """Models in three places must decide as a team's notebook did, sooner, and forget failed cases.

    One app for all of it: it takes 10 s and more to start.
    """
    nodes = {"cpu": another_node(cpu_models=8).id, "api": another_node(api_models=8).id}
    began = time.monotonic()
    with serving(simulated_s, cuda=accelerators.cuda) as client:
        started_s = time.monotonic() - began
        latency_s, loop_s = check_sooner(client, simulated_s, must=not accelerators.cuda)
        for number, order in enumerate(permutations(UPLOADS)):
            check_beginnings(decided := check_order(client, number, order))
            check_places(decided, nodes)
        for check in CHECKS:
            check(client)

    figures(
        start_s=round(started_s, 1),
        simulated_s=max(simulated_s.values(), default=0),
        decision_s=round(latency_s, 3),
        one_after_another_s=round(loop_s, 3),
        ratio=round(loop_s / latency_s, 2),
    )
    check_nothing_left()


def check_sooner(
    client: Client, simulated_s: dict[str, float], *, must: bool
) -> tuple[float, float]:
    """Return the median of three cases, in seconds from the last upload to the decision.

    Served, and one model after another. `must`: served has to be sooner.
    """
    pairs = []
    for number in range(3):
        uploads = specimen(50 + number)
        latency_s, decided = decision_latency_s(client, f"timed {number}", uploads)
        began = time.monotonic()
        plain = decide_sequentially(uploads, simulated_s)
        pairs.append((latency_s, time.monotonic() - began))
        assert decided.decision == plain, f"served: {decided.decision}; one after another: {plain}"
    served_s, loop_s = (sorted(each)[1] for each in zip(*pairs, strict=True))
    if must:
        assert loop_s >= 2 * served_s, (
            f"{served_s:.2f} s served, {loop_s:.2f} s one after another: nothing overlaps"
        )
    return served_s, loop_s


def check_order(client: Client, number: int, order: tuple[str, ...]) -> Decided:
    """Upload each twice, one by one: all models run, each once, and the decision is repeatable."""
    case, uploads = f"order {number}", specimen(number)
    before = client.calls()
    check_triggers(client, case, uploads, order)
    decided = client.decision(case, DECISION_S)
    for kind in order:
        client.upload(case, kind, uploads[kind])
    again = client.decision(case, DECISION_S)

    plain = decide_sequentially(uploads, {})
    assert decided.decision == plain, (
        f"{order}: decided {decided.decision}; one after another: {plain}"
    )
    assert again == decided, f"{order}: asked again, the decision is {again.decision}"
    ran = {name: started - before[name][0] for name, (started, _) in client.calls().items()}
    assert set(ran.values()) == {1}, f"{order}: the models ran so often: {ran}"
    assert client.open_cases() == 0, f"{order}: a decided case is still open"
    return decided


def check_triggers(
    client: Client, case: str, uploads: Mapping[str, Upload], order: tuple[str, ...]
) -> None:
    """After each upload exactly the models run that have all of their triggers."""
    uploaded: set[str] = set()
    for kind in order:
        client.upload(case, kind, uploads[kind])
        client.upload(case, kind, uploads[kind])
        uploaded.add(kind)
        ready = {name for name, model in MODELS.items() if uploaded >= set(model.triggers)}
        answered = wait_until(lambda: client.answered(case), ready)
        assert answered == ready, (
            f"{order}: with {sorted(uploaded)}, {sorted(answered)} have answered, "
            f"not {sorted(ready)}"
        )


def check_beginnings(decided: Decided) -> None:
    """No model began before its triggers had arrived."""
    for name, model in MODELS.items():
        early_s = (
            max(decided.arrived[kind] for kind in model.triggers) - decided.answers[name].began
        )
        assert early_s <= CLOCKS_S, (
            f"{name} began {early_s:.3f} s before it had {' and '.join(model.triggers)}"
        )


def check_places(decided: Decided, nodes: dict[str, str]) -> None:
    """A model ran on the node of its group, or on one that has GPUs."""
    living = ray.nodes()  # type: ignore[no-untyped-call]  # ray
    gpus = {node["NodeID"] for node in living if node["Resources"].get("GPU", 0) > 0}
    for name, model in MODELS.items():
        allowed = gpus if model.group == "gpu" else {nodes[model.group]}
        assert decided.answers[name].node in allowed, (
            f"{name} ran on {decided.answers[name].node}; its group has {allowed}"
        )


def check_side_by_side(client: Client) -> None:
    """Six cases at once, two of them of the same uploads: each gets its own decision."""
    seeds = (20, 21, 22, 23, 24, 24)

    def inspect(number: int) -> Decided:
        return decision_latency_s(client, f"side by side {number}", specimen(seeds[number]))[1]

    with ThreadPoolExecutor(len(seeds)) as pool:
        decided = list(pool.map(inspect, range(len(seeds))))
    decisions = [each.decision for each in decided]
    for seed, decision in zip(seeds, decisions, strict=True):
        plain = decide_sequentially(specimen(seed), {})
        assert decision == plain, f"beside others: {decision}; alone: {plain}"
    assert len(set(decisions)) == len(set(seeds)), "cases of different uploads have one decision"


def check_refusal(client: Client) -> None:
    """Another photo for a case that has one would make a decision about neither."""
    uploads, others = specimen(30), specimen(31)
    client.upload("refused", "photo", uploads["photo"])
    with pytest.raises(
        RefusedUploadError,
        match=r"case 'refused' was given another photo \(.*upload it as another case",
    ):
        client.upload("refused", "photo", others["photo"])
    with pytest.raises(
        RefusedUploadError, match=r"'video' is no upload of a case: those are photo, plan, report"
    ):
        client.upload("refused", "video", others["photo"])
    for kind in ("plan", "report"):
        client.upload("refused", kind, uploads[kind])
    decided = client.decision("refused", DECISION_S).decision
    plain = decide_sequentially(uploads, {})
    assert decided == plain, f"after a refusal: {decided}; without: {plain}"
    with pytest.raises(RefusedUploadError, match="another plan"):
        client.upload("refused", "plan", others["plan"])


def check_missing(client: Client) -> None:
    """Whoever waits for a case without a report is told so; other uploads begin it anew."""
    first, second = specimen(32), specimen(33)
    for kind in ("photo", "plan"):
        client.upload("missing", kind, first[kind])
    with pytest.raises(MissingUploadError, match=r"case 'missing' has no report after 0\.2 s"):
        client.decision("missing", timeout_s=0.2)
    assert client.open_cases() == 0, "a case whose time was over is still open"
    _, decided = decision_latency_s(client, "missing", second)
    plain = decide_sequentially(second, {})
    assert decided.decision == plain, f"begun anew: {decided.decision}; one after another: {plain}"


def check_hanging(client: Client) -> None:
    """A call for a case that nobody waits for any more is not worth a GPU."""
    client.simulate("crowns", HANGS_S)
    uploads = specimen(34)
    client.upload("hangs", "photo", uploads["photo"])
    running = wait_until(lambda: client.calls()["crowns"][1], 1)
    assert running == 1, "the model was not asked"
    with pytest.raises(MissingUploadError, match="no plan and no report"):
        client.decision("hangs", timeout_s=0.2)
    check_ended(client)
    for kind, content in uploads.items():
        client.upload("hangs", kind, content)
    others = set(MODELS) - {"crowns"}
    assert wait_until(lambda: client.answered("hangs"), others) == others
    with pytest.raises(LateModelError, match=r"case 'hangs': no answer of crowns after 0\.2 s"):
        client.decision("hangs", timeout_s=0.2)
    check_ended(client)
    client.simulate("crowns", 0)


def check_failure(client: Client) -> None:
    """Without the field that the registry's service needs, the error names the model of eight."""
    uploads = specimen(35) | {"report": "flown: 2026-06-05\nNo parcel."}
    client.simulate("crowns", HANGS_S)
    for kind, content in uploads.items():
        client.upload("fails", kind, content)
    with pytest.raises(
        FailedModelError,
        match=r"case 'fails': the model 'registry' failed: "
        r"ValueError\('the report has no line `parcel:",
    ):
        client.decision("fails", DECISION_S)
    check_ended(client)
    client.simulate("crowns", 0)


def check_ended(client: Client) -> None:
    """No case is open, and no call is running."""
    assert client.open_cases() == 0, "the case is still open"

    def running_models() -> set[str]:
        return {name for name, (_, running) in client.calls().items() if running}

    nothing: set[str] = set()
    running = wait_until(running_models, nothing)
    assert not running, f"still under way for a case that has ended: {sorted(running)}"


def check_nothing_left() -> None:
    """All resources of the app are free again."""

    def reserved_resources() -> set[str]:
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]  # ray
        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # ray
        names = ("GPU", "cpu_models", "api_models")
        return {name for name in names if free.get(name, 0) < total[name]}

    nothing: set[str] = set()
    reserved = wait_until(reserved_resources, nothing)
    assert not reserved, f"still held when the app is gone: {reserved}"


CHECKS = (check_side_by_side, check_refusal, check_missing, check_hanging, check_failure)


def wait_until(read: Callable[[], Value], expected: Value, *, seconds: float = 20) -> Value:
    """Read until the value is as expected, or the time is over; return the last value."""
    end = time.monotonic() + seconds
    while (value := read()) != expected and time.monotonic() < end:
        time.sleep(0.02)
    return value


class LocalModel:
    """A model in this process, called as Serve's handles are."""

    def __init__(self, name: str) -> None:
        self.name = name

    def remote(self, *inputs: Upload) -> asyncio.Task[Answer]:
        """Start the model's function as a task."""

        async def run() -> Answer:
            return Answer(value=MODELS[self.name].function(*inputs), began=time.time(), node="")

        return asyncio.ensure_future(run())


def test_s1_what_is_kept_of_cases_is_bounded() -> None:
    """A process that serves for months must not grow with abandoned or with decided cases."""

    async def serve_some() -> tuple[Cases, int]:
        cases = Cases({name: LocalModel(name) for name in MODELS}, limit_s=0.5, retained=2)
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
