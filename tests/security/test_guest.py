"""A test is a guest on its node: it has what it needs, and nothing of what runs it.

One run of a hostile suite; each test here looks at what it got.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from pytest_gpu_cluster.contract import procfs
from pytest_gpu_cluster.node.forkserver import prctl
from tests.acceptance.project import Project
from tests.security.guests import OUTCOMES, Guests, run_guests

NOBODY = 65534


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guests]:
    """The suite's run on a cluster of its own, whose keeper has credentials."""
    base = tmp_path_factory.mktemp("guests")
    (base / "private").write_text("private")
    project = Project(base / "project", str(base / "store"))
    yield run_guests(project, [str(base / "private")])
    project.command("down")


def test_a_hostile_suite_ends_as_it_would_alone(guests: Guests) -> None:
    """200 silent connections to each socket of the node, garbage between them: the keeper goes on,
    stores what a process has left meanwhile, and the fork server starts the next one.
    """
    assert guests.ran.cases() == OUTCOMES, guests.ran.out
    assert guests.left("test_flood") == [400, 0]
    assert guests.left("test_crash") == "before the crash"
    assert (guests.project.root / "out/written.txt").read_text() == "written"
    assert [key for key in guests.project.keys("sessions") if key.endswith("away.txt")] != []


def test_no_test_has_the_keeper_write_for_it(guests: Guests) -> None:
    """With the keeper's credentials, a test could write the record of any session and any code."""
    answers = guests.left("test_socket")

    assert isinstance(answers, list)
    assert len(answers) > 2  # the digests of code look like keys, and were tried
    assert all("error" in answer for answer in answers), answers
    assert guests.project.keys("history/planted") == []
    assert [key for key in guests.project.keys("sessions") if key.endswith("planted")] == []


def test_a_test_inherits_nothing_of_what_runs_it(guests: Guests) -> None:
    """No credential and no token, where tests or the programs that they start would log them; no
    file of the keeper, the agent or the journal.
    """
    inherited = guests.left("test_inherited")

    assert isinstance(inherited, dict)
    assert inherited["secrets"] == []
    for names in (inherited["variables"], [line.split("=")[0] for line in inherited["born"]]):
        hidden = re.compile(r"AWS_|AZURE_|GOOGLE_|RAY_AUTH_TOKEN|RAY_ADDRESS")
        assert [name for name in names if hidden.match(name)] == []
    known = re.compile(r"/dev/null|pipe:|socket:|anon_inode:\[eventpoll\]|/proc/|.*\(deleted\)")
    assert [path for path in inherited["files"].values() if not known.match(path)] == []
    assert len([path for path in inherited["files"].values() if path.startswith("socket:")]) == 1
    umask = os.umask(0o22)
    os.umask(umask)
    assert inherited["umask"] == umask
    assert inherited["cwd"].endswith("/project")
    if os.getuid():  # root may read whatever there is
        assert [line for line in inherited["opened"] if "node.guard" in line] == []


@pytest.mark.parametrize("hidden", [False, True])
def test_a_process_of_the_same_user_cannot_look_into_keeper_and_agent(hidden: bool) -> None:
    """Both forbid it first of all. Else their credentials are one `cat` away from a test."""
    ready, say_ready = os.pipe()

    def be_keeper() -> int:
        if hidden:
            procfs.forbid_inspection()
        os.write(say_ready, b"1")
        time.sleep(60)
        return 0

    keeper = forked(be_keeper)
    try:
        os.read(ready, 1)
        places = [f"/proc/{keeper}/{name}" for name in ("environ", "mem", "maps")]
        opened = result_of(forked(lambda: sum(map(can_open, places))))
        line = procfs.command_line(keeper)
        found = result_of(forked(lambda: keeper in procfs.with_environment(line)))
    finally:
        os.kill(keeper, signal.SIGKILL)
        os.waitpid(keeper, 0)
        os.close(ready)
        os.close(say_ready)

    assert opened == (0 if hidden else len(places))
    assert found == hidden  # `gpu-cluster down` finds it by its command line


def result_of(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def can_open(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except PermissionError:
        return False
    return True


def forked(function: Callable[[], int]) -> int:
    """Call a function in a process of an ordinary user, which ends with its result."""
    pid = os.fork()
    if pid == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                prctl(procfs.PR_SET_DUMPABLE, 1)  # as a program is that was started by that user
            os._exit(function())
        finally:
            os._exit(99)
    return pid
