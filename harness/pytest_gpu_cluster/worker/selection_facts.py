"""Facts of the selection that the agent and the client act on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pytest

from pytest_gpu_cluster.contract.selection import Raised, SelectionOptions, Stepwise
from pytest_gpu_cluster.worker import snapshots
from pytest_gpu_cluster.worker.hooks import installed_modules, third_party
from pytest_gpu_cluster.worker.scopes import (
    Scopes,
    fixed_reason,
    has_mark,
    ordering,
    unused_options,
)

# A plugin with one of these hooks may want to see every report.
REPORT_HOOKS = ("logreport", "logstart", "logfinish")


def raised(problem: BaseException | None) -> Raised | None:
    """Return what ended the collection before its end: `-x`, or a hook that stopped the session."""
    if isinstance(problem, pytest.Session.Failed):
        return Raised(kind="failed", text=str(problem))
    if isinstance(problem, pytest.Session.Interrupted):
        return Raised(kind="interrupted", text=str(problem))
    return None


def collection_problem(session: pytest.Session) -> str:
    """Return pytest's reason to run no test after errors; empty when tests may run."""
    failed = session.testsfailed
    if failed and not session.config.option.continue_on_collection_errors:
        return f"{failed} error{'s' if failed != 1 else ''} during collection"
    return ""


def selection_options(
    config: pytest.Config, items: Sequence[pytest.Item], *, reordered: bool, scopes: Scopes
) -> SelectionOptions:
    option = config.option
    bound, reason = ordering(config, items, reordered=reordered, scopes=scopes)
    return SelectionOptions(
        maxfail=option.maxfail or 0,  # pytest has None or 0 for no limit
        capture=getattr(option, "capture", "no"),
        stepwise_limit=stepwise_limit(vars(option)),
        randomly_seed=getattr(option, "randomly_seed", None),
        wants_reports=wants_reports(config) or snapshots.are_used(config, items),
        distribution=scopes.how,
        ordering=bound,
        ordering_reason=reason,
        ordering_fixed=bool(fixed_reason(config)),
        unused=unused_options(config),
        remarks=tuple(remarks(config, items)),
    )


def remarks(config: pytest.Config, items: Sequence[pytest.Item]) -> Iterator[str]:
    """Yield what plugins cannot do where several processes run the tests."""
    dependent = [item for item in items if has_mark(item, "dependency")]
    if len({_devices(item) for item in dependent}) > 1:
        yield (
            "pytest-dependency: dependent tests ask for different devices and run in different"
            " processes; one that depends on a test of another process is skipped"
        )


def _devices(item: pytest.Item) -> str:
    """Return a text that is equal for tests that ask for the same devices by their marks."""
    marks = (item.get_closest_marker(name) for name in ("gpu", "ray"))
    return " ".join(f"{mark.name}{mark.args}{mark.kwargs}" if mark else "" for mark in marks)


def wants_reports(config: pytest.Config) -> bool:
    """Return True if a hook of the user's own may ask for the reports of all tests.

    A hook of an installed plugin does not count: the client runs it itself.
    """
    modules = installed_modules(config)
    hook = config.pluginmanager.hook
    callers = [getattr(hook, f"pytest_runtest_{name}") for name in REPORT_HOOKS]
    callers += [hook.pytest_terminal_summary, hook.pytest_sessionfinish, hook.pytest_unconfigure]
    return any(
        (implementation.function.__module__ or "").partition(".")[0] not in modules
        for caller in callers
        for implementation in third_party(caller)
    )


def stepwise_limit(options: Mapping[str, object]) -> int:
    """Return the number of failures after which stepwise starts no further test; 0 without it."""
    return 2 if options.get("stepwise_skip") else 1 if options.get("stepwise") else 0


def stepwise(config: pytest.Config) -> Stepwise | None:
    """Return what pytest's stepwise plugin remembers; None without the plugin."""
    plugin = config.pluginmanager.get_plugin("stepwiseplugin")
    if plugin is None:
        return None
    failed = plugin.cached_info.last_failed
    return Stepwise(
        last_failed=None if failed is None else str(failed),
        last_test_count=plugin.cached_info.last_test_count,
    )
