"""The network's speed beside its device's limit, by one command on a machine with a GPU.

    python -m tests.benchmarks.gpu

Training and inference of the workloads' U-Net, nothing simulated: images a second, the device's
utilisation, and the time of a step beside the least that it could take. The operations and the
bytes of a step are counted, and divided by the speeds that were just measured on the same device.
Printed as JSON with the date and the device's name. On a CPU it runs small, to see that it runs.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from gpu_tests.pipelines.health import bandwidth_gb_s, product_tflops, seconds
from gpu_tests.pipelines.network import CrownNet


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of a measurement."""

    batch: int
    px: int
    width: int
    steps: int  # that are timed for the utilisation
    product: int  # side of the matrices that measure the device
    copied: int  # bytes, likewise


ON_GPU = Size(batch=64, px=512, width=64, steps=100, product=8192, copied=1 << 30)
ON_CPU = Size(batch=2, px=128, width=8, steps=3, product=512, copied=1 << 26)


@dataclass(frozen=True, kw_only=True)
class Step:
    """The speed of one kind of step.

    `least_ms`: by the slower of counted operations and counted bytes; `reached`: that over
    `step_ms`.
    """

    dtype: str
    step_ms: float
    images_per_s: float
    gflop: float
    gigabytes: float
    least_ms: float
    reached: float
    utilisation: float | None


def moved_bytes(net: nn.Module, work: Callable[[], object]) -> int:
    """Return the bytes that the layers of one forward pass read and write.

    Inputs, outputs and weights of each layer count once.
    """
    total = 0

    def count(layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        nonlocal total
        values = (*inputs, output, *layer.parameters(recurse=False))
        total += sum(value.nbytes for value in values if isinstance(value, Tensor))

    hooks = [
        layer.register_forward_hook(count) for layer in net.modules() if not list(layer.children())
    ]
    try:
        work()
    finally:
        for hook in hooks:
            hook.remove()
    return total


@contextmanager
def sample_utilisation(device: torch.device) -> Iterator[list[float]]:
    """Sample the GPU's utilisation, 0 to 1, every 50 ms by NVML; the list stays empty on a CPU."""
    samples: list[float] = []
    if device.type != "cuda":
        yield samples
        return
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
    stopped = threading.Event()

    def sample() -> None:
        while not stopped.wait(0.05):
            samples.append(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stopped.set()
        thread.join()
        pynvml.nvmlShutdown()


class Workload:
    """Steps of training and inference on random images."""

    def __init__(self, device: torch.device, size: Size, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.net = CrownNet(size.width).to(device)
        self.images = torch.rand(size.batch, 3, size.px, size.px, device=device)
        self.truth = (torch.rand(size.batch, size.px, size.px, device=device) > 0.5).float()
        self.optimiser = torch.optim.AdamW(self.net.parameters())

    def forward(self) -> Tensor:
        """Return logits, (batch, px, px), computed in `dtype`."""
        mixed = self.dtype is not torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=mixed):
            logits: Tensor = self.net(self.images)
        return logits

    def train(self) -> None:
        """Take one step of training."""
        self.optimiser.zero_grad()
        logits = self.forward().float()
        loss = functional.binary_cross_entropy_with_logits(logits, self.truth)
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        self.optimiser.step()

    def infer(self) -> None:
        """Take one step of inference."""
        with torch.inference_mode():
            self.forward()


def measure(device: torch.device, size: Size, dtype: torch.dtype, *, training: bool) -> Step:
    """Measure one kind of step.

    Backward counts twice the operations and bytes of forward, as it has for convolutions.
    """
    workload = Workload(device, size, dtype)
    work = workload.train if training else workload.infer
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    operations, factor = counter.get_total_flops(), 3 if training else 1
    gigabytes = factor * moved_bytes(workload.net, workload.infer) / 1e9
    least = max(
        operations / 1e12 / product_tflops(dtype, size.product, device),
        gigabytes / bandwidth_gb_s(size.copied, device),
    )
    step_s = seconds(work, device)
    utilisation = measure_utilisation(device, work, size.steps)
    return Step(
        dtype=str(dtype).removeprefix("torch."),
        step_ms=round(1000 * step_s, 3),
        images_per_s=round(size.batch / step_s, 1),
        gflop=round(operations / 1e9, 3),
        gigabytes=round(gigabytes, 4),
        least_ms=round(1000 * least, 3),
        reached=round(least / step_s, 3),
        utilisation=utilisation,
    )


def measure_utilisation(
    device: torch.device, work: Callable[[], object], steps: int
) -> float | None:
    """Return the mean utilisation over so many steps, 0 to 1; None on a CPU."""
    with sample_utilisation(device) as samples:
        for _ in range(steps):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return round(sum(samples) / len(samples), 3) if samples else None


def main() -> int:
    """Print the speeds of all kinds of steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, began = ON_GPU if device.type == "cuda" else ON_CPU, time.monotonic()
    steps = {
        f"{kind}_{str(dtype).removeprefix('torch.')}": asdict(
            measure(device, size, dtype, training=kind == "train")
        )
        for kind in ("train", "infer")
        for dtype in (torch.float32, torch.bfloat16)
    }
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else "a CPU, to see that it runs"
    )
    print(
        json.dumps(
            {"date": date.today().isoformat(), "device": name, "size": asdict(size), **steps},
            indent=1,
        )
    )
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
