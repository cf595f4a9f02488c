"""The test's device is fit to compute on: right to tolerance; speeds are recorded with its name."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from .accelerators import ONE_GPU, SHARE, Accelerators
from .numerics import TOLERANCE, Policy, pinned
from .pipelines import health
from .pipelines.health import Sizes

if TYPE_CHECKING:
    from pytest_gpu_cluster.contract.gpus import Gpu

# Ray Data warns of its own settings.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")
DTYPES = tuple(TOLERANCE)


@pytest.fixture
def policy(device: torch.device) -> Iterator[Policy]:
    """Pin the numbers of the test."""
    with pinned(device) as policy:
        yield policy


@pytest.fixture
def sizes(device: torch.device) -> Sizes:
    """Return sizes for the device; a CPU, which stands in for one, gets small ones."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return Sizes(product=4096, memory_bytes=int(free * 0.8))
    return Sizes(product=256, memory_bytes=64 << 20)


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_h1_a_product_is_right_in_every_type(
    dtype: torch.dtype, device: torch.device, policy: Policy, sizes: Sizes
) -> None:
    """A device with a broken unit answers quickly, and wrongly; nothing else would say so."""
    error = health.product_error(dtype, sizes.product, device)

    print(f"{dtype}: error {error:.2e} on {policy.architecture}")
    assert error <= policy.tolerance(dtype), (
        f"{error:.2e} on {policy.architecture}; at most {policy.tolerance(dtype):.0e} is expected"
    )


def test_h1_speeds_are_recorded(
    device: torch.device, policy: Policy, sizes: Sizes, gpus: list[Gpu], artifacts: Path
) -> None:
    """A device that is slower than its kind is a reason to ask; the next run can compare."""
    piece = min(sizes.memory_bytes, 1 << 30)
    tflops = {
        str(dtype): round(health.product_tflops(dtype, sizes.product, device), 4)
        for dtype in DTYPES
    }
    memory_gb_s = round(health.bandwidth_gb_s(piece, device), 2)
    speeds = {
        "device": policy.architecture,
        "gpus": [gpu.name for gpu in gpus],
        "tflops": tflops,
        "memory_gb_s": memory_gb_s,
        "copies_gb_s": {
            way: round(speed, 2) for way, speed in health.copies_gb_s(piece, device).items()
        },
    }
    (artifacts / "speeds.json").write_text(json.dumps(speeds, indent=1) + "\n")
    print(json.dumps(speeds))

    assert min(tflops.values()) > 0
    assert memory_gb_s > 0


@pytest.mark.smoke
def test_h1_memory_keeps_what_is_written(device: torch.device, sizes: Sizes) -> None:
    """Each bit of nearly all free memory, once 0 and once 1."""
    wrong = {offset: count for offset, count in health.sweep(sizes.memory_bytes, device) if count}

    assert not wrong, f"bytes that came back changed, by offset: {wrong}"


@pytest.mark.ray(gpus=2)
def test_h1_devices_add_up(accelerators: Accelerators, figures: Callable[..., None]) -> None:
    """Training on several devices is no better than their sum."""
    ranks = max(2, accelerators.count) if accelerators.cuda else 2
    nodes, error, speed = health.all_reduce(ranks, 1 << 18, cuda=accelerators.cuda, gpus=SHARE)

    not_covered = (
        "" if accelerators.cuda else "; simulated GPUs: gloo on CPUs, no nccl, no link of GPUs"
    )
    if ONE_GPU:
        not_covered = "; one GPU for both: gloo, no nccl, no link of GPUs"
    covered = f"{ranks} ranks on {nodes} node(s){not_covered}"
    figures(all_reduce_gb_s=round(speed, 3), covered=covered)
    assert error == 0, f"the sum over {ranks} ranks is off by {error}"


@pytest.mark.smoke
def test_numbers_are_as_they_were_after_a_pinned_test(device: torch.device) -> None:
    """A test that leaves a seed or TF32 behind decides what the next one computes."""
    before = number_state()

    with pinned(device, seed=5, tf32=True):
        first = (random.random(), float(np.random.random()), float(torch.rand(())))
    with pinned(device, seed=5):
        second = (random.random(), float(np.random.random()), float(torch.rand(())))

    assert first == second
    assert before == number_state()


def number_state() -> tuple[object, ...]:
    """Return everything of this process that numbers depend on."""
    return (
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]  # the default form is a tuple
        torch.get_rng_state().tolist(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
    )
