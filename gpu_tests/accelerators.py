"""The GPUs of the workloads: how many there are, and whether tests compute on them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_gpu_cluster.contract.errors import HarnessError

MODES = ("sim", "gpu")
# GPU_TESTS_GPUS=1 accepts a cluster with one GPU: work for two then runs on two halves of it.
ONE_GPU = os.environ.get("GPU_TESTS_GPUS") == "1"
SHARE = 0.5 if ONE_GPU else 1.0


@dataclass(frozen=True, kw_only=True)
class Accelerators:
    """The GPUs that Ray hands out; with `cuda` false Ray only counts them, and CPUs compute."""

    count: int
    name: str
    cuda: bool


def forced_mode() -> str:
    """Return GPU_TESTS_MODE; "" lets the device decide.

    `sim` computes on the CPU and simulates waits, `gpu` needs real GPUs. Raises HarnessError for
    another value.
    """
    mode = os.environ.get("GPU_TESTS_MODE", "")
    if mode not in ("", *MODES):
        raise HarnessError(
            f"GPU_TESTS_MODE = {mode!r}: expected {' or '.join(MODES)}",
            remedy="unset it to let the device decide",
        )
    return mode


def computes_on_gpu(available: bool) -> bool:
    """Return True to compute on a GPU.

    Raises HarnessError when a GPU is demanded and there is none: it is never a skip.
    """
    mode = forced_mode()
    if mode == "gpu" and not available:
        raise HarnessError(
            "GPU_TESTS_MODE = 'gpu', and this test has no GPU",
            remedy="run on a cluster that has GPUs, or unset GPU_TESTS_MODE to simulate them",
        )
    return available and mode != "sim"


def find_accelerators(resources: Mapping[str, float], cuda: bool) -> Accelerators:
    """Read the GPUs from Ray's resources.

    Raises HarnessError for fewer than two: collectives, replicas and trials need a pair, or two
    halves.
    """
    count = int(resources.get("GPU", 0))
    if count < 2 and not (ONE_GPU and count):
        raise HarnessError(
            f"the workloads need 2 GPUs, real or simulated; Ray has {count}",
            remedy="GPU_TESTS_GPUS=1 does everything on one; "
            "where there is none, simulated-gpus = 2",
        )
    types = [key.partition(":")[2] for key in resources if key.startswith("accelerator_type:")]
    return Accelerators(count=count, name=" + ".join(sorted(types)) or "simulated GPU", cuda=cuda)
