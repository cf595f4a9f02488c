"""Wrap other plugins' hook functions: mute pytest's reporter, record the answers of plugins."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeAlias, cast

import pluggy
import pytest

# Modules of this package that implement hooks.
OUR_MODULES = ("pytest_gpu_cluster.worker.", "pytest_gpu_cluster.fixtures")
Answer: TypeAlias = tuple[str, object]  # name of a plugin, and what its hook function returned
Steps: TypeAlias = Generator[object, object, object]  # a hook wrapper that runs


def replace_function(implementation: pluggy.HookImpl, function: Callable[..., object]) -> None:
    """Let a hook call `function`, which takes its arguments by position, in this place."""
    # Final in pluggy's annotations; pluggy itself reads it anew for every call.
    implementation.function = function  # type: ignore[misc]


def surround(
    implementation: pluggy.HookImpl, context: Callable[[], AbstractContextManager[None]]
) -> None:
    """Run every step of a hook implementation inside `context()`.

    The implementations that a wrapper yields to stay outside.
    """
    function = implementation.function

    def call(*args: object) -> object:
        with context():
            return function(*args)

    def steps(*args: object) -> Steps:
        wrapper = cast(Steps, function(*args))
        with context():
            value = next(wrapper)
        try:
            answer = yield value
        except BaseException as problem:  # noqa: BLE001 - passed on to the hook that is surrounded
            with context():
                return _finish(partial(wrapper.throw, problem))
        with context():
            return _finish(partial(wrapper.send, answer))

    is_wrapper = implementation.wrapper or implementation.hookwrapper
    replace_function(implementation, steps if is_wrapper else call)


def _finish(step: Callable[[], object]) -> object:
    """Take the last step of a wrapper and return its result."""
    try:
        step()
    except StopIteration as end:
        return end.value
    raise RuntimeError("a hook wrapper yielded twice")


def record_answers(caller: pluggy.HookCaller, answers: list[Answer]) -> None:
    """Let `answers` collect what third-party plugins return, in the order of the calls."""
    for implementation in third_party(caller):
        if not (implementation.wrapper or implementation.hookwrapper):
            record_answer(implementation, implementation.plugin_name, answers)


def record_answer(implementation: pluggy.HookImpl, name: str, answers: list[Answer]) -> None:
    """Let `answers` collect what one implementation returns, under `name`."""
    function = implementation.function

    def call(*args: object) -> object:
        answer = function(*args)
        answers.append((name, answer))
        return answer

    replace_function(implementation, call)


def third_party(caller: pluggy.HookCaller) -> Iterator[pluggy.HookImpl]:
    """Return the implementations of a hook that are neither pytest's nor ours."""
    for implementation in caller.get_hookimpls():
        module = getattr(implementation.function, "__module__", None) or ""
        if module.partition(".")[0] not in ("_pytest", "pytest") and not module.startswith(
            OUR_MODULES
        ):
            yield implementation


def module_of(implementation: pluggy.HookImpl) -> str:
    """Return the name of the module that implements a hook."""
    return getattr(implementation.function, "__module__", None) or ""


def shared_modules(config: pytest.Config, names: Collection[str]) -> set[str]:
    """Return the top-level modules of installed plugins that the client has, by their `names`.

    What such a plugin registers itself has no name, or another one in each process.
    """
    manager = config.pluginmanager
    plugins = (plugin for plugin, _ in manager.list_plugin_distinfo())
    shared = (plugin for plugin in plugins if manager.get_name(plugin) in names)
    return {_module_name(plugin).partition(".")[0] for plugin in shared}


def _module_name(plugin: object) -> str:
    return getattr(plugin, "__name__", None) or type(plugin).__module__


def installed_modules(config: pytest.Config) -> set[str]:
    """Return the top-level modules of plugins that come from an installed distribution.

    The client is expected to have these plugins too.
    """
    plugins = (plugin for plugin, _ in config.pluginmanager.list_plugin_distinfo())
    return {_module_name(plugin).partition(".")[0] for plugin in plugins}
