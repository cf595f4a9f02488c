"""Other projects' tests: `pytest` and `pytest --gpu-cluster` must agree on cases and exit code.

    python -m tests.outside.run [NAME ...] [--keep]

Each suite is installed editable, as its developers have it, into a layer over this environment.
Prints a table; exits 1 on any disagreement.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from tests.compared import (
    Exceptions,
    Outcome,
    differences,
    end_cluster,
    expected,
    read_cases,
    read_counts,
)
from tests.layered import make_layer

HERE = Path(__file__).resolve().parent
# The packages that a suite needs and our own environment lacks.
NEEDS: dict[str, tuple[str, ...]] = {
    "pluggy": (),
    "more_itertools": (),
    "jinja2": ("trio",),
    "pytest": (
        *("argcomplete", "attrs", "mock", "pexpect", "requests", "setuptools", "xmlschema"),
    ),
}
# The tests that are known to end differently, by classname and name: their outcome in both runs.
# docs/behaviours.md has the reason of each.
EXCEPTIONS: dict[str, Exceptions] = {
    "pytest": {
        (
            "testing.test_terminal.TestTerminalFunctional",
            "test_verbose_reporting_xdist",
        ): ("passed", "skipped")
    },
}


def run_suite(python: Path, source: Path, scratch: Path, *options: str) -> Outcome:
    """Run the tests of `source` with `python`; a store, if one is used, is under `scratch`."""
    junit = scratch / f"{source.name}{''.join(options)}.xml"
    env = {**os.environ, "GPU_CLUSTER_STORE": str(scratch / "store")}
    command = [
        str(python),
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:randomly",
        f"--junitxml={junit}",
        *options,
    ]
    start = time.monotonic()
    process = subprocess.run(
        command, cwd=source, env=env, text=True, capture_output=True, timeout=1800, check=False
    )
    seconds = time.monotonic() - start
    return Outcome(
        exit_code=process.returncode,
        cases=read_cases(junit),
        counts=read_counts(process.stdout),
        seconds=seconds,
        tail=(process.stdout + process.stderr)[-3000:],
    )


def fetch(scratch: Path) -> dict[str, Path]:
    """Download the source distributions, check their digests, and unpack them: name -> folder."""
    archives = scratch / "archives"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--quiet",
        "--no-binary",
        ":all:",
        "--no-deps",
    ]
    subprocess.run(
        [*command, "-d", str(archives), "-r", str(HERE / "requirements.txt")], check=True
    )
    folders = {}
    for archive in sorted(archives.iterdir()):
        with tarfile.open(archive) as tar:
            tar.extractall(scratch / "sources", filter="data")
        folder = scratch / "sources" / archive.name.removesuffix(".tar.gz")
        folders[folder.name.rpartition("-")[0]] = folder
    return folders


def compare(name: str, source: Path, scratch: Path) -> bool:
    """Run one suite both ways and print its row and its differences; True when there are none."""
    python = make_layer(scratch / f"layer-{name}", "-e", str(source), *NEEDS[name])
    plain = run_suite(python, source, scratch)
    remote = run_suite(python, source, scratch, "--gpu-cluster")
    env = {**os.environ, "GPU_CLUSTER_STORE": str(scratch / "store")}
    end_cluster(python, env)
    lines = differences(expected(plain, EXCEPTIONS.get(name, {})), remote)
    if not plain.cases:
        lines.append(f"the plain run has no case:\n{plain.tail}")
    print(
        f"{name:<16} {plain.cases.total():>6} {remote.cases.total():>6}"
        f" {plain.exit_code:>6} {remote.exit_code:>6}"
        f" {plain.seconds:>7.1f}s {remote.seconds:>7.1f}s"
        f"  {f'{len(lines)} DIFFER' if lines else 'agree'}{known(name)}",
        flush=True,
    )
    for line in lines[:20]:
        print(textwrap.indent(line, "    "))
    return not lines


def known(name: str) -> str:
    """Return what follows the verdict of a suite: the number of its exceptions."""
    number = len(EXCEPTIONS.get(name, {}))
    return f" but for {number} known" if number else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the suites; 1 when one differs."""
    parser = argparse.ArgumentParser(
        description="compare pytest with pytest --gpu-cluster on other projects' tests"
    )
    parser.add_argument("names", nargs="*", help=f"default: {' '.join(NEEDS)}")
    parser.add_argument(
        "--keep", action="store_true", help="keep the scratch folder and print its path"
    )
    arguments = parser.parse_args(argv)
    unknown = set(arguments.names) - set(NEEDS)
    if unknown:
        parser.error(f"unknown suite {', '.join(sorted(unknown))}; there are {', '.join(NEEDS)}")
    # Outside any repository, so that the suite's tree is what it ships.
    scratch = Path(tempfile.mkdtemp(prefix="gpu-cluster-outside-"))
    try:
        sources = fetch(scratch)
        print(f"{'':<16} {'cases':^13} {'exit':^13} {'seconds':^17}")
        print(
            f"{'suite':<16} {'plain':>6} {'remote':>6} {'plain':>6} {'remote':>6}"
            f" {'plain':>8} {'remote':>8}",
            flush=True,
        )
        agreed = [compare(name, sources[name], scratch) for name in arguments.names or NEEDS]
    finally:
        if arguments.keep:
            print(f"kept {scratch}")
        else:
            shutil.rmtree(scratch, ignore_errors=True)
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main())
