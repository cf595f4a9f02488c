"""On a machine that is rented, tests run as another user than the keeper.

Then the credentials of the store, Ray's token and the places of both are out of a test's reach.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract.errors import InfrastructureError
from pytest_gpu_cluster.node.guest import Guest, rights_of
from tests.acceptance.project import Project
from tests.security.guests import OUTCOMES, Guests, run_guests

USER = "nobody"
IS_ROOT = os.getuid() == 0
pytestmark = pytest.mark.skipif(not IS_ROOT, reason="only root can run tests as another user")


@pytest.fixture(scope="module")
def public() -> Iterator[Path]:
    """A directory that every user can reach, unlike those of pytest."""
    path = Path(tempfile.mkdtemp(prefix="gpu-guest-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def interpreter(public: Path) -> str:
    """An interpreter with our site-packages that the tests' user can reach."""
    if can_run(sys.executable):
        return sys.executable
    system = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    if not can_run(system):
        pytest.skip(f"{USER} can start neither {sys.executable} nor {system}")
    home = public / "v"
    subprocess.run([system, "-m", "venv", "--without-pip", str(home)], check=True, timeout=60)
    (site,) = home.glob("lib/python*/site-packages")
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        (site / entry.name).symlink_to(entry)
    return str(home / "bin" / "python")


def can_run(python: str) -> bool:
    """Return True where the user can start an interpreter and import of its library."""
    try:
        command = [python, "-c", "import json, sqlite3, ctypes"]
        done = subprocess.run(
            command,
            user=USER,
            group="nogroup",
            extra_groups=[],
            cwd="/",
            capture_output=True,
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0


@pytest.fixture(scope="module")
def guests(
    tmp_path_factory: pytest.TempPathFactory, public: Path, interpreter: str
) -> Iterator[Guests]:
    """The run of the hostile suite on a cluster of its own, as another user."""
    base = tmp_path_factory.mktemp("guests")
    (base / "private").write_text("private")
    project = Project(base / "project", str(base / "store"))
    project.write(test_ray="import pytest\n@pytest.mark.ray\ndef test_ray(): pass\n")
    yield run_guests(
        project,
        [str(path) for path in (base / "private", base / "store", Path("/etc/shadow"))],
        f"[tool.gpu-cluster.local]\npython = {interpreter!r}",
        GPU_CLUSTER_INTERNAL_CLUSTERS=str(public / "c"),
        GPU_CLUSTER_INTERNAL_TEST_USER=USER,
    )
    down = project.command("down")
    assert down.returncode == 0, down.stdout + down.stderr
    assert not (public / "c").exists()


def test_the_results_are_those_of_any_run(guests: Guests) -> None:
    """A suite that passes, fails, crashes and writes is not to see who it is run by."""
    assert guests.ran.cases() == {**OUTCOMES, "test_ray": "error"}, guests.ran.out
    assert "tests run as another user than Ray here" in guests.ran.text("test_ray")
    assert guests.left("test_crash") == "before the crash"
    assert (guests.project.root / "out/written.txt").read_text() == "written"


def test_every_process_of_a_test_is_of_the_tests_user(guests: Guests) -> None:
    """Its groups too: one of root's could open what its user cannot."""
    inherited = guests.left("test_inherited")
    user = pwd.getpwnam(USER)

    assert isinstance(inherited, dict)
    assert inherited["user"] == [user.pw_uid, user.pw_gid, os.getgrouplist(USER, user.pw_gid)]
    assert inherited["variables"]["USER"] == USER
    assert inherited["variables"]["HOME"] == inherited["variables"]["TMPDIR"]  # it has no home


def test_nothing_that_runs_the_tests_can_be_read_or_written(guests: Guests) -> None:
    """Neither processes nor files: no environment, handoff, log, socket, store."""
    inherited = guests.left("test_inherited")

    assert isinstance(inherited, dict)
    assert inherited["opened"] == []
    assert inherited["reached"] == []
    assert inherited["secrets"] == []
    assert inherited["writable"] == []
    assert inherited["node"] == ["s", "code"]  # their own places, and the package that runs them
    assert guests.left("test_flood") == [0, 400]
    answers = guests.left("test_socket")
    assert isinstance(answers, list)
    assert {answer["error"] for answer in answers} == {"it cannot connect"}


def test_a_link_in_an_artifact_leads_no_further_than_its_test(guests: Guests) -> None:
    """The keeper, which may read anything, stores the files: it does so with the test's rights."""
    artifacts = [key.rpartition("/")[2] for key in guests.project.keys("sessions")]

    assert "link.txt" in artifacts
    assert "away.txt" not in artifacts


def test_a_warm_node_serves_the_next_session_as_it_did_the_first(guests: Guests) -> None:
    """Its tree is mended by the keeper, and again belongs to the tests' user, as their TMPDIR."""
    ran = guests.project.run("-k", "inherited or fails or skips")

    assert ran.cluster == guests.ran.cluster
    names = ("test_inherited", "test_fails", "test_skips")
    assert ran.cases() == {name: OUTCOMES[name] for name in names}, ran.out


def test_the_rights_to_files_are_those_of_the_user_for_as_long_as_is_said(tmp_path: Path) -> None:
    """The keeper reads what tests left in one thread, and its own files in others meanwhile."""
    (tmp_path / "private").write_text("private")
    (tmp_path / "private").chmod(0o600)
    tmp_path.chmod(0o711)
    guest = Guest.named(USER)

    with rights_of(guest), pytest.raises(PermissionError):
        (tmp_path / "private").read_text()

    assert (tmp_path / "private").read_text() == "private"
    with rights_of(None):
        assert (tmp_path / "private").read_text() == "private"


@pytest.mark.parametrize(
    ("name", "what"), [("no-such-user", "has no user 'no-such-user'"), ("root", "runs as uid 0")]
)
def test_a_node_whose_tests_cannot_run_as_said_does_not_start(name: str, what: str) -> None:
    """They would run as the keeper, unnoticed."""
    with pytest.raises(InfrastructureError, match=what):
        Guest.named(name)
    assert Guest.named("") is None
