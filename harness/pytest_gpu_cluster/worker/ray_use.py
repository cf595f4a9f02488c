"""Ray in a test process: which test sees the cluster, and the end of a test's connection."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator, Iterator

import pytest

from pytest_gpu_cluster.contract.specs import RayAccess


class RayUse:
    """A plugin: shows the cluster to marked tests, and disconnects what a test has connected."""

    def __init__(self, access: RayAccess | None) -> None:
        self._access = access  # None: this process has no test that drives the cluster
        self._of_fixture = False  # a fixture that outlives its test has called ray.init
        self._connected = False  # at the last look
        self._scope = "function"  # of the fixture that has been set up since

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Show the cluster only to a test that is marked `ray`, from its setup to its teardown.

        The next test's own `ray.init()` would fail where this one's connection is still there.
        """
        marked = self._access is not None and item.get_closest_marker("ray") is not None
        connected = self._connected = is_connected()
        self._scope = "function"
        with ray_environment(self._access) if marked else contextlib.nullcontext():
            result = yield
            self._look("function")
            if is_connected() and not connected and not self._of_fixture:
                sys.modules["ray"].shutdown()
        self._of_fixture = self._of_fixture and is_connected()
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> None:
        """Look what the fixture before this one did. A wrapper would stand in its tracebacks."""
        self._look(fixturedef.scope)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self) -> None:
        self._look("function")

    def _look(self, next_scope: str) -> None:
        if self._scope != "function" and is_connected() and not self._connected:
            self._of_fixture = True
        self._connected, self._scope = is_connected(), next_scope


def is_connected() -> bool:
    """Return True when this process has called ray.init; Ray is not imported for it."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@contextlib.contextmanager
def ray_environment(ray: RayAccess | None) -> Iterator[None]:
    """Set the variables by which Ray finds the cluster, and restore them."""
    variables = (
        {
            "RAY_ADDRESS": ray.address,
            "RAY_AUTH_MODE": "token" if ray.token else "",
            "RAY_AUTH_TOKEN": ray.token,
        }
        if ray is not None
        else {}
    )
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update({name: value for name, value in variables.items() if value})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
