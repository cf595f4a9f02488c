"""A small segmentation network, and what any model needs: predictions, their score, its digest."""

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

    `images`: float32, (batch, 3, px, px), 0 to 1, px a multiple of 16. Returns logits, float32,
    (batch, px, px).
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
    """Convert uint8, (batch, px, px, 3), to the input of CrownNet, on `device`."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div(255).contiguous()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, as in a Ray worker.

    With more, a CPU sums gradients in another order, so that the bits differ; and threads that
    share a busy core wait for each other: an epoch took 18 times as long.
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
    """Return the probability of a crown, float32, (tiles, px, px).

    `images`: uint8, (tiles, px, px, 3). `net` is on `device`. A tile's result does not depend on
    its neighbours, to the last bit on one kind of CPU: every batch has the same shape (the last is
    filled up) and memory layout, because kernels, and with them roundings, are chosen by those.
    """
    probabilities: list[npt.NDArray[np.float32]] = []
    net.eval()
    with torch.inference_mode(), one_thread():
        for first in range(0, len(images), PREDICT_BATCH):
            batch = images[first : first + PREDICT_BATCH]
            padded = np.zeros((PREDICT_BATCH, *batch.shape[1:]), np.uint8)
            padded[: len(batch)] = batch
            probabilities.append(
                torch.sigmoid(net(to_input(padded, device)))[: len(batch)].cpu().numpy()
            )
    return np.concatenate(probabilities)


@dataclass(frozen=True, kw_only=True)
class Score:
    """The score of predictions, over all pixels.

    `majority`: the accuracy of calling every pixel the commoner class. `iou`: intersection over
    union. `share`: the `iou` of calling every pixel a crown.
    """

    accuracy: float
    majority: float
    iou: float
    share: float


def score(probabilities: npt.NDArray[np.floating], masks: npt.NDArray[np.uint8]) -> Score:
    """Score probabilities against masks, both (tiles, px, px).

    A crown has a probability above one half.
    """
    predicted, actual = probabilities > 0.5, masks > 0
    share = float(actual.mean())
    iou = float((predicted & actual).sum() / max(1, (predicted | actual).sum()))
    return Score(
        accuracy=float((predicted == actual).mean()),
        majority=max(share, 1 - share),
        iou=iou,
        share=share,
    )


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a state dict: names, shapes, types and every bit of every value."""
    state = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        values = np.ascontiguousarray(tensor.detach().cpu().numpy())
        state.update(f"{name} {values.shape} {values.dtype.str}\n".encode() + values.tobytes())
    return state.hexdigest()
