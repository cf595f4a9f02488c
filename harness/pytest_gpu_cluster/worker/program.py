"""A test process looks to its tests like the pytest that the user has started."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType

import pytest

THIRD_PARTY = os.path.join("ray", "thirdparty_files")
MODULE = "pytest.__main__"
_forked: list[ModuleType] = []  # the fork server's main module, whose functions are still running


def script(program: str) -> str:
    """Return the path of pytest's console script on this node; "" for `python -m pytest`.

    `program` is the name of what the client ran. Where it is not installed here, it is as if
    pytest had been started as a module: children of `multiprocessing` read the file again.
    """
    path = os.path.join(os.path.dirname(sys.executable), program)
    return path if program and program != "__main__.py" and os.path.isfile(path) else ""


def show(program: str, arguments: Sequence[str]) -> None:
    """Set sys.argv, sys.orig_argv and `__main__` as plain pytest has them."""
    path = script(program)
    spec = None if path else importlib.util.find_spec(MODULE)
    start = [path] if path else ["-m", "pytest"]
    origin = path or (spec.origin if spec is not None else None) or program
    sys.argv = [origin, *arguments]
    sys.orig_argv = [sys.executable, *start, *arguments]
    main = ModuleType("__main__")
    main.__file__, main.__spec__ = origin, spec
    main.__package__ = None if path else "pytest"
    vars(main)["_console_main"] = pytest.console_main
    _forked.append(sys.modules["__main__"])
    # `multiprocessing` has a second name for it.
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main


def order_imports(program: str, code: str) -> None:
    """Put what plain pytest does not have at the end of sys.path, and its script's directory first.

    At the end are the directory `code` of this package, and that of the packages of Ray's own.
    """
    last = [path for path in sys.path if path == code or path.endswith(THIRD_PARTY)]
    first = [os.path.dirname(path) for path in [script(program)] if path]
    sys.path[:] = [*first, *(path for path in sys.path if path not in last), *last]
