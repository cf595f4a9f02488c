"""Changing what surrounds other plugins' hook functions: the way to mute pytest's reporter and to hear what plugins say."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pluggy
import pytest

OWN = (
    "pytest_gpu_cluster.worker.",
    "pytest_gpu_cluster.fixtures",
)  # modules of this package with hooks


def around(implementation: Any, context: Callable[[], AbstractContextManager[Any]]) -> None:
    """Run every step of a hook implementation inside `context()`; what it yields to stays outside."""
    function = implementation.function

    def call(*args: Any) -> Any:
        with context():
            return function(*args)

    def steps(*args: Any) -> Generator[Any, Any, Any]:
        running = function(*args)
        with context():
            asked = next(running)
        try:
            answer = yield asked
        except BaseException as problem:
            with context():
                return _last(running.throw, problem)
        with context():
            return _last(running.send, answer)

    implementation.function = (
        steps if implementation.wrapper or implementation.hookwrapper else call
    )


def _last(step: Callable[[Any], Any], value: Any) -> Any:
    try:
        step(value)
    except StopIteration as end:
        return end.value
    raise RuntimeError("a hook wrapper yielded twice")


def answers(caller: pluggy.HookCaller, heard: list[tuple[str, Any]]) -> None:
    """Keep, in `heard`, what plugins other than pytest's own answer to a hook, in the order in which they are asked."""
    for implementation in foreign(caller):
        if implementation.wrapper or implementation.hookwrapper:
            continue

        def call(
            *args: Any,
            function: Any = implementation.function,
            name: str = implementation.plugin_name,
        ) -> Any:
            answer = function(*args)
            heard.append((name, answer))
            return answer

        implementation.function = call


def foreign(caller: pluggy.HookCaller) -> Iterator[Any]:
    """Implementations of a hook that are neither pytest's nor ours."""
    for implementation in caller.get_hookimpls():
        module = getattr(implementation.function, "__module__", None) or ""
        if module.partition(".")[0] not in ("_pytest", "pytest") and not module.startswith(OWN):
            yield implementation


def installed(config: pytest.Config) -> set[str]:
    """Top-level modules of plugins that come from an installed distribution: the client is expected to have them too."""
    plugins = (plugin for plugin, _ in config.pluginmanager.list_plugin_distinfo())
    names = (getattr(plugin, "__name__", None) or type(plugin).__module__ for plugin in plugins)
    return {name.partition(".")[0] for name in names}
