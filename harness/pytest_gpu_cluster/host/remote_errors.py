"""Exceptions that end the local session because something was raised on the cluster."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from _pytest._code.code import ReprFileLocation
from _pytest._io import TerminalWriter

from pytest_gpu_cluster.contract.codec import PathMap
from pytest_gpu_cluster.contract.events import Interrupted
from pytest_gpu_cluster.host import deserialize


class RemoteInterrupt(KeyboardInterrupt):
    """KeyboardInterrupt was raised on the cluster, by a test or a hook."""


class InterruptedTest(ReprFileLocation):
    """The test that ran when the user ended the session; None when none ran."""

    def __init__(self, item: pytest.Item | None, message: str) -> None:
        line = item.location[1] if item is not None else None
        super().__init__(str(item.path if item is not None else ""), (line or 0) + 1, message)
        self.reprcrash = self

    def toterminal(self, tw: TerminalWriter) -> None:
        if self.path:
            super().toterminal(tw)


class RemoteInternalError(Exception):
    """pytest itself, or a plugin, failed on the cluster; the text is its traceback."""


def interruption(session: pytest.Session, event: Interrupted, paths: PathMap) -> BaseException:
    """Return the exception that interrupts the session as the remote one was interrupted.

    A hook's shouldfail or shouldstop is set here too.
    """
    if event.shouldfail:
        session.shouldfail = event.shouldfail
        return session.Failed(event.shouldfail)
    if event.shouldstop:
        session.shouldstop = event.shouldstop
        return session.Interrupted(event.shouldstop)
    text = paths.text(event.text)
    stop: Any = RemoteInterrupt(text)
    if event.exit:
        stop = pytest.exit.Exception(text, event.returncode)
    if event.longrepr:
        stop.remote_repr = deserialize.exception_repr(session.config, paths(event.longrepr))
    return stop  # type: ignore[no-any-return]  # one of the two


def notify_exception(
    config: pytest.Config, excinfo: pytest.ExceptionInfo[BaseException], option: Any = None
) -> None:
    """Stand in for `Config.notify_exception`: a remote error is shown by its own traceback."""
    if not isinstance(excinfo.value, RemoteInternalError):
        type(config).notify_exception(config, excinfo, option)
        return
    text = str(excinfo.value)
    shown = deserialize.RemoteRepr(text, text)
    if not any(config.hook.pytest_internalerror(excrepr=shown, excinfo=excinfo)):
        sys.stderr.write("".join(f"INTERNALERROR> {line}\n" for line in text.split("\n")))
