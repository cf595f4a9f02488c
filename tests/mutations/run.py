"""Break each property of the workloads on purpose, and see that a test notices: `make mutations`.

    python -m tests.mutations.run [--only TEXT]

Each mutation is one edit in a copy of gpu_tests. The test that holds the property runs there, on
the cluster, and must fail with the words of its assertion. The report, printed and written to
docs/mutations.md, has property, mutation, and the line of the failure. The exit code is 1 when a
mutation survives, or fails with other words.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.table import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "mutations.md"
HEAD = """# What the workloads' tests notice

`make mutations` breaks each property in a copy of `gpu_tests/`, one edit at a time, and runs the
test that holds it on a local cluster. All of these edits were noticed; the last column is the line
of the failure.

| workload | property | broken by | test | noticed as |
|---|---|---|---|---|
"""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
PYTEST = (sys.executable, "-m", "pytest", "--gpu-cluster")
OPTIONS = ("-p", "no:cacheprovider", "-q", "--timeout", "280")
DOWN = "import sys; from pytest_gpu_cluster.cli import main; sys.exit(main(['down']))"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A mutation that was tried. `line`: of the report, with the expected words; else empty."""

    mutation: Mutation
    exit_code: int
    line: str
    seconds: float

    @property
    def noticed(self) -> bool:
        """Return True when the test failed with the expected words."""
        return self.exit_code == 1 and bool(self.line)

    def verdict(self) -> str:
        """Return the first word of the terminal's line."""
        if self.noticed:
            return "noticed "
        return "SURVIVED" if self.exit_code == 0 else "OTHERWISE"


def copy_workloads(folder: Path) -> None:
    """Copy the workloads as a project of their own, with the settings of this one."""
    shutil.copytree(
        ROOT / "gpu_tests", folder / "gpu_tests", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)


def apply_mutation(mutation: Mutation, folder: Path) -> None:
    """Edit the file in `folder`.

    Raises ValueError when an old text is not there exactly once: the table is behind the code.
    """
    path = folder / "gpu_tests" / mutation.file
    text = path.read_text("utf-8")
    for old, new in mutation.edits:
        if text.count(old) != 1:
            raise ValueError(
                f"{mutation.file} has {text.count(old)} times {old!r}; once was expected"
            )
        text = text.replace(old, new)
    path.write_text(text, "utf-8")


def try_mutation(mutation: Mutation, folder: Path) -> Trial:
    """Run the mutation's test with it, and restore the file."""
    path = folder / "gpu_tests" / mutation.file
    before = path.read_text("utf-8")
    apply_mutation(mutation, folder)
    began = time.monotonic()
    try:
        process = subprocess.run(
            [*PYTEST, f"gpu_tests/{mutation.test}", *OPTIONS],
            cwd=folder,
            text=True,
            capture_output=True,
            check=False,
            env={**os.environ, "GPU_CLUSTER_IDLE_MINUTES": "3"},
        )
    finally:
        path.write_text(before, "utf-8")
    seconds = time.monotonic() - began
    lines = [COLOURS.sub("", line) for line in process.stdout.splitlines()]
    errors = [line[1:].strip() for line in lines if line.startswith("E ")]
    line = next((error for error in errors if mutation.words in error), "")
    if not line:
        print("\n".join(lines[-40:]), process.stderr[-1000:], sep="\n", flush=True)
    return Trial(mutation=mutation, exit_code=process.returncode, line=line, seconds=seconds)


def cell(text: str) -> str:
    """Escape a text for a cell of the document."""
    return text.replace("|", "\\|").replace("\n", " ⏎ ")


def row(mutation: Mutation, line: str) -> str:
    """Return a row of the document."""
    edits = "; ".join(
        f"`{' '.join(old.split())}` → `{' '.join(new.split())}`" for old, new in mutation.edits
    )
    name = mutation.test.partition("::")[2].partition("[")[0]
    return (
        f"| {mutation.id} | {cell(mutation.property)} | {cell(edits)} ({mutation.file}) "
        f"| `{name}` | {cell(line[:200])} |"
    )


def print_trial(trial: Trial) -> None:
    """Print the verdict, the edits and the line of the failure."""
    mutation = trial.mutation
    print(
        f"{trial.verdict()} {mutation.id}: {mutation.property}  [{trial.seconds:.0f} s]", flush=True
    )
    for old, new in mutation.edits:
        print(f"    {mutation.file}: {' '.join(old.split())}  ->  {' '.join(new.split())}")
    print(f"    {trial.line or f'exit code {trial.exit_code}'}", flush=True)


def try_mutations(mutations: Sequence[Mutation]) -> list[Trial]:
    """Try the mutations one after the other, in one copy and on one cluster."""
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="gpu-cluster-mutations-") as name:
        folder = Path(name)
        copy_workloads(folder)
        try:
            for mutation in mutations:
                trials.append(try_mutation(mutation, folder))
                print_trial(trials[-1])
        finally:
            subprocess.run([sys.executable, "-c", DOWN], cwd=folder, check=False)
    return trials


def main(argv: Sequence[str] | None = None) -> int:
    """Try the mutations; 1 when one was not noticed. A complete run writes the document."""
    parser = argparse.ArgumentParser(
        description="break the workloads' properties and see who notices"
    )
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="those whose id, property or test contains it"
    )
    text = parser.parse_args(argv).only
    trials = try_mutations(
        [each for each in MUTATIONS if text in f"{each.id} {each.property} {each.test}"]
    )
    missed = [trial for trial in trials if not trial.noticed]
    print(f"{len(trials) - len(missed)} of {len(trials)} mutations were noticed")
    if not text and not missed:
        rows = [row(trial.mutation, trial.line) for trial in trials]
        DOCUMENT.write_text(HEAD + "\n".join(rows) + "\n", "utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
