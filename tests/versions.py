"""Run what depends on pytest's version on several of them: `python -m tests.versions 8.4 9.0 -- PYTEST_ARGUMENTS`.

Each version is a layer over this environment: its pytest, everything else from here. Exits 1 when one of them failed.
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
    versions, arguments = split(argv)
    outcome = {}
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
            outcome[version] = subprocess.run(command, cwd=ROOT, check=False).returncode
    for version, code in outcome.items():
        print(f"pytest {version}: {'passed' if code == 0 else f'exit {code}'}")
    return 1 if any(outcome.values()) or not outcome else 0


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Versions before `--`, pytest's arguments after it (default: TESTS, those that exist)."""
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :] or [path for path in TESTS if (ROOT / path).exists()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
