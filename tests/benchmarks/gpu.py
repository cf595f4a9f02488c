"""How near the network comes to what its device can do: `python -m tests.benchmarks.gpu`, one command for a machine with a GPU.

Training and inference of the workloads' U-Net, nothing simulated: images a second, the device's utilisation, and the time of a
step beside the least that it could take: the operations and the bytes of a step are counted, and divided by what the same device
was just measured to do. Printed as JSON with the date and the device's name. On a CPU it runs small, to see that it runs.
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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from gpu_tests.pipelines.health import bandwidth_gb_s, product_tflops, seconds
from gpu_tests.pipelines.network import CrownNet


@dataclass(frozen=True, kw_only=True)
class Size:
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
    """`least_ms`: by the slower of counted operations and counted bytes; `reached`: that over what it took."""

    dtype: str
    step_ms: float
    images_per_s: float
    gflop: float
    gigabytes: float
    least_ms: float
    reached: float
    utilisation: float | None


def moved(net: nn.Module, work: Callable[[], Any]) -> int:
    """The bytes that the layers of one forward pass read and write: their inputs, outputs and weights, each once."""
    total = 0

    def count(layer: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        nonlocal total
        tensors = [
            one
            for one in (*given, made, *layer.parameters(recurse=False))
            if isinstance(one, Tensor)
        ]
        total += sum(one.nbytes for one in tensors)

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
def sampled(device: torch.device) -> Iterator[list[float]]:
    """The GPU's utilisation, 0 to 1, every 50 ms by NVML; stays empty on a CPU."""
    found: list[float] = []
    if device.type != "cuda":
        yield found
        return
    import pynvml

    pynvml.nvmlInit()
    handle, over = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device()), threading.Event()

    def sample() -> None:
        while not over.wait(0.05):
            found.append(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
        pynvml.nvmlShutdown()


def measure(device: torch.device, size: Size, dtype: torch.dtype, *, training: bool) -> Step:
    """One kind of step. Backward counts twice the operations and bytes of forward, which is what it does for convolutions."""
    net = CrownNet(size.width).to(device)
    images = torch.rand(size.batch, 3, size.px, size.px, device=device)
    truth = (torch.rand(size.batch, size.px, size.px, device=device) > 0.5).float()
    optimiser = torch.optim.AdamW(net.parameters())

    def forward() -> Tensor:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32):
            found: Tensor = net(images)
        return found

    def train() -> None:
        optimiser.zero_grad()
        functional.binary_cross_entropy_with_logits(forward().float(), truth).backward()  # type: ignore[no-untyped-call]  # torch
        optimiser.step()

    def infer() -> None:
        with torch.inference_mode():
            forward()

    work = train if training else infer
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    operations, factor = counter.get_total_flops(), 3 if training else 1
    gigabytes = factor * moved(net, infer) / 1e9
    least = max(
        operations / 1e12 / product_tflops(dtype, size.product, device),
        gigabytes / bandwidth_gb_s(size.copied, device),
    )
    took = seconds(work, device)
    with sampled(device) as utilisation:
        for _ in range(size.steps):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return Step(
        dtype=str(dtype).removeprefix("torch."),
        step_ms=round(1000 * took, 3),
        images_per_s=round(size.batch / took, 1),
        gflop=round(operations / 1e9, 3),
        gigabytes=round(gigabytes, 4),
        least_ms=round(1000 * least, 3),
        reached=round(least / took, 3),
        utilisation=round(sum(utilisation) / len(utilisation), 3) if utilisation else None,
    )


def main() -> int:
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
