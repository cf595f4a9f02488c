"""The health of a device: products against float64, memory that keeps its content, and speeds."""

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
    """The amount of work.

    `product`: side of the matrices; `memory_bytes`: size of the memory swept.
    """

    product: int
    memory_bytes: int


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the median seconds of REPEATS calls after one that warms up; a GPU is synchronised."""
    durations = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(time.perf_counter() - began)
    return sorted(durations[1:])[REPEATS // 2]


def product_error(dtype: torch.dtype, side: int, device: torch.device, *, seed: int = 0) -> float:
    """Return the largest error of a matrix product in `dtype`, over the product's largest entry.

    The reference is the same product in float64 on the CPU.
    """
    source = torch.Generator().manual_seed(seed)
    a, b = (
        torch.randn(side, side, generator=source, dtype=torch.float64).to(dtype) for _ in range(2)
    )
    expected = a.double() @ b.double()
    actual = (a.to(device) @ b.to(device)).double().cpu()
    return float((actual - expected).abs().max() / expected.abs().max())


def product_tflops(dtype: torch.dtype, side: int, device: torch.device) -> float:
    """Return the speed of a product of two matrices of this side, in 10^12 operations a second."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device) / 1e12


def bandwidth_gb_s(memory_bytes: int, device: torch.device) -> float:
    """Return the bandwidth of a copy within the device's memory: bytes read and written."""
    source = torch.ones(memory_bytes // 8, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device) / 1e9


def copies_gb_s(memory_bytes: int, device: torch.device) -> dict[str, float]:
    """Return the speed from host to device and back, from pinned memory where there is a GPU.

    Raises RuntimeError when other bytes come back.
    """
    count = memory_bytes // 8
    host = torch.arange(count, dtype=torch.int32).view(torch.float32)
    host = host.pin_memory() if device.type == "cuda" else host
    on_device, back = torch.empty(count, device=device), torch.empty_like(host)
    speeds = {
        "to_device": host.nbytes / seconds(lambda: on_device.copy_(host), device) / 1e9,
        "to_host": host.nbytes / seconds(lambda: back.copy_(on_device), device) / 1e9,
    }
    if not torch.equal(back.view(torch.int32), host.view(torch.int32)):
        raise RuntimeError(f"{device} gave back other bytes than were copied to it")
    return speeds


def sweep(
    memory_bytes: int, device: torch.device, *, piece: int = 64 << 20
) -> Iterator[tuple[int, int]]:
    """Write patterns over memory and read them back.

    Yields each piece's offset and its number of wrong bytes. All pieces are allocated at once, so
    that each is other memory; every bit is once 0 and once 1.
    """
    size = min(piece, memory_bytes)
    pieces = [
        torch.empty(size, dtype=torch.uint8, device=device) for _ in range(memory_bytes // size)
    ]
    wrong = [0] * len(pieces)
    for flipped in (0x00, 0xFF):
        for number, memory in enumerate(pieces):
            memory.fill_((0x55 + number) % 256 ^ flipped)
        for number, memory in enumerate(pieces):
            wrong[number] += int((memory != (0x55 + number) % 256 ^ flipped).sum())
    yield from ((number * size, count) for number, count in enumerate(wrong))


class Rank:
    """One member of a collective, on the device of its actor."""

    def __init__(self, cuda: bool) -> None:
        self.device = torch.device("cuda" if cuda else "cpu")

    def address(self) -> tuple[str, int]:
        """Return an address of this node for a rendezvous, and a port that is free now."""
        import socket

        with socket.socket() as free:
            free.bind(("", 0))
            host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # ray
            return str(host), int(free.getsockname()[1])

    def join(self, address: str, rank: int, world: int, alone: bool) -> str:
        """Join the collective and return the node's id, which shows how far the collective reaches.

        `alone`: the rank has a GPU of its own. Two ranks on one GPU talk through the CPU.
        """
        backend = "nccl" if self.device.type == "cuda" and alone else "gloo"
        distributed.init_process_group(
            backend, init_method=f"tcp://{address}", rank=rank, world_size=world
        )
        return str(ray.get_runtime_context().get_node_id())

    def reduce(self, count: int) -> tuple[float, float]:
        """Sum `rank + 1` over all ranks, `count` floats.

        Returns the largest error, and the GB/s of what one rank sends.
        """
        rank, world = distributed.get_rank(), distributed.get_world_size()
        values: Tensor = torch.full((count,), float(rank + 1), device=self.device)
        distributed.all_reduce(values)
        error = float((values - world * (world + 1) / 2).abs().max())
        duration = seconds(lambda: distributed.all_reduce(values), self.device)
        distributed.destroy_process_group()
        return error, 2 * (world - 1) / world * values.nbytes / duration / 1e9


def all_reduce(ranks: int, count: int, *, cuda: bool, gpus: float = 1) -> tuple[int, float, float]:
    """Run a collective over `ranks` actors with `gpus` of a GPU each, spread over the nodes.

    Returns the number of nodes reached, the largest error and the slowest GB/s.
    """
    actor_class: Any = ray.remote(num_cpus=0, num_gpus=gpus, scheduling_strategy="SPREAD")(Rank)
    actors = [actor_class.remote(cuda) for _ in range(ranks)]
    try:
        host, port = ray.get(actors[0].address.remote())
        nodes = ray.get(
            [
                actor.join.remote(f"{host}:{port}", rank, ranks, gpus >= 1)
                for rank, actor in enumerate(actors)
            ]
        )
        results = ray.get([actor.reduce.remote(count) for actor in actors])
    finally:
        for actor in actors:
            ray.kill(actor)
    return len(set(nodes)), max(error for error, _ in results), min(speed for _, speed in results)
