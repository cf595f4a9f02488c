"""Ray in a test process: which test sees the cluster, and what is over when the test is over."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract import loopback
from pytest_gpu_cluster.contract.specs import RayAccess, WorkerSpec
from pytest_gpu_cluster.ray_remains import Books, Job, end_remains_of, process_name
from pytest_gpu_cluster.worker import ray_tasks
from pytest_gpu_cluster.worker.ray_output import PrintedByTasks

CODE = Path(__file__).parents[2]  # the import root of this package


class RayUse:
    """A plugin: shows the cluster to marked tests, and ends what a test leaves connected there."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        # None: this process has no test that drives the cluster
        self._driver = Driver(spec, spec.ray) if spec.ray is not None else None
        self._of_fixture = False  # a fixture that outlives its test has called ray.init
        self._connected = False  # at the last look
        self._scope = "function"  # of the fixture that has been set up since

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Show the cluster only to a test that is marked `ray`, from its setup to its teardown.

        The next test's own `ray.init()` would fail where this one's connection is still there.
        """
        driver = self._driver if item.get_closest_marker("ray") is not None else None
        connected = self._connected = is_connected()
        self._scope = "function"
        with driver.driving() if driver is not None else contextlib.nullcontext():
            result = yield
            self._look("function")
            stays = not is_connected() or connected or self._of_fixture
            if driver is not None:
                driver.end_remains(item, disconnects=not stays)
            if not stays:
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

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """Add what tasks have printed last to the output of the call."""
        if self._driver is not None and call.when == "call":
            self._driver.printed.add_to(item)

    def _look(self, next_scope: str) -> None:
        if self._scope != "function":
            if is_connected() and not self._connected:
                self._of_fixture = True
            if self._driver is not None:
                self._driver.keep_jobs()
        self._connected, self._scope = is_connected(), next_scope


class Driver:
    """The jobs of a process whose tests drive the cluster."""

    def __init__(self, spec: WorkerSpec, access: RayAccess) -> None:
        self._spec, self._access = spec, access
        self._process = process_name(spec.testrun, spec.worker)
        self._kept: set[str] = set()  # jobs of fixtures that outlive their test
        self._known: dict[str, bool] = {}  # is a job of this process, by its id
        self._books: Books | None = None  # of Ray, once something was asked
        self.printed = PrintedByTasks(Path(access.logs), self._is_mine)

    @contextlib.contextmanager
    def driving(self) -> Iterator[None]:
        """Let Ray find the cluster, and let its tasks find the tree."""
        ray_tasks.write_variables(self._spec)
        self.printed.start()
        loopback.follow_address(self._access.address)
        with environment(
            access_variables(self._access) | dict(ray_tasks.variables(self._spec, CODE))
        ):
            try:
                yield
            finally:
                self.printed.stop()
                loopback.follow_address("")  # another test may connect to a Ray elsewhere

    def keep_jobs(self) -> None:
        """Let the jobs so far stay: a fixture that outlives its test may have begun them."""
        self._kept |= {job.id for job in self._jobs()}

    def end_remains(self, item: pytest.Item, *, disconnects: bool) -> None:
        """End what the test left in Ray, and say it in a warning of the test.

        That is what jobs of this process left that have ended, or end now, as it `disconnects`.
        """
        mine = str(sys.modules["ray"].get_runtime_context().get_job_id()) if disconnects else ""

        def belongs(job: Job) -> bool:
            of_test = job.process == self._process and job.id not in self._kept
            return of_test and (job.ended or job.id == mine)

        with contextlib.ExitStack() as connection:
            left = end_remains_of(
                self._access.address, belongs, connect=lambda: self._connect(connection)
            )
        if left:
            warn(item, f"left in Ray, and ended after the test: {'; '.join(left.lines())}")

    def _connect(self, connection: contextlib.ExitStack) -> None:
        ray = sys.modules["ray"]
        if not ray.is_initialized():
            ray.init(self._access.address, log_to_driver=False, configure_logging=False)
            connection.callback(ray.shutdown)

    def _is_mine(self, job: str) -> bool:
        if job not in self._known:
            self._known |= {each.id: each.process == self._process for each in self._jobs()}
        return self._known.get(job, False)

    def _jobs(self) -> list[Job]:
        self._books = self._books or Books(self._access.address)
        return self._books.jobs()


def is_connected() -> bool:
    """Return True when this process has called ray.init; Ray is not imported for it."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def access_variables(access: RayAccess) -> dict[str, str]:
    """Return the variables by which Ray finds the cluster."""
    variables = {
        "RAY_ADDRESS": access.address,
        "RAY_AUTH_MODE": "token" if access.token else "disabled",
        "RAY_AUTH_TOKEN": access.token,
        **(loopback.VARIABLES if loopback.is_loopback(access.address) else {}),
    }
    return {name: value for name, value in variables.items() if value}


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables, and restore them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def warn(item: pytest.Item, text: str) -> None:
    """Record a warning of a test. It is none that a filter may turn into an error."""
    path, line, _ = item.location
    message = warnings.WarningMessage(
        pytest.PytestWarning(text), pytest.PytestWarning, path, (line or 0) + 1, line=""
    )
    item.ihook.pytest_warning_recorded.call_historic(
        kwargs={
            "warning_message": message,
            "nodeid": item.nodeid,
            "when": "runtest",
            "location": None,
        }
    )
