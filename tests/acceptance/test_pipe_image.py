"""The image of the Bitbucket pipe, built and run where that needs no daemon."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BUILDAH = shutil.which("buildah")


LIMIT_S = 80


OWN = (
    Path("/var/lib/containers"),
    Path("/run/containers"),
)  # buildah makes them whatever it is told


UNWANTED = (
    "test",
    "idlelib",
    "tkinter",
    "turtledemo",
    "lib2to3",
    "ensurepip",
    "site-packages",
    "dist-packages",
    "config-*",
    "__pycache__",
    "EXTERNALLY-MANAGED",
)


class Builder:
    """buildah with everything it writes below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "tmp").mkdir()
        self.command = [
            str(BUILDAH),
            "--storage-driver",
            "vfs",
            "--root",
            str(root / "root"),
            "--runroot",
            str(root / "run"),
        ]

    def __call__(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        env = os.environ | {
            "TMPDIR": str(self.root / "tmp"),
            "BUILDAH_ISOLATION": "chroot",
            "HOME": str(self.root),
        }
        finished = subprocess.run(
            [*self.command, *args],
            env=env,
            text=True,
            timeout=LIMIT_S,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert not check or finished.returncode == 0, f"buildah {args[0]}: {finished.stdout}"
        return finished


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Builder]:
    """The image of the Containerfile, on a base that is made here of this machine's own Python, git
    and shell.
    """
    if BUILDAH is None:
        pytest.skip("no buildah here: apt-get install buildah")
    if os.geteuid() != 0:
        pytest.skip("chroot isolation needs root")
    root = tmp_path_factory.mktemp("pipe-image")
    build = Builder(root)
    created = [path for path in OWN if not path.exists()]
    try:
        wheels(repository, root / "base" / "wheels")
        rootfs(root / "base")
        prefix = f"{sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin"
        (root / "base.containerfile").write_text(f"FROM scratch\nCOPY . /\nENV PATH={prefix}\n")
        build(
            "bud",
            "--layers=false",
            "-f",
            str(root / "base.containerfile"),
            "-t",
            "localhost/base",
            str(root / "base"),
        )
        build(
            "bud",
            "--layers=false",
            "--build-arg",
            "BASE=localhost/base",
            "-f",
            str(repository / "ci/pipe/Containerfile"),
            "-t",
            "localhost/pipe",
            str(repository),
        )
        yield build
    finally:
        build("rm", "--all", check=False)
        build("rmi", "--all", "--force", check=False)
        mounts = Path("/proc/self/mounts").read_text()
        assert str(root) not in mounts, f"a mount was left behind:\n{mounts}"
        for path in (root, *created):
            shutil.rmtree(path, ignore_errors=path in created)


def wheels(repository: Path, where: Path) -> None:
    """Download the wheels that pip needs in the image, so that the build asks no index."""
    needed = tomllib.loads((repository / "pyproject.toml").read_text("utf-8"))
    requirements = [*needed["build-system"]["requires"], *needed["project"]["dependencies"]]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--prefer-binary",
        "--dest",
        str(where),
        *requirements,
    ]
    finished = subprocess.run(command, text=True, capture_output=True, timeout=LIMIT_S, check=False)
    if finished.returncode:
        pytest.skip(f"no package index here: {finished.stderr.strip().splitlines()[-1]}")


