"""The GPUs of a node: by NVML, or simulated ones.

A simulated GPU exists only in Ray's resources and in CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from pytest_gpu_cluster.contract.errors import InfrastructureError
from pytest_gpu_cluster.contract.fields import Noun
from pytest_gpu_cluster.contract.frozen import dataclass


@dataclass(frozen=True, kw_only=True)
class Gpu(Noun):
    """One device. `id` is what CUDA_VISIBLE_DEVICES calls it."""

    id: str
    name: str
    memory_gib: float
    simulated: bool


def by_nvml(environ: Mapping[str, str]) -> tuple[list[Gpu], str | None]:
    """Return the real devices that CUDA_VISIBLE_DEVICES allows, and the driver's version.

    Without NVML they are ([], None).
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no package, no library, no driver: no device is usable
        return [], None
    try:
        devices = list(map(_device, range(pynvml.nvmlDeviceGetCount())))
        driver = str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()
    mask = environ.get("CUDA_VISIBLE_DEVICES")
    if mask is None:
        return [device.as_gpu(str(device.number)) for device in devices], driver
    visible = []
    for word in filter(None, (word.strip() for word in mask.split(","))):
        match = next((device for device in devices if device.is_named(word)), None)
        if match is None:
            break  # as in CUDA: nothing after a wrong id is visible
        visible.append(match.as_gpu(word))
    return visible, driver


class _Device(NamedTuple):
    """A device as NVML describes it."""

    number: int
    uuid: str
    name: str
    memory_gib: float

    def is_named(self, word: str) -> bool:
        """Return whether a word of CUDA_VISIBLE_DEVICES means this device."""
        return word == str(self.number) or (word.startswith("GPU-") and self.uuid.startswith(word))

    def as_gpu(self, identifier: str) -> Gpu:
        memory_gib = round(self.memory_gib, 1)
        return Gpu(id=identifier, name=self.name, memory_gib=memory_gib, simulated=False)


def _device(number: int) -> _Device:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(number)
    return _Device(
        number=number,
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        memory_gib=pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30,
    )


def node_gpus(
    environ: Mapping[str, str], *, requested: int | Literal["auto"], simulated: int, required: bool
) -> tuple[list[Gpu], str | None]:
    """Return the devices that a node offers, and the driver's version.

    They are `requested` real devices ("auto": all), or where NVML finds none and `simulated` allows
    it, simulated ones. Raises InfrastructureError where there are fewer than that, and with
    `required` where there is no real one: a test that passes without its GPU proves nothing.
    """
    real, driver = by_nvml(environ)
    ordered = 1 if requested == "auto" and required else 0 if requested == "auto" else requested
    may_simulate = not real and not required and simulated > 0
    if len(real) < ordered and not may_simulate:
        raise InfrastructureError(
            f"{ordered} GPU{'s' if ordered > 1 else ''} ordered, and NVML finds {len(real)} here",
            remedy="look at the machine's type and at its driver (nvidia-smi); then run again",
        )
    if real:
        return (real if requested == "auto" else real[:requested]), driver
    count = simulated if requested == "auto" or not may_simulate else requested
    return [_simulated(str(number)) for number in range(count)], None


# Of the processes of a Ray of our own tests, which has no real devices; no setting leads to it.
SIMULATED = "GPU_CLUSTER_INTERNAL_SIMULATED"


def given_gpus(environ: Mapping[str, str], ids: Sequence[str]) -> tuple[list[Gpu], str | None]:
    """Return the devices that Ray has given by their ids, and the driver's version.

    Raises InfrastructureError where NVML does not find them: then they are none.
    """
    real, driver = by_nvml({**environ, "CUDA_VISIBLE_DEVICES": ",".join(ids)})
    if len(real) == len(ids):
        return real, driver
    if SIMULATED in environ and not real:
        return [_simulated(each) for each in ids], None
    raise InfrastructureError(
        f"Ray has given the GPUs {', '.join(ids)}, and NVML finds {len(real)} of them on this node",
        remedy="look at `nvidia-smi` there, and at what `ray start --num-gpus` was told",
    )


def _simulated(identifier: str) -> Gpu:
    return Gpu(id=identifier, name="simulated GPU", memory_gib=0.0, simulated=True)
