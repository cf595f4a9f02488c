"""The wheel: one import name, the workloads without data, and no name taken from a project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SOURCES = ("harness", "gpu_tests", "pyproject.toml", "README.md", "LICENSE", ".gitignore")
IMPORTS = """
from pathlib import Path

import gpu_tests
import harness
import pytest_gpu_cluster


def test_own_packages(request):
    root = request.config.rootpath
    assert [Path(each.__file__) for each in (harness, gpu_tests)] == [
        root / "harness" / "__init__.py",
        root / "gpu_tests" / "__init__.py",
    ]
    assert request.config.pluginmanager.has_plugin("gpu_cluster")
    print("plugin:", pytest_gpu_cluster.__file__)
"""


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of a copy of this repository, in which tiles have been fetched."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    unshipped = shutil.ignore_patterns("__pycache__", "data")
    for name in SOURCES:
        path = repository / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=unshipped)
        else:
            shutil.copy(path, source / name)
    (source / "gpu_tests" / "data").mkdir()
    (source / "gpu_tests" / "data" / "tiles.parquet").write_bytes(b"fetched")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(target), str(source)], check=True)
    (path,) = target.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel's content, as site-packages would have it."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_pytest(folder: Path, unpacked: Path, *arguments: str) -> str:
    """Run a plain pytest in a folder, with the wheel's packages before all others."""
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith("GPU_CLUSTER_")
    }
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**environ, "PYTHONPATH": str(unpacked)},
        text=True,
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_the_wheel_has_one_import_name_and_no_data(wheel: Path) -> None:
    """Another top-level name could be a package of the project that installs it."""
    names = zipfile.ZipFile(wheel).namelist()

    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"pytest_gpu_cluster"}
    assert len(tops) == 2
    workloads = {name for name in names if name.startswith("pytest_gpu_cluster/gpu_tests/")}
    assert {
        "pytest_gpu_cluster/gpu_tests/conftest.py",
        "pytest_gpu_cluster/gpu_tests/test_device.py",
        "pytest_gpu_cluster/gpu_tests/pipelines/job.py",
        "pytest_gpu_cluster/gpu_tests/pipelines/search_space.json",
    } <= workloads
    assert not [name for name in workloads if "/data/" in name]


def test_the_workloads_are_collected_from_the_installed_package(
    unpacked: Path, tmp_path: Path
) -> None:
    """A team accepts its cluster with them, without a clone of this repository."""
    arguments = ("--collect-only", "-q", "--pyargs", "pytest_gpu_cluster.gpu_tests", "-m", "smoke")
    output = run_pytest(tmp_path, unpacked, *arguments)

    for name in (
        "test_h1_a_product_is_right",
        "test_t1_a_job_from_the_store",
        "test_i1_",
        "test_s2_",
    ):
        assert name in output
    assert "error" not in output.lower()


def test_a_project_keeps_its_own_harness_and_gpu_tests(unpacked: Path, tmp_path: Path) -> None:
    """Both are common names; the plugin is loaded in every pytest of its environment."""
    for name in ("harness", "gpu_tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    (tmp_path / "test_it.py").write_text(IMPORTS)

    output = run_pytest(tmp_path, unpacked, "-rP")

    assert "1 passed" in output
    assert f"plugin: {unpacked}" in output
