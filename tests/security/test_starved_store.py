"""A store that fills up, turns read-only, is deleted or refuses, in the middle of a run."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpu_tests.s3_server import S3Server
from pytest_gpu_cluster.contract.errors import StoreError
from pytest_gpu_cluster.contract.store import Store
from tests.acceptance.conftest import closed_project
from tests.acceptance.processes import eventually, left_of, waits
from tests.acceptance.project import Project

DISK_BYTES = 4 << 20
PATIENCE_S = 3.0
SUITE = """
import time
import pytest

def test_quick():
    pass

def test_talks():
    for _ in range(600):
        print("x" * 100_000)
        time.sleep(0.1)

def test_long():
    time.sleep(60)
"""
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Project]:
    """A project with a store of its own, whose clusters end with the test."""
    with closed_project(tmp_path) as project:
        project.write(test_a=SUITE)
        yield project


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """Have a disk of 4 MiB at `path`."""
    path.mkdir(mode=0o700)
    options = f"size={DISK_BYTES},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(store: Path) -> None:
    """Fill the disk to the last byte."""
    with contextlib.suppress(OSError), open(store / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def make_read_only(store: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(store)], check=True)


def take_rights(store: Path) -> None:
    for path in (store, *store.rglob("*")):
        if path.is_dir():
            path.chmod(0o500)


FULL = pytest.param(True, fill, "the disk is full", "free space there", id="full", marks=root_only)
DELETED = pytest.param(False, shutil.rmtree, "the store is gone", "put it back", id="deleted")
READ_ONLY = pytest.param(
    *(True, make_read_only, "the file system is read-only", "choose a writable `store`"),
    id="read-only",
    marks=[root_only, pytest.mark.slow],
)
NO_RIGHTS = pytest.param(
    *(False, take_rights, "permission denied", "make it writable"),
    id="no-rights",
    marks=pytest.mark.skipif(os.geteuid() == 0, reason="root needs no rights"),
)


@pytest.mark.parametrize(
    ("disk", "starve", "meaning", "remedy"), [FULL, DELETED, READ_ONLY, NO_RIGHTS]
)
def test_a_store_that_starves_costs_no_result_that_was_shown(
    place: Project, disk: bool, starve: Callable[[Path], None], meaning: str, remedy: str
) -> None:
    """It is nobody's test that failed; the store and what to do are named, and all else ends."""
    store = Path(place.store)
    with small_disk(store) if disk else contextlib.nullcontext():
        running = place.start("-v", **waits(store_patience_s=PATIENCE_S, stop_grace_s=3))
        cluster = running.until("test_quick PASSED").cluster

        starve(store)
        ran = running.wait()

        assert ran.code == 10, ran.out
        outcomes = {"test_quick": "passed", "test_talks": "error", "test_long": "error"}
        assert ran.cases() == outcomes, ran.out
        (line,) = [line for line in ran.out.splitlines() if "gpu-cluster: infrastructure" in line]
        assert str(store) in line
        assert meaning in line
        assert f"\n  remedy: {remedy}" in ran.out
        assert meaning in ran.message("test_long")
        assert eventually(lambda: left_of(cluster) == []), left_of(cluster)
        assert not [*store.rglob("*#*")], "what could not be stored is left in pieces"
        assert store.exists() is (starve is not shutil.rmtree), "it was made again, for all to read"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "meaning"), [("403", "access denied"), ("507", "the store is full")]
)
def test_a_bucket_that_takes_nothing_any_more_is_named(
    place: Project, monkeypatch: pytest.MonkeyPatch, fault: str, meaning: str
) -> None:
    """A key that was revoked, a quota that is used up: reading still works, so nothing is said."""
    with S3Server() as server:
        server.make_bucket("tests")
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        place.store = "s3://tests/a"
        place.environ |= server.env | {"GPU_CLUSTER_STORE": place.store}
        running = place.start("-v", **waits(store_patience_s=PATIENCE_S, stop_grace_s=3))
        cluster = running.until("test_quick PASSED").cluster

        server.fault("403" if fault == "403" else "507", method="PUT")
        ran = running.wait()

        assert ran.code == 10, ran.out
        assert ran.cases()["test_quick"] == "passed"
        assert f"{place.store}: {meaning}" in ran.message("test_long"), ran.out
        assert eventually(lambda: left_of(cluster) == []), left_of(cluster)


def test_a_store_that_has_gone_is_not_made_again(tmp_path: Path) -> None:
    """Its directories would be open to others, and an idle cluster would fill them for nobody."""
    store = Store.open("store", base=tmp_path)
    store.put("a/b", b"1")
    shutil.rmtree(tmp_path / "store")

    for call in (lambda: store.put("a/b", b"2"), lambda: store.get("a/b"), lambda: store.names("")):
        with pytest.raises(StoreError, match="the store is gone") as caught:
            call()
        assert store.url in caught.value.what
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("content", [(), ("theirs",)])
def test_an_empty_directory_becomes_a_private_store(
    tmp_path: Path, content: tuple[str, ...]
) -> None:
    """`mkdir` leaves a directory that all may read; one with other files in it is its owner's."""
    path = tmp_path / "store"
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    for name in content:
        (path / name).touch()

    Store.open("store", base=tmp_path)

    assert path.stat().st_mode & 0o777 == (0o755 if content else 0o700)
