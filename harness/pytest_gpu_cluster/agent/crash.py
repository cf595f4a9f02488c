"""What is said of a process that died: its signal or exit code, and its last words."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any


def crash_text(message: Mapping[str, Any], where: str) -> str:
    """`crash: SIGSEGV …` or `crash: exit 3 …`."""
    status = message["status"]
    try:
        name = f"exit {status}" if status is None or status >= 0 else signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (out of memory?)" if status == -signal.SIGKILL and not message.get("ordered") else ""
    return f"crash: {name}{hint} {where}"


def with_last_words(text: str, message: Mapping[str, Any]) -> str:
    """`text`, then the last output of a dead process: what pytest had captured, and what went to its own stdout and stderr.

    In the failure itself, not in sections beside it: JUnit leaves those out by default.
    """
    named = (
        ("Captured stdout", "captured_out"),
        ("Captured stderr", "captured_err"),
        ("Process stdout", "out"),
        ("Process stderr", "err"),
    )
    said = [
        (name, without_our_frames(str(message[key]))) for name, key in named if message.get(key)
    ]
    return "\n".join([text, *(f"{f' {name} ':-^80}\n{output.rstrip()}" for name, output in said)])


# Frames that bring Python to the test: below them its reader finds nothing of his own.
CALLERS = (
    "/pytest_gpu_cluster/worker/main.py",
    " in pytest_pyfunc_call",
    " in call_fixture_func",
    " in _teardown_yield_fixture",
    " in importtestmodule",
)


def without_our_frames(text: str) -> str:
    """faulthandler's trace down to the test: not the frames that brought it there, not the list of extension modules."""
    kept, trace, ours = [], False, False
    for line in text.splitlines(keepends=True):
        frame = line.startswith('  File "')
        trace = line.startswith(("Current thread", "Thread 0x")) or (trace and frame)
        ours = trace and frame and (ours or any(caller in line for caller in CALLERS))
        if not ours and not line.startswith("Extension modules: "):
            kept.append(line)
    return "".join(kept)
