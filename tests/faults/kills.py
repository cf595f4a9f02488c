"""Kill the client at random moments; `gpu-cluster report` must finish each report.

    python -m tests.faults.kills [--seed N ...]

Each row is a real run on one warm cluster, its client killed (SIGKILL) so many seconds after its
start. Each report is then made from the store, and its JUnit cases are compared with those of a run
that was not killed. Exits 1 if any differs. Writes the table of `docs/faults.md`; `--seed` repeats
rows by their seeds.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.project import Project
from tests.acceptance.test_killed_client import (
    ENVIRON,
    LOST,
    SUITE,
    cases,
    cluster_free,
    count,
    session_of,
)

DOCS = Path(__file__).parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- kills:begin -->\n", "<!-- kills:end -->\n"
HEADS = (
    "seed",
    "killed after (s)",
    "the store had",
    "the client left",
    "equal cases",
    "named errors",
    "different",
)


@dataclass(frozen=True)
class Kill:
    """A client that was killed. `stored`: the state of the record in the store at that moment."""

    seed: int
    after_s: float
    project: Project
    session: str
    stored: str

    def client_file(self) -> str:
        """Return the content of the client's own JUnit file, in a word."""
        path = self.project.root / "test-results" / "gpu-cluster.xml"
        if not path.exists():
            return "none"
        return "an error" if "the session did not end" in path.read_text() else "the result"


@dataclass(frozen=True)
class Row:
    """Numbers of cases of a finished report: `equal` to a complete run's, `errors`, `different`."""

    kill: Kill
    equal: int
    errors: int
    different: int

    def line(self) -> str:
        """Return a row of the table."""
        cells = (
            self.kill.seed,
            f"{self.kill.after_s:.2f}",
            self.kill.stored,
            self.kill.client_file(),
            self.equal,
            self.errors,
            self.different,
        )
        return "| " + " | ".join(str(cell) for cell in cells) + " |\n"


def start(project: Project) -> subprocess.Popen[str]:
    """Start a client in a project of its own."""
    project.write(tests__test_it=SUITE)
    return project.start("tests", "-v", **ENVIRON).process


def kill_client(project: Project, seed: int, longest_s: float) -> Kill:
    """Start a client and kill it at a random moment."""
    after_s = random.Random(seed).uniform(0, longest_s)
    process = start(project)
    time.sleep(after_s)
    process.kill()
    process.wait()
    session = session_of(project)
    stored = stored_state(project, session)
    cluster_free(project)
    return Kill(seed, after_s, project, session if stored != "nothing" else "", stored)


def stored_state(project: Project, session: str) -> str:
    """Return the state of a session's record, in a word or two."""
    if not session or not project.get(f"sessions/{session}/request.json"):
        return "nothing"
    if project.get(f"sessions/{session}/result.json"):
        return "the result"
    if finished := count(project, session, "test_finished"):
        return f"{finished} tests"
    return "the collection" if count(project, session, "collected") else "the request"


def finish_report(kill: Kill, complete: dict[tuple[str, str], str]) -> Row:
    """Make the report from the store, and compare its cases with those of a complete run."""
    if not kill.session:
        return Row(kill, 0, 0, 0)
    path = kill.project.root / "finished.xml"
    process = kill.project.command("report", kill.session, "--junitxml", str(path))
    assert process.returncode == 0, process.stderr
    finished = cases(path)
    results = {key: text for key, text in finished.items() if LOST not in text}
    equal = sum(complete.get(key) == text for key, text in results.items())
    return Row(kill, equal, len(finished) - len(results), len(results) - equal)


def measure(home: Path, seeds: Iterable[int]) -> tuple[float, int, list[Row]]:
    """Return the seconds and the number of cases of a complete run, and a row for each seed."""
    store = home / "store"
    store.mkdir(mode=0o700)
    first = Project(home / "first", str(store))
    try:
        start(first).wait()  # starts the cluster
        began = time.monotonic()
        start(first).wait()
        duration_s = time.monotonic() - began
        complete = cases(first.root / "test-results" / "gpu-cluster.xml")
        kills = [
            kill_client(Project(home / f"p{seed}", str(store)), seed, duration_s) for seed in seeds
        ]
        with ThreadPoolExecutor() as pool:
            rows = list(pool.map(lambda kill: finish_report(kill, complete), kills))
    finally:
        first.command("down")
    return duration_s, len(complete), rows


def main() -> int:
    """Kill clients; 1 if a finished report differs from that of a complete run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, nargs="*", help="these rows only; nothing is written")
    seeds = parser.parse_args().seed
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        duration_s, count, rows = measure(Path(folder), seeds or range(20))
        lines = "".join(row.line() for row in rows)
    print(f"a run that lives takes {duration_s:.2f} s and has {count} cases")
    table = f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}\n{lines}"
    print(table)
    if not seeds:
        text = f"A run that lives takes {duration_s:.1f} s and has {count} cases.\n\n{table}"
        DOCS.write_text(
            re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}{text}{END}", DOCS.read_text(), flags=re.S)
        )
    return int(any(row.different for row in rows))


if __name__ == "__main__":
    sys.exit(main())
