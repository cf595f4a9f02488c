"""What GPUs a node has: by NVML, or simulated ones that only Ray's books and CUDA_VISIBLE_DEVICES know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_gpu_cluster.contract.fields import Noun


@dataclass(frozen=True, kw_only=True)
class Gpu(Noun):
    """One device. `id` is what CUDA_VISIBLE_DEVICES calls it."""

    id: str
    name: str
    memory_gib: float
    simulated: bool


def by_nvml(environ: Mapping[str, str]) -> tuple[list[Gpu], str | None]:
    """The real devices inside the caller's CUDA_VISIBLE_DEVICES mask, and the driver's version; ([], None) without NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no library, no driver: each means that no device can be used
        return [], None
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory_gib = pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30
            found.append(
                (
                    str(pynvml.nvmlDeviceGetUUID(handle)),
                    index,
                    str(pynvml.nvmlDeviceGetName(handle)),
                    memory_gib,
                )
            )
        driver = str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()
    mask = environ.get("CUDA_VISIBLE_DEVICES")
    if mask is None:
        return [_real(str(index), name, gib) for _, index, name, gib in found], driver
    chosen = []
    for word in filter(None, (word.strip() for word in mask.split(","))):
        match = next(
            (
                f
                for f in found
                if word == str(f[1]) or (word.startswith("GPU-") and f[0].startswith(word))
            ),
            None,
        )
        if match is None:
            break  # as CUDA does: nothing after a wrong id is visible
        chosen.append(_real(word, match[2], match[3]))
    return chosen, driver


def _real(identifier: str, name: str, memory_gib: float) -> Gpu:
    return Gpu(id=identifier, name=name, memory_gib=round(memory_gib, 1), simulated=False)


def devices(
    environ: Mapping[str, str], *, wanted: int | str, simulated: int
) -> tuple[list[Gpu], str | None]:
    """The devices a node offers: `wanted` ("auto": all) real ones, else `simulated` ones. Also the driver's version."""
    real, driver = by_nvml(environ)
    if real:
        return (real if wanted == "auto" else real[: int(wanted)]), driver
    count = simulated if wanted == "auto" or simulated == 0 else int(wanted)
    return [
        Gpu(id=str(n), name="simulated GPU", memory_gib=0.0, simulated=True) for n in range(count)
    ], None
