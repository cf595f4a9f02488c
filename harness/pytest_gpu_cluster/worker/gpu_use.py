"""Tests that hold a GPU because nobody said otherwise, and do not touch one."""

from __future__ import annotations

import os
import re
import resource
import sys

import pytest

FIXTURES = ("device", "gpus")
# Where GPUs are simulated, a process that has one of these may have computed in a GPU's place.
LIBRARIES = ("torch", "jax", "tensorflow", "cupy", "numba", "pycuda", "ray", "triton")
DRIVER = "/dev/nvidiactl"
DEVICE = re.compile(r"/dev/nvidia\d")


class GpuUse:
    """A plugin that counts the tests without a mark which took neither `device` nor `gpus`."""

    def __init__(self) -> None:
        self._tests = 0
        self._asked = False  # the running test, for a device
        self._children: tuple[int, str] | None = None  # at the first test

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._children = self._children or _children()
        marked = any(item.get_closest_marker(name) for name in ("gpu", "ray"))
        names = getattr(item, "fixturenames", ())
        self._asked = marked or any(name in names for name in FIXTURES)

    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> None:
        self._asked = self._asked or fixturedef.argname in FIXTURES

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self) -> None:
        self._tests += not self._asked

    def unused(self) -> int:
        """Return the number of these tests; 0 where one of the process may have used a GPU."""
        if _children() != self._children or _holds_device():
            return 0
        simulated = not os.path.exists(DRIVER)
        return 0 if simulated and any(name in sys.modules for name in LIBRARIES) else self._tests


def _holds_device() -> bool:
    """Return True once CUDA has opened a device, by whatever library; it stays open."""
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # it was the listing's own
            continue
        if DEVICE.match(target):
            return True
    return False


def _children() -> tuple[int, str]:
    """Return a value that changes when this process has, or has had, another child."""
    pid = os.getpid()
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            living = file.read()
    except OSError:  # a kernel without it
        living = ""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt, living
