"""Describes a process that died: its signal or exit code, and its last output."""

from __future__ import annotations

import signal

from pytest_gpu_cluster.contract.messages import Exit


def was_killed(ending: Exit) -> bool:
    """Return True for a process that somebody else has killed, such as the kernel out of memory."""
    return ending.status == -signal.SIGKILL and not ending.ordered


def crash_text(ending: Exit, place: str) -> str:
    """Return `crash: SIGSEGV …` or `crash: exit 3 …`; `place` is what the process was doing."""
    status = ending.status
    if status is None or status >= 0:
        name = f"exit {status}"
    else:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
    hint = " (out of memory?)" if was_killed(ending) else ""
    return f"crash: {name}{hint} {place}"


def with_last_output(text: str, ending: Exit) -> str:
    """Return `text`, then the last output of a dead process.

    That is what pytest had captured, and what went to its own stdout and stderr. It is in the
    failure itself, not in sections beside it: JUnit leaves those out by default.
    """
    outputs = (
        ("Captured stdout", ending.captured_out),
        ("Captured stderr", ending.captured_err),
        ("Process stdout", ending.out),
        ("Process stderr", ending.err),
    )
    parts = [
        f"{f' {title} ':-^80}\n{without_our_frames(output).rstrip()}"
        for title, output in outputs
        if output
    ]
    return "\n".join([text, *parts])


# Frames that bring Python to the test: below them its reader finds nothing of their own.
CALLERS = (
    "/pytest_gpu_cluster/worker/",
    " in pytest_pyfunc_call",
    " in call_fixture_func",
    " in _teardown_yield_fixture",
    " in importtestmodule",
)


def without_our_frames(text: str) -> str:
    """Return faulthandler's traces down to the test.

    The frames that brought Python there and the list of extension modules are left out.
    """
    lines: list[str] = []
    trace = ours = False
    for line in text.splitlines(keepends=True):
        frame = line.startswith('  File "')
        trace = line.startswith(("Current thread", "Thread 0x")) or (trace and frame)
        ours = trace and frame and (ours or any(caller in line for caller in CALLERS))
        if not ours and not line.startswith("Extension modules: "):
            lines.append(line)
    return "".join(lines)
