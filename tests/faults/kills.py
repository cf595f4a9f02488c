"""Kill the client at random moments; `gpu-cluster report` must finish what it began (`python -m tests.faults.kills`).

Each row is a real run on one warm cluster, its client killed (SIGKILL) so many seconds after its start. Afterwards the report of each
is made from the store, and each of its JUnit cases is compared with that of a run that lived. Ends with 1 if any differs. Writes the
table of `docs/faults.md`; the seeds are printed, so that a row can be had again with `--seed`.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
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


@dataclass(frozen=True)
class Row:
    seed: int
    after_s: float
    had: str  # what the store had when the client died
    left: str  # what the client's own JUnit file said
    equal: int  # cases of the finished report that are those of a run that lived
    lost: int  # cases that are errors by name
    different: int

    def line(self) -> str:
        return f"| {self.seed} | {self.after_s:.2f} | {self.had} | {self.left} | {self.equal} | {self.lost} | {self.different} |\n"


def start(project: Project) -> subprocess.Popen[str]:
    project.write(tests__test_it=SUITE)
    return project.start("tests", "-v", **ENVIRON).process


def killed(project: Project, after_s: float) -> tuple[str, str]:
    """The session, and what the store had of it."""
    process = start(project)
    time.sleep(after_s)
    process.kill()
    process.wait()
    session = session_of(project)
    if not session or not project.get(f"sessions/{session}/request.json"):
        return "", "nothing"
    if project.get(f"sessions/{session}/result.json"):
        return session, "the result"
    finished, collected = (
        count(project, session, "test_finished"),
        count(project, session, "collected"),
    )
    return (
        session,
        f"{finished} tests" if finished else "the collection" if collected else "the request",
    )


def row(
    seed: int,
    after_s: float,
    project: Project,
    whole: dict[tuple[str, str], str],
    session: str,
    had: str,
) -> Row:
    path = project.root / "test-results" / "gpu-cluster.xml"
    left = (
        "none"
        if not path.exists()
        else "an error"
        if "the session did not end" in path.read_text()
        else "the result"
    )
    if not session:
        return Row(seed, after_s, had, left, 0, 0, 0)
    finished = project.root / "finished.xml"
    done = project.command("report", session, "--junitxml", str(finished))
    assert done.returncode == 0, done.stderr
    found = cases(finished)
    own = {key: text for key, text in found.items() if LOST not in text}
    equal = sum(whole.get(key) == text for key, text in own.items())
    return Row(seed, after_s, had, left, equal, len(found) - len(own), len(own) - equal)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, nargs="*", help="these rows only; nothing is written")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        home = Path(folder)
        (home / "store").mkdir(mode=0o700)
        first = Project(home / "first", str(home / "store"))
        try:
            start(first).wait()  # starts the cluster
            began = time.monotonic()
            start(first).wait()
            lasted_s = time.monotonic() - began
            whole = cases(first.root / "test-results" / "gpu-cluster.xml")
            held = []
            for seed in chosen.seed or range(20):
                project = Project(home / f"p{seed}", str(home / "store"))
                after_s = random.Random(seed).uniform(0, lasted_s)
                held.append((seed, after_s, project, whole, *killed(project, after_s)))
                cluster_free(project)
            with ThreadPoolExecutor() as pool:
                rows = list(pool.map(lambda each: row(*each), held))
        finally:
            first.command("down")
    print(f"a run that lives takes {lasted_s:.2f} s and has {len(whole)} cases")
    heads = (
        "seed",
        "killed after (s)",
        "the store had",
        "the client left",
        "equal cases",
        "named errors",
        "different",
    )
    table = f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n" + "".join(
        each.line() for each in rows
    )
    print(table)
    if not chosen.seed:
        text = DOCS.read_text()
        said = f"A run that lives takes {lasted_s:.1f} s and has {len(whole)} cases.\n\n{table}"
        DOCS.write_text(
            re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}{said}{END}", text, flags=re.S)
        )
    return int(any(each.different for each in rows))


if __name__ == "__main__":
    sys.exit(main())
