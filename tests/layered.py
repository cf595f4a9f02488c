"""A virtual environment on top of this one: a few packages of its own, the others from this one.

It takes a second and no disk; a whole environment (Ray, torch) would take minutes and gigabytes.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


def make_layer(folder: Path, *pip_args: str) -> Path:
    """Create the environment `folder`, `pip install` into it, and return its interpreter, absolute.

    Raises subprocess.CalledProcessError when pip fails; its output is on stderr.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder.absolute() / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # addsitedir, not a bare path: it also reads the .pth files there, where editable installs live.
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (folder / "lib" / version / "site-packages" / "base.pth").write_text(line)
    quiet = ("--quiet", "--quiet", "--disable-pip-version-check", "--prefer-binary")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", *quiet, *pip_args]
    subprocess.run(command, check=True)
    return python
