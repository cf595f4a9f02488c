"""Parcel inspection: eight models that each read some of a case's three uploads, and a decision.

A case is a photograph from the air, the registry's plan and the surveyor's report. Models and
decision are plain functions; `served` puts them into processes of their own.
"""

from __future__ import annotations

import math
import re
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from .tiles import draw_tile

if TYPE_CHECKING:
    from torch import Tensor, nn

UPLOADS = ("photo", "plan", "report")
MOST_GREEN = 20  # by how much green must outweigh red and blue to be leaves

Photo = npt.NDArray[np.uint8]  # (px, px, 3), RGB, px a multiple of 16
Plan = npt.NDArray[np.uint8]  # (px, px), above 0 where the registry has a crown
Upload = npt.NDArray[np.uint8] | str


def sharpness(photo: Photo) -> float:
    """Return the mean step of brightness between neighbours in a row."""
    return float(np.abs(np.diff(photo.sum(2, dtype=np.int64), axis=1)).mean())


def outline(plan: Plan) -> float:
    """Return the length of all borders between crown and ground, in pixels."""
    crown = plan > 0
    return float((crown[1:] != crown[:-1]).sum() + (crown[:, 1:] != crown[:, :-1]).sum())


def count_words(report: str) -> float:
    """Return the number of words of the report."""
    return float(len(report.split()))


def crowns(photo: Photo, device: str = "cpu") -> float:
    """Return the mean probability of a crown, to six digits.

    Computed in double precision, so that the digits are the same on every device.
    """
    import torch

    from .network import one_thread

    with torch.inference_mode(), one_thread():
        image = torch.tensor(photo, device=device).permute(2, 0, 1)[None].double() / 255
        return round(float(torch.sigmoid(network(device)(image)).mean()), 6)


@cache
def network(device: str) -> nn.Module:
    """Return CrownNet with weights from a seed; the generator's state is restored."""
    import torch

    from .network import CrownNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return CrownNet().double().to(device).eval()


def leaves(photo: Photo, device: str) -> Tensor:
    """Return the pixels that are green, bool, (px, px).

    Computed in whole numbers, which every device counts alike.
    """
    import torch  # not at the top: it takes 1.7 s, and only three of nine processes need it

    red, green, blue = torch.tensor(photo, device=device).int().unbind(-1)
    return 2 * green - red - blue > MOST_GREEN


def cover(photo: Photo, device: str = "cpu") -> float:
    """Return the share of the parcel that is green."""
    return int(leaves(photo, device).sum()) / photo[..., 0].size


def change(photo: Photo, plan: Plan, device: str = "cpu") -> float:
    """Return the share of the parcel where green and plan contradict each other.

    Raises ValueError when they differ in size.
    """
    if photo.shape[:2] != plan.shape:
        raise ValueError(f"the photo is {photo.shape[:2]} pixels, the plan {plan.shape}")
    green = leaves(photo, device).cpu().numpy()
    return int((green != (plan > 0)).sum()) / plan.size


def registry(plan: Plan, report: str) -> float:
    """Return the difference between the plan's share of crowns and the registered one.

    The registered share is that of the parcel in the report.
    """
    registered = zlib.crc32(report_field(report, "parcel").encode()) % 100 / 100
    return round(abs(float((plan > 0).mean()) - registered), 6)


def weather(report: str) -> float:
    """Return the cloud cover, in eighths, on the day of the flight."""
    return float(zlib.crc32(report_field(report, "flown").encode()) % 9)


def report_field(report: str, name: str) -> str:
    """Return the text behind `name:` in a line of the report.

    Raises ValueError when no line has it.
    """
    if not (match := re.search(rf"^{name}: *(\S.*)$", report, re.MULTILINE)):
        raise ValueError(f"the report has no line `{name}: ...`")
    return match[1]


class ActorOptions(TypedDict, total=False):
    """The resources that Ray reserves for a process."""

    num_cpus: float
    num_gpus: float
    resources: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A pure function of its triggers, in their order.

    A function of the GPU group also takes `device`, `cpu` or `cuda`.
    """

    group: Literal["cpu", "gpu", "api"]
    triggers: tuple[str, ...]
    function: Callable[..., float]

    def options(self, gpus: float) -> ActorOptions:
        """Return the request to Ray: `gpus` of a GPU, or one of the group's own resource.

        No core is requested, so that eight models fit on two cores.
        """
        if self.group == "gpu":
            return {"num_cpus": 0, "num_gpus": gpus}
        return {"num_cpus": 0, "resources": {f"{self.group}_models": 1}}


MODELS: Mapping[str, Model] = {
    "sharpness": Model(group="cpu", triggers=("photo",), function=sharpness),
    "outline": Model(group="cpu", triggers=("plan",), function=outline),
    "words": Model(group="cpu", triggers=("report",), function=count_words),
    "crowns": Model(group="gpu", triggers=("photo",), function=crowns),
    "cover": Model(group="gpu", triggers=("photo",), function=cover),
    "change": Model(group="gpu", triggers=("photo", "plan"), function=change),
    "registry": Model(group="api", triggers=("plan", "report"), function=registry),
    "weather": Model(group="api", triggers=("report",), function=weather),
}


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A decision. `values`: of each model, in the order of MODELS.

    `score`: 0 would be a parcel as it is registered.
    """

    verdict: str
    score: float
    values: tuple[tuple[str, float], ...]


def decide(values: Mapping[str, float]) -> Decision:
    """Decide by the values of all models. Raises KeyError when one is missing."""
    ordered = tuple((name, values[name]) for name in MODELS)
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
            *(part / 4 for part in doubt),
        ]
    )
    return Decision(verdict="accept" if score < 1 else "inspect", score=score, values=ordered)


def specimen(seed: int) -> dict[str, Upload]:
    """Return the uploads of a case: a drawn landscape, and a plan of the year before.

    The plan lacks some of the crowns.
    """
    photo, plan = draw_tile(17, seed, 0, seed=seed)
    plan[:, : 8 + seed % 24] = 0
    return {
        "photo": photo,
        "plan": plan,
        "report": f"parcel: 17-{seed:03d}\nflown: 2026-06-{1 + seed % 28:02d}\n"
        + "An oak. " * seed,
    }


def decide_sequentially(
    uploads: Mapping[str, Upload], simulated_s: Mapping[str, float]
) -> Decision:
    """Decide in a plain loop, model by model, when all uploads have arrived.

    Each model waits for `simulated_s`, if it is named there.
    """
    values = {}
    for name, model in MODELS.items():
        time.sleep(simulated_s.get(name, 0.0))
        values[name] = model.function(*(uploads[kind] for kind in model.triggers))
    return decide(values)
