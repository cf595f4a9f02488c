"""Kill or stop each part of a run at three points and count what is left (`make faults`).

    python -m tests.faults.run [--only FAULT] [--point POINT]

Every row is a real `pytest --gpu-cluster` in a project of its own. A fault is injected while the
cluster starts, in the middle of the tests, and after the last one. The row counts the tests with a
result, the tests that no report names, and the remaining processes, listening ports, shared memory
and files. Writes `faults.json`, and the table in `docs/faults.md` from it; with --only or --point
the other rows stay.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.target import TESTS, Run

ROOT = Path(__file__).parents[2]
POINTS = ("starting", "running", "ending")
RECORD_PATIENCE_S = 12.0
LID_S = 60.0  # that the lid is closed: longer than the grace
PATIENCE_S = 75.0  # the heartbeat's grace of 45 s, and time to end
HEAD = (
    "| fault | at | exit | tests with a result | left: processes | ports | shared memory | files "
    "| gone after (s) | record closed by |"
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One row: the fault and its point, pytest's exit code, and the remains of the cluster."""

    fault: str
    point: str
    exit_code: int | None  # of pytest; None: it was the victim
    finished: int  # tests with a result in the client's file or in the record
    unnamed: int  # tests without a result and without being named as an error
    processes: int
    ports: int
    shared_memory: int
    files: int
    gone_after_s: float  # from the fault until nothing was left
    record: str  # the process that closed the record

    def line(self) -> str:
        """Return a row of the table."""
        cells = (
            self.fault,
            self.point,
            "–" if self.exit_code is None else self.exit_code,
            f"{self.finished} of {TESTS}",
            self.processes,
            self.ports,
            self.shared_memory,
            self.files,
            self.gone_after_s,
            self.record,
        )
        return "| " + " | ".join(str(cell) for cell in cells) + " |"


def faults() -> dict[str, Callable[[Run], None]]:
    """Return the faults by name."""
    return {
        "SIGINT once": lambda run: run.send(signal.SIGINT),
        "SIGINT twice": interrupt_twice,
        "SIGTERM": lambda run: run.send(signal.SIGTERM),
        "SIGHUP": lambda run: run.send(signal.SIGHUP),
        "client SIGKILL": lambda run: run.send(signal.SIGKILL),
        "client SIGSTOP 60 s": stop_client,
        "keeper SIGKILL": lambda run: kill_process(run.keeper()),
        "guard SIGKILL": lambda run: kill_process(run.guard()),
        "agent SIGKILL": lambda run: kill_process(run.agent()),
        "raylet SIGKILL": lambda run: kill_process(run.find("raylet/raylet")),
        "Ray head SIGKILL": lambda run: kill_process(run.find("gcs_server")),
        "keeper SIGSTOP": lambda run: stop_process(run.keeper()),
        "agent SIGSTOP": lambda run: stop_process(run.agent()),
        "raylet SIGSTOP": lambda run: stop_process(run.find("raylet/raylet")),
        "Ray head SIGSTOP": lambda run: stop_process(run.find("gcs_server")),
        "client and keeper SIGKILL": kill_client_and_keeper,
        "disk full": lambda run: run.fill_disk(),
        "store gone": lambda run: run.remove_store(),
    }


def interrupt_twice(run: Run) -> None:
    """Interrupt the client as an impatient person does."""
    run.send(signal.SIGINT)
    time.sleep(0.3)
    run.send(signal.SIGINT)


def kill_client_and_keeper(run: Run) -> None:
    """Kill the two processes that could close the record."""
    kill_process(run.keeper())
    run.send(signal.SIGKILL)


def kill_process(pid: int | None) -> None:
    """Kill a process, if the run has it."""
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def stop_process(pid: int | None) -> None:
    """Stop a process for good, if the run has it: it is there, and does nothing."""
    if pid is not None:
        os.kill(pid, signal.SIGSTOP)


def stop_client(run: Run) -> None:
    """Stop the client and let it go on later, as with a laptop's lid."""
    run.send(signal.SIGSTOP)
    time.sleep(LID_S)
    run.send(signal.SIGCONT)


def inject(fault: str, act: Callable[[Run], None], point: str) -> Outcome:
    """Start a run, inject the fault at the point, and count what is left."""
    with tempfile.TemporaryDirectory(prefix="faults-") as directory:
        run = Run(Path(directory), small_disk=fault == "disk full")
        run.wait_for(point)
        began = time.monotonic()
        act(run)
        while any(run.remains()) and time.monotonic() - began < PATIENCE_S:
            time.sleep(0.1)
        gone_after_s = time.monotonic() - began
        code = wait_for_client(run)
        finished = len(run.results())
        wait_for_record(run)
        remains = run.remains()
        outcome = Outcome(
            fault=fault,
            point=point,
            exit_code=None if fault.startswith("client") and "SIGKILL" in fault else code,
            finished=finished,
            unnamed=TESTS - finished,
            gone_after_s=round(gone_after_s, 1),
            record=run.closed_by(),
            **remains._asdict(),
        )
        run.close()
        return outcome


def wait_for_client(run: Run) -> int:
    """Return the client's exit code; a client that does not end is killed, with 124."""
    try:
        return run.client.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        run.client.kill()
        return 124


def wait_for_record(run: Run) -> None:
    """Wait for the record to be closed.

    A guard that finds client and keeper gone looks twice at the heartbeat.
    """
    deadline = time.monotonic() + RECORD_PATIENCE_S
    while run.closed_by() == "open" and time.monotonic() < deadline:
        time.sleep(0.1)


def write_table(rows: list[Outcome], path: Path) -> None:
    """Replace the table of the document."""
    table = "\n".join([HEAD, "|" + "---|" * 10, *(row.line() for row in rows)])
    path.write_text(
        re.sub(
            r"(<!-- faults:begin -->\n).*?(<!-- faults:end -->)",
            lambda match: f"{match[1]}{table}\n{match[2]}",
            path.read_text(),
            flags=re.S,
        )
    )


def save(rows: list[Outcome]) -> None:
    """Write faults.json and the table; rows that were not run now stay as they are."""
    path = ROOT / "faults.json"
    before = [Outcome(**row) for row in json.loads(path.read_text())] if path.exists() else []
    latest = {(row.fault, row.point): row for row in (*before, *rows)}
    places = [(fault, point) for fault in faults() for point in POINTS]
    ordered = [latest[place] for place in places if place in latest]
    path.write_text(json.dumps([asdict(row) for row in ordered], indent=1) + "\n")
    write_table(ordered, ROOT / "docs" / "faults.md")


def main() -> int:
    """Inject the faults; 1 when anything of a cluster is left."""
    # Where a shell has started this in the background, children would ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", help="a part of a fault's name")
    parser.add_argument("--point", choices=POINTS)
    arguments = parser.parse_args()
    rows = []
    for fault, act in faults().items():
        for point in POINTS:
            if (not arguments.only or arguments.only in fault) and (
                arguments.point in (None, point)
            ):
                rows.append(inject(fault, act, point))
                print(json.dumps(asdict(rows[-1])), flush=True)
    save(rows)
    return int(any(row.processes or row.ports or row.shared_memory or row.files for row in rows))


if __name__ == "__main__":
    sys.exit(main())
