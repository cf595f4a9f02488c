"""The environment in which tests will run: an interpreter, and a digest of what it has installed.

So far it is an interpreter of this machine. `own_code` is what a cluster needs of this package.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pytest_gpu_cluster.contract.errors import RequestError

OWN = "pytest-gpu-cluster"  # in no package index: its name is nothing for pip
SCAN = "import json, sys; print(json.dumps([sys.version, sys.path]))"
REQUIRED = {"ray": "Ray", "obstore": "obstore", "pytest": "pytest"}  # title by distribution
_METADATA = (".dist-info", ".egg-info", ".egg-link", ".pth")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """An interpreter and what is installed for it."""

    python: str
    digest: str
    versions: Mapping[str, str]  # of the distributions by normalised name

    @property
    def summary(self) -> str:
        """The interpreter and what a session needs first, for people."""
        names = ("ray", "pytest", "torch")
        shown = ", ".join(f"{name} {self.versions.get(name, 'absent')}" for name in names)
        return f"{self.python}: {shown}"


class Interpreter(NamedTuple):
    """The facts of an interpreter that decide what it imports."""

    version: str
    path: Sequence[str]  # sys.path


def describe(python: str) -> Environment:
    """Return the environment of an interpreter, read from file names. Raises RequestError.

    No module is imported.
    """
    interpreter = _interpreter(python)
    versions: dict[str, str] = {}
    content = hashlib.sha256(f"{python}\n{interpreter.version}\n".encode())
    for path in _metadata(interpreter.path):
        name = os.path.basename(path)
        content.update(f"{name} {os.stat(path).st_mtime_ns}\n".encode())
        if match := re.match(r"(.+?)-(\d[^-]*)\.dist-info$", name):
            versions.setdefault(re.sub(r"[-_.]+", "-", match[1]).lower(), match[2])
    return Environment(python=python, digest=content.hexdigest()[:16], versions=versions)


def _metadata(path: Sequence[str]) -> Iterator[str]:
    """Yield the files and folders below `sys.path` that change with every installation."""
    for directory in dict.fromkeys(folder for folder in path if folder and os.path.isdir(folder)):
        for name in sorted(os.listdir(directory)):
            if name.endswith(_METADATA) or name.startswith("__editable__"):
                yield os.path.join(directory, name)


def _interpreter(python: str) -> Interpreter:
    is_same_file = os.path.realpath(python) == os.path.realpath(sys.executable)
    if is_same_file and os.path.dirname(python) == os.path.dirname(sys.executable):
        return Interpreter(sys.version, sys.path)
    try:
        process = subprocess.run(
            [python, "-c", SCAN],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
            env={"PATH": os.defpath},
        )
        version, path = json.loads(process.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as problem:
        raise RequestError(
            f"local.python = {python!r} does not run: {problem}",
            remedy="name a Python interpreter of 3.11 or later",
        ) from problem
    return Interpreter(str(version), [str(folder) for folder in path])


def check(environment: Environment, *, pytest_version: str) -> None:
    """Refuse an environment that cannot run a session. Raises RequestError with the command."""
    python, versions = environment.python, environment.versions
    for name, title in REQUIRED.items():
        if name not in versions:
            raise RequestError(
                f"{title} is not installed for {python}",
                remedy=f"{python} -m pip install {_requirements(versions)}",
            )
    if versions["pytest"].split(".")[:2] != pytest_version.split(".")[:2]:
        raise RequestError(
            f"pytest is {pytest_version} here and {versions['pytest']} for {python};"
            " reports differ between the two",
            remedy=f"{python} -m pip install pytest=={pytest_version}",
        )


def _requirements(versions: Mapping[str, str]) -> str:
    """Return what pip has to install, quoted: each requirement is this package's own."""
    from importlib import metadata

    parts = (line.partition(";") for line in metadata.requires(OWN) or ())
    lines = [line.strip() for line, _, extra in parts if not extra or "local" in extra]
    missing = [name for name in REQUIRED if name not in versions]
    return shlex.join(
        next((line for line in lines if re.match(rf"{name}\b", line)), name) for name in missing
    )


def own_code() -> dict[str, Path]:
    """Return the files of this package that the cluster runs, by their path in the import root."""
    package = Path(__file__).parent
    files = [package / "__init__.py", package / "fixtures.py", package / "ray_remains.py"]
    for folder in ("contract", "node", "agent", "worker"):
        files += sorted((package / folder).glob("*.py"))
    return {str(file.relative_to(package.parent)): file for file in files}


def resolve_interpreter(value: object, root: Path, environ: Mapping[str, str]) -> str:
    """Return the absolute path of an interpreter, links kept: a virtual environment needs its link.

    `value` is relative to `root`, or a command on the PATH; "" is the interpreter that runs pytest.
    Raises RequestError.
    """
    python = str(value)
    if not python:
        return sys.executable
    path = root / python
    if "/" not in python and not path.is_file():
        path = Path(shutil.which(python, path=environ.get("PATH")) or path)
    if not path.is_file() or not os.access(path, os.X_OK):
        raise RequestError(
            f"tool.gpu-cluster.local.python is {python!r}; {path} is not an executable file",
            remedy="give a path relative to pytest's rootdir,"
            " or leave it out for the interpreter that runs pytest",
        )
    return str(path.absolute())
