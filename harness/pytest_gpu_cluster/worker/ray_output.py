"""What tasks and actors print, read from Ray's files of this machine while their test runs.

Ray's own way takes half a second from the task to the test, which by then is over.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

POLL_S = 0.2
NAME = re.compile(r"worker-[0-9a-f]+-[0-9a-f]+-(?P<pid>[0-9]+)\.(?P<stream>out|err)")
# Ray's lines that say whose the following ones are.
JOB, LABELS = ":job_id:", (":task_name:", ":actor_name:")


class PrintedFile:
    """A file of one of Ray's processes. `read` yields what was printed for a job that is wanted."""

    def __init__(self, path: Path, pid: str) -> None:
        self.path, self._pid = path, pid
        self._position, self._job, self._label = 0, "", ""

    def read(self, wanted: Callable[[str], bool]) -> Iterator[str]:
        """Yield the new lines, each with the name of its task or actor."""
        if self.path.stat().st_size <= self._position:
            return
        with self.path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._position += len(complete)
        for line in complete.decode(errors="replace").splitlines():
            if line.startswith(JOB):
                self._job = line.removeprefix(JOB)
            elif line.startswith(LABELS):
                self._label = line.split(":", 2)[2]
            elif self._job and wanted(self._job):
                yield f"({self._label or 'task'} pid={self._pid}) {line}\n"


class PrintedByTasks:
    """Writes what the tasks of a test print to this process's stdout and stderr."""

    def __init__(self, directory: Path, wanted: Callable[[str], bool]) -> None:
        self._directory, self._wanted = directory, wanted
        self._files: dict[str, PrintedFile] = {}
        self._lock = threading.Lock()  # guards the files' positions
        self._stopped = threading.Event()

    def start(self) -> None:
        """Skip what is there, and show in the background what comes, as `-s` needs it."""
        with self._lock:
            for _ in self._new_lines(lambda _: False):
                pass
        self._stopped.clear()
        threading.Thread(target=self._poll, name="task-output", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def show(self) -> None:
        """Write what was printed since the last call."""
        with self._lock:
            for stream, line in self._new_lines(self._wanted):
                (sys.stdout if stream == "out" else sys.stderr).write(line)

    def add_to(self, item: pytest.Item) -> None:
        """Add what was printed since to the captured output of a test's call, which is over."""
        if item.config.option.capture == "no":
            self.show()
            return
        with self._lock:
            lines = list(self._new_lines(self._wanted))
        for key in ("stdout", "stderr"):
            text = "".join(line for stream, line in lines if key.endswith(stream))
            sections = item._report_sections  # private: `add_report_section` makes another
            place = next((n for n, s in enumerate(sections) if s[:2] == ("call", key)), None)
            if place is not None:
                sections[place] = ("call", key, sections[place][2] + text)
            elif text:
                item.add_report_section("call", key, text)

    def _poll(self) -> None:
        while not self._stopped.wait(POLL_S):
            with contextlib.suppress(OSError, ValueError):  # ValueError: a closed stream
                self.show()

    def _new_lines(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
        names = os.listdir(self._directory) if self._directory.is_dir() else []
        for name in sorted(names):
            if (found := NAME.fullmatch(name)) is None:
                continue
            if name not in self._files:
                self._files[name] = PrintedFile(self._directory / name, found["pid"])
            with contextlib.suppress(OSError):
                for line in self._files[name].read(wanted):
                    yield found["stream"], line