def rootfs(base: Path) -> None:
    """A root file system with this Python (at its own path, pip beside the standard library), sh,
    rm, git, their libraries.
    """
    stdlib, python = (
        Path(sysconfig.get_paths(vars={"base": sys.base_prefix})["stdlib"]),
        Path(os.path.realpath(sys.executable)),
    )
    spec = importlib.util.find_spec("pip")
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(
        stdlib,
        base / stdlib.relative_to("/"),
        symlinks=True,
        ignore=shutil.ignore_patterns(*UNWANTED),
    )
    shutil.copytree(
        Path(spec.origin).parent,
        base / stdlib.relative_to("/") / "pip",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    programs = [python, *(Path(str(shutil.which(name))) for name in ("sh", "rm", "git"))]
    extensions = (
        *(stdlib / "lib-dynload").glob("*.so"),
        *Path(sysconfig.get_paths()["platlib"]).glob("obstore/*.so"),
    )
    for path in {*programs, *libraries(*programs, *extensions)}:
        target = base / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)  # the file that a link leads to
    for name, to in (("bin/sh", shutil.which("sh")), ("usr/local/bin/python3", python)):
        link = base / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(str(to))
    for name in ("tmp", "etc", "root", "proc", "sys", "dev", "var/tmp"):
        (base / name).mkdir(parents=True, exist_ok=True)
    (base / "tmp").chmod(0o1777)
    (base / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (base / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")


def libraries(*programs: Path) -> set[Path]:
    """The shared libraries that these need, and the loader, at the paths where they are looked
    for.
    """
    listing = subprocess.run(
        ["ldd", *map(str, programs)], text=True, capture_output=True, timeout=30, check=False
    ).stdout
    return {Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listing, re.MULTILINE)}


@pytest.fixture
def in_container(image: Builder, tmp_path: Path) -> Iterator[Any]:
    """Run the image's entrypoint as Bitbucket does: the clone mounted where it is in a step, and
    owned by somebody else.
    """
    clone = tmp_path / "clone"
    clone.mkdir()
    inside = "/opt/atlassian/pipelines/agent/build"
    name = image("from", "localhost/pipe").stdout.strip()
    config = json.loads(image("inspect", "--type", "container", name).stdout)["OCIv1"]["config"]

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        for path in (clone, *clone.rglob("*")):
            os.chown(path, 1000, 1000)
        values = {
            "BITBUCKET_CLONE_DIR": inside,
            "BITBUCKET_BUILD_NUMBER": "7",
            "CI": "true",
        } | variables
        environ = [part for key, value in values.items() for part in ("--env", f"{key}={value}")]
        return image(
            "run",
            "--isolation",
            "chroot",
            "--volume",
            f"{clone}:{inside}",
            *environ,
            name,
            "--",
            *config["Entrypoint"],
            check=False,
        )

    yield clone, run
    image("rm", name)


def test_the_image_runs_the_real_pytest_in_the_clone(in_container: Any) -> None:
    """Its Python, its plugin, git on a tree of another user, the clone as rootdir: all that no
    stand-in shows. The provider `local` without Ray is a request that is refused: a run that needs
    no cluster.
    """
    clone, run = in_container
    subprocess.run(["git", "init", "--quiet", str(clone)], check=True, timeout=30)
    (clone / "pyproject.toml").write_text(
        "[tool.pytest.ini_options]\n[tool.gpu-cluster.profile.ci]\nnodes = 1\n"
    )
    (clone / "test_a.py").write_text("def test_a():\n    pass\n")

    refused = run(PROFILE="ci", ARGS_COUNT="1", ARGS_0="test_a.py", DEBUG="true")
    version = run(ARGS="--version")
    unknown = run(PROFILE="nightly")

    assert refused.returncode == 4, refused.stdout
    assert (
        "pipe: pytest --gpu-cluster --gpu-profile ci test_a.py"
        " in /opt/atlassian/pipelines/agent/build" in refused.stdout
    )
    assert "Ray is not installed for" in refused.stdout
    assert (version.returncode, version.stdout) == (0, f"pytest {pytest.__version__}\n")
    assert (
        "--gpu-profile nightly: /opt/atlassian/pipelines/agent/build/pyproject.toml has no"
        in unknown.stdout
    )


def test_the_image_refuses_a_wrong_variable(in_container: Any) -> None:
    """The same words as without a container."""
    _, run = in_container

    ran = run(DEBUG="maybe")

    assert ran.returncode == 4
    assert "DEBUG is 'maybe'" in ran.stdout
