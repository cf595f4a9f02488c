"""What is installed where the tests will run, named by a digest. For now: an interpreter of this machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pytest_gpu_cluster.contract.errors import RequestError

SCAN = "import json, sys; print(json.dumps([sys.version, sys.path]))"
NEEDED = {"ray": "Ray", "obstore": "obstore", "pytest": "pytest"}


@dataclass(frozen=True, kw_only=True)
class Environment:
    """An interpreter and what is installed for it."""

    python: str
    digest: str
    versions: dict[str, str]  # of the distributions by normalised name


def describe(python: str) -> Environment:
    """The environment of an interpreter, read from file names alone: no module is imported. Raises RequestError."""
    if os.path.realpath(python) == os.path.realpath(sys.executable) and os.path.dirname(
        python
    ) == os.path.dirname(sys.executable):
        version, path = sys.version, sys.path
    else:
        version, path = _ask(python)
    versions: dict[str, str] = {}
    content = hashlib.sha256(f"{python}\n{version}\n".encode())
    for directory in dict.fromkeys(p for p in path if p and os.path.isdir(p)):
        for name in sorted(os.listdir(directory)):
            if name.endswith((".dist-info", ".egg-info", ".egg-link", ".pth")) or name.startswith(
                "__editable__"
            ):
                content.update(
                    f"{name} {os.stat(os.path.join(directory, name)).st_mtime_ns}\n".encode()
                )
                if match := re.match(r"(.+?)-(\d[^-]*)\.dist-info$", name):
                    versions.setdefault(re.sub(r"[-_.]+", "-", match[1]).lower(), match[2])
    return Environment(python=python, digest=content.hexdigest()[:16], versions=versions)


def _ask(python: str) -> tuple[str, list[str]]:
    try:
        said = subprocess.run(
            [python, "-c", SCAN],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
            env={"PATH": os.defpath},
        )
        version, path = json.loads(said.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as problem:
        raise RequestError(
            f"local.python = {python!r} does not run: {problem}",
            remedy="name a Python interpreter of 3.11 or later",
        ) from problem
    return str(version), [str(p) for p in path]


def check(environment: Environment, *, pytest_version: str) -> None:
    """Refuse an environment that cannot run a session. Raises RequestError with the command that mends it."""
    for name, title in NEEDED.items():
        if name not in environment.versions:
            command = f"{environment.python} -m pip install 'pytest-gpu-cluster[local]'"
            raise RequestError(f"{title} is not installed for {environment.python}", remedy=command)
    there, here = environment.versions["pytest"], pytest_version
    if there.split(".")[:2] != here.split(".")[:2]:
        raise RequestError(
            f"pytest is {here} here and {there} for {environment.python}; reports differ between the two",
            remedy=f"{environment.python} -m pip install pytest=={here}",
        )


def own_code() -> dict[str, Path]:
    """The files of this package that the cluster runs, by their path below the import root."""
    here = Path(__file__).parent
    folders = ("contract", "node", "agent", "worker")
    files = [
        here / "__init__.py",
        here / "fixtures.py",
        *(file for name in folders for file in sorted((here / name).glob("*.py"))),
    ]
    return {str(file.relative_to(here.parent)): file for file in files}
