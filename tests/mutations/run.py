"""Break each property of the workloads on purpose, and see that a test notices: `make mutations`.

    python -m tests.mutations.run [--only TEXT]

Each mutation is one edit in a copy of gpu_tests; the test that holds the property runs there, on the cluster, and must fail
with the words of its assertion. Printed, and kept in docs/mutations.md: property, mutation, and what the test said. Exit code 1
when a mutation survives, or fails with other words.
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

`make mutations` breaks each property in a copy of `gpu_tests/`, one edit at a time, and runs the test that holds it on a local
cluster. All of these edits were noticed; the last column is what the test said.

| workload | property | broken by | test | noticed as |
|---|---|---|---|---|
"""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """`said`: the line of the report that has the expected words; empty when there is none."""

    mutation: Mutation
    exit_code: int
    said: str
    seconds: float

    @property
    def noticed(self) -> bool:
        return self.exit_code == 1 and bool(self.said)


def copy(folder: Path) -> None:
    """The workloads as a project of their own, with the settings that they have here."""
    shutil.copytree(
        ROOT / "gpu_tests", folder / "gpu_tests", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)


def apply(mutation: Mutation, folder: Path) -> None:
    """Raises ValueError when what is to be replaced is not there exactly once: the table is behind the code."""
    path = folder / "gpu_tests" / mutation.file
    text = path.read_text("utf-8")
    for old, new in mutation.edits:
        if text.count(old) != 1:
            raise ValueError(
                f"{mutation.file} has {text.count(old)} times {old!r}; once was expected"
            )
        text = text.replace(old, new)
    path.write_text(text, "utf-8")


def try_out(mutation: Mutation, folder: Path) -> Seen:
    """Run the mutation's test with it, and put the file back."""
    path = folder / "gpu_tests" / mutation.file
    before = path.read_text("utf-8")
    apply(mutation, folder)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--gpu-cluster",
        f"gpu_tests/{mutation.test}",
        "-p",
        "no:cacheprovider",
        "-q",
        "--timeout",
        "280",
    ]
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            text=True,
            capture_output=True,
            check=False,
            env={**os.environ, "GPU_CLUSTER_IDLE_MINUTES": "3"},
        )
    finally:
        path.write_text(before, "utf-8")
    lines = [COLOURS.sub("", line) for line in done.stdout.splitlines()]
    reported = [line[1:].strip() for line in lines if line.startswith("E ")]
    said = next((line for line in reported if mutation.said in line), "")
    if not said:
        print("\n".join(lines[-40:]), done.stderr[-1000:], sep="\n", flush=True)
    return Seen(
        mutation=mutation, exit_code=done.returncode, said=said, seconds=time.monotonic() - began
    )


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ⏎ ")


def row(seen: Seen) -> str:
    """A row of the document."""
    one = seen.mutation
    edits = "; ".join(
        f"`{' '.join(old.split())}` → `{' '.join(new.split())}`" for old, new in one.edits
    )
    name = one.test.partition("::")[2].partition("[")[0]
    return f"| {one.id} | {cell(one.holds)} | {cell(edits)} ({one.file}) | `{name}` | {cell(seen.said[:200])} |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="break the workloads' properties and see who notices"
    )
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="those whose id, property or test contains it"
    )
    wanted = parser.parse_args(argv).only
    chosen = [one for one in MUTATIONS if wanted in f"{one.id} {one.holds} {one.test}"]
    found: list[Seen] = []
    with tempfile.TemporaryDirectory(prefix="gpu-cluster-mutations-") as held:
        folder = Path(held)
        copy(folder)
        try:
            for one in chosen:
                found.append(seen := try_out(one, folder))
                mark = (
                    "noticed "
                    if seen.noticed
                    else "SURVIVED"
                    if seen.exit_code == 0
                    else "OTHERWISE"
                )
                print(f"{mark} {one.id}: {one.holds}  [{seen.seconds:.0f} s]", flush=True)
                for old, new in one.edits:
                    print(
                        f"    {one.file}: {' '.join(old.split())}  ->  {' '.join(new.split())}",
                        flush=True,
                    )
                print(f"    {seen.said or f'exit code {seen.exit_code}'}", flush=True)
        finally:
            down = "import sys; from pytest_gpu_cluster.cli import main; sys.exit(main(['down']))"
            subprocess.run([sys.executable, "-c", down], cwd=folder, check=False)
    missed = [seen for seen in found if not seen.noticed]
    print(f"{len(found) - len(missed)} of {len(found)} mutations were noticed")
    if not wanted and not missed:
        DOCUMENT.write_text(HEAD + "\n".join(row(seen) for seen in found) + "\n", "utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
