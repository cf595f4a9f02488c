"""A small segmentation network, and what is asked of any model: its predictions, their score, and its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

PREDICT_BATCH = 16


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    # GroupNorm: with BatchNorm, validation accuracy jumped about in runs as short as these.
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
    return nn.Sequential(convolution, nn.GroupNorm(4, outputs), nn.ReLU())


class CrownNet(nn.Module):
    """A U-Net of four levels that works at half resolution; 27,000 weights at `width` 8.

    `images`: float32, (batch, 3, px, px), 0 to 1, px a multiple of 16. Returns logits, float32, (batch, px, px).
    """

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = block(3, width, stride=2)
        self.down1 = block(width, 2 * width)
        self.down2 = block(2 * width, 4 * width)
        self.bottom = block(4 * width, 4 * width)
        self.up2 = block(8 * width, 2 * width)
        self.up1 = block(4 * width, width)
        self.head = nn.Conv2d(2 * width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        half = self.stem(images)
        fourth = self.down1(functional.max_pool2d(half, 2))
        eighth = self.down2(functional.max_pool2d(fourth, 2))
        sixteenth = self.bottom(functional.max_pool2d(eighth, 2))
        eighth = self.up2(torch.cat([functional.interpolate(sixteenth, scale_factor=2), eighth], 1))
        fourth = self.up1(torch.cat([functional.interpolate(eighth, scale_factor=2), fourth], 1))
        logits = self.head(torch.cat([functional.interpolate(fourth, scale_factor=2), half], 1))
        return functional.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)[
            :, 0
        ]


def to_input(images: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """uint8, (batch, px, px, 3) -> what CrownNet takes, on `device`."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div(255).contiguous()


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread, as in a Ray worker.

    With more, a CPU's gradients are summed in another order and are other bits; and threads that share a busy core wait
    for each other: an epoch took 18 times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def predict(
    net: nn.Module, images: npt.NDArray[np.uint8], device: torch.device
) -> npt.NDArray[np.float32]:
    """The probability of a crown, float32, (tiles, px, px), for uint8 images, (tiles, px, px, 3). `net` is on `device`.

    A tile's result does not depend on its neighbours, to the last bit on one kind of CPU: every batch has the same
    shape (the last is filled up) and memory layout, because kernels, and with them roundings, are chosen by those.
    """
    found: list[npt.NDArray[np.float32]] = []
    net.eval()
    with torch.inference_mode(), one_thread():
        for first in range(0, len(images), PREDICT_BATCH):
            some = images[first : first + PREDICT_BATCH]
            filled = np.zeros((PREDICT_BATCH, *some.shape[1:]), np.uint8)
            filled[: len(some)] = some
            found.append(torch.sigmoid(net(to_input(filled, device)))[: len(some)].cpu().numpy())
    return np.concatenate(found)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Of predictions, over all pixels. `majority`: the accuracy of calling every pixel the commoner class; `share`: the
    intersection over union of calling every pixel a crown."""

    accuracy: float
    majority: float
    iou: float
    share: float


def score(probabilities: npt.NDArray[np.floating], masks: npt.NDArray[np.uint8]) -> Score:
    """Both (tiles, px, px); a crown is where the probability is above one half."""
    said, true = probabilities > 0.5, masks > 0
    share = float(true.mean())
    iou = float((said & true).sum() / max(1, (said | true).sum()))
    return Score(
        accuracy=float((said == true).mean()), majority=max(share, 1 - share), iou=iou, share=share
    )


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state dict: names, shapes, types and every bit of every value."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        values = np.ascontiguousarray(tensor.detach().cpu().numpy())
        found.update(f"{name} {values.shape} {values.dtype.str}\n".encode() + values.tobytes())
    return found.hexdigest()
