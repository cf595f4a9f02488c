"""The pipelines' programs, started as a team starts them: `python -m gpu_tests.pipelines.NAME`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PACKAGE = __package__ or ""
ROOT = Path(__file__).resolve().parents[PACKAGE.count(".") + 1]


def start_program(name: str, argument: str) -> subprocess.Popen[str]:
    """Start a program as a driver of its own, which can be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", f"{PACKAGE}.pipelines.{name}", argument],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def last_line(process: subprocess.Popen[str], name: str, *, timeout_s: float) -> str:
    """Wait for a program and return the last line of its output.

    Fails with the program's errors when its exit code is not 0. A program that is late is killed.
    """
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    code = process.returncode
    assert code == 0, f"the {name} ended with {code}: {errors[-3000:]}"
    return output.splitlines()[-1]
