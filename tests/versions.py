"""Run the tests that depend on pytest's version on several versions.

    python -m tests.versions 8.4 9.0 -- PYTEST_ARGUMENTS

Each version is a layer over this environment: its pytest, everything else from the environment.
Exits 1 when one of them failed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.layered import make_layer

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("tests/behaviours",)
# Subtests came with pytest 9.
BESIDE = {"8.4": ("pytest-subtests",)}


def main(argv: Sequence[str]) -> int:
    """Run the tests on each version."""
    versions, arguments = split_arguments(argv)
    codes = {}
    with tempfile.TemporaryDirectory(prefix="gpu-cluster-pytest-") as scratch:
        for version in versions:
            python = make_layer(
                Path(scratch, version), f"pytest=={version}.*", *BESIDE.get(version, ())
            )
            junit = ROOT / "test-results" / f"pytest-{version}.xml"
            command = [
                str(python),
                "-m",
                "pytest",
                "-q",
                "--timeout=300",
                f"--junitxml={junit}",
                *arguments,
            ]
            print(f"== pytest {version}: {' '.join(command[1:])}", flush=True)
            codes[version] = subprocess.run(command, cwd=ROOT, check=False).returncode
    for version, code in codes.items():
        print(f"pytest {version}: {'passed' if code == 0 else f'exit {code}'}")
    return 1 if any(codes.values()) or not codes else 0


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the versions before `--` from pytest's arguments after it.

    Without arguments the tests are those of TESTS that exist.
    """
    words = list(argv)
    separator = words.index("--") if "--" in words else len(words)
    arguments = words[separator + 1 :]
    return words[:separator], arguments or [path for path in TESTS if (ROOT / path).exists()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
