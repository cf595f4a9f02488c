"""Is this device fit to compute on? Products against float64, memory that keeps what is written, and how fast both are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import Tensor, distributed

REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is done. `product`: side of the matrices; `memory_bytes`: what is swept."""

    product: int
    memory_bytes: int


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The median of REPEATS, after one that warms up; a GPU is waited for."""
    taken = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return sorted(taken[1:])[REPEATS // 2]


def product_error(dtype: torch.dtype, side: int, device: torch.device, *, seed: int = 0) -> float:
    """The largest error of a matrix product in `dtype`, over the largest entry of the same product in float64 on the CPU."""
    source = torch.Generator().manual_seed(seed)
    left, right = (
        torch.randn(side, side, generator=source, dtype=torch.float64).to(dtype) for _ in range(2)
    )
    wanted = left.double() @ right.double()
    found = (left.to(device) @ right.to(device)).double().cpu()
    return float((found - wanted).abs().max() / wanted.abs().max())


def product_tflops(dtype: torch.dtype, side: int, device: torch.device) -> float:
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: left @ right, device) / 1e12


def bandwidth_gb_s(memory_bytes: int, device: torch.device) -> float:
    """Of a copy within the device's memory: bytes read and written."""
    source = torch.ones(memory_bytes // 8, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device) / 1e9


def copies_gb_s(memory_bytes: int, device: torch.device) -> dict[str, float]:
    """Host to device and back, from pinned memory where there is a GPU. Raises RuntimeError when other bytes come back."""
    count = memory_bytes // 8
    host = torch.arange(count, dtype=torch.int32).view(torch.float32)
    host = host.pin_memory() if device.type == "cuda" else host
    there, back = torch.empty(count, device=device), torch.empty_like(host)
    speeds = {
        "to_device": host.nbytes / seconds(lambda: there.copy_(host), device) / 1e9,
        "to_host": host.nbytes / seconds(lambda: back.copy_(there), device) / 1e9,
    }
    if not torch.equal(back.view(torch.int32), host.view(torch.int32)):
        raise RuntimeError(f"{device} gave back other bytes than were copied to it")
    return speeds


def sweep(
    memory_bytes: int, device: torch.device, *, piece: int = 64 << 20
) -> Iterator[tuple[int, int]]:
    """Write patterns over memory and read them back: for each piece its offset and how many bytes were wrong.

    All pieces are held at once, so that each is other memory; every bit is once 0 and once 1.
    """
    size = min(piece, memory_bytes)
    held = [
        torch.empty(size, dtype=torch.uint8, device=device) for _ in range(memory_bytes // size)
    ]
    wrong = [0] * len(held)
    for flipped in (0x00, 0xFF):
        for number, memory in enumerate(held):
            memory.fill_((0x55 + number) % 256 ^ flipped)
        for number, memory in enumerate(held):
            wrong[number] += int((memory != (0x55 + number) % 256 ^ flipped).sum())
    yield from ((number * size, count) for number, count in enumerate(wrong))


class Rank:
    """One member of a collective, on the device that its actor was given."""

    def __init__(self, cuda: bool) -> None:
        self.device = torch.device("cuda" if cuda else "cpu")

    def place(self) -> tuple[str, int]:
        """An address of this node where a rendezvous can be, and a port that is free now."""
        import socket

        with socket.socket() as free:
            free.bind(("", 0))
            return str(ray.util.get_node_ip_address()), int(free.getsockname()[1])  # type: ignore[no-untyped-call]  # ray

    def join(self, address: str, rank: int, world: int, alone: bool) -> str:
        """Returns the node, so that it is known how far the collective reached. `alone`: on its GPU; two on one talk through the CPU."""
        backend = "nccl" if self.device.type == "cuda" and alone else "gloo"
        distributed.init_process_group(
            backend, init_method=f"tcp://{address}", rank=rank, world_size=world
        )
        return str(ray.get_runtime_context().get_node_id())

    def reduce(self, count: int) -> tuple[float, float]:
        """Sum `rank + 1` over all ranks, `count` floats: the largest error, and GB/s of what one rank sends."""
        rank, world = distributed.get_rank(), distributed.get_world_size()
        values: Tensor = torch.full((count,), float(rank + 1), device=self.device)
        distributed.all_reduce(values)
        error = float((values - world * (world + 1) / 2).abs().max())
        taken = seconds(lambda: distributed.all_reduce(values), self.device)
        distributed.destroy_process_group()
        return error, 2 * (world - 1) / world * values.nbytes / taken / 1e9


def all_reduce(ranks: int, count: int, *, cuda: bool, gpus: float = 1) -> tuple[int, float, float]:
    """A collective over `ranks` actors with `gpus` of a GPU each, spread over the nodes: nodes reached, largest error, slowest GB/s."""
    made: Any = ray.remote(num_cpus=0, num_gpus=gpus, scheduling_strategy="SPREAD")(Rank)
    actors = [made.remote(cuda) for _ in range(ranks)]
    try:
        host, port = ray.get(actors[0].place.remote())
        nodes = ray.get(
            [
                actor.join.remote(f"{host}:{port}", rank, ranks, gpus >= 1)
                for rank, actor in enumerate(actors)
            ]
        )
        found = ray.get([actor.reduce.remote(count) for actor in actors])
    finally:
        for actor in actors:
            ray.kill(actor)
    return len(set(nodes)), max(error for error, _ in found), min(speed for _, speed in found)
