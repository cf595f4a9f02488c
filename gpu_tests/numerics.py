"""One policy for numbers: pinned seeds, TF32 and determinism, and a tolerance per type."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

# The largest error of a product of 256 to 4,096 long sums over its largest entry. The CPU and a GPU
# without TF32 keep a type's own precision; TF32 has 10 bits of mantissa where float32 has 23.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}
TF32 = 2e-3


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The settings in force. `architecture` names the CPU or GPU for which a figure holds."""

    seed: int
    tf32: bool
    deterministic: bool
    architecture: str

    def tolerance(self, dtype: torch.dtype) -> float:
        """Return the largest error allowed to a product in `dtype` against float64.

        The error is relative to the product's largest entry.
        """
        return (
            TF32
            if dtype is torch.float32 and self.tf32 and self.architecture != "cpu"
            else TOLERANCE[dtype]
        )


@contextmanager
def pinned(device: torch.device, *, seed: int = 0, tf32: bool = False) -> Iterator[Policy]:
    """Pin everything that numbers depend on, and restore it afterwards, generators included."""
    before = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    flags = (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
    )
    deterministic, warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    try:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        yield Policy(seed=seed, tf32=tf32, deterministic=True, architecture=name)
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warned)
        matmul, cudnn, benchmark = flags
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = cudnn, benchmark
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
