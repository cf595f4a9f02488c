"""What any of our own tests may use; nothing here knows a part of the product."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import settings

# How long an example takes is the machine's matter: a busy one is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Started with `&` from a script, this process ignores Ctrl-C, and so would each process of a test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


class RunPython(Protocol):
    def __call__(
        self, *args: str, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this repository, absolute."""
    return ROOT


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Run this interpreter with this repository importable; `env` is added, output is text."""

    def run(
        *args: str, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *args]
        full = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        return subprocess.run(
            command,
            cwd=cwd or tmp_path,
            env=full,
            text=True,
            capture_output=True,
            timeout=120,
            check=False,
        )

    return run
