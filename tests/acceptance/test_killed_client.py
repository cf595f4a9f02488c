"""A client that is killed leaves a JUnit file that is no pass, and a record from which its report
is finished.
"""

from __future__ import annotations

import concurrent.futures
import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.processes import eventually
from tests.acceptance.project import Project, Ran
from tests.hosts import schema_errors

SUITE = """
import time, pytest

@pytest.fixture
def broken():
    yield
    raise RuntimeError("in teardown")

@pytest.mark.parametrize("n", range(10))
def test_sleep(n):
    print("n is", n)
    time.sleep(0.15)
    assert n != 4, "four is bad"

def test_teardown(broken):
    pass

def test_both(broken):
    assert 0, "call"

@pytest.mark.skip(reason="not now")
def test_skipped():
    pass
"""
TESTS = 13
ENVIRON = {"CI": "true", "GPU_CLUSTER_IDLE_MINUTES": "5"}
LOST = "gpu_cluster.InfrastructureError"


@dataclass(frozen=True)
class Killed:
    project: Project
    session: str
    finished: int  # tests with a result in the store when the client died

    @property
    def results(self) -> Path:
        """The file that the dead client has left."""
        return self.project.root / "test-results" / "gpu-cluster.xml"


def cases(path: Path) -> dict[tuple[str, str], str]:
    """Each test case as text, without what no two runs have in common."""
    texts = {}
    for case in ET.parse(path).iter("testcase"):
        case.attrib.pop("time", None)
        text = re.sub(r"0x[0-9a-f]+|Session: .*", "", ET.tostring(case, encoding="unicode")).strip()
        texts[case.get("classname", ""), case.get("name", "")] = text
    return texts


Moment = Callable[[Project, str], object]  # of a project and its session's id: whether it has come


def kill(project: Project, moment: Moment, *, within_s: float = 60.0) -> Killed:
    """Start a session, kill its client at a moment, and with it nothing else."""
    project.write(tests__test_it=SUITE)
    running = project.start("tests", "-v", **ENVIRON)
    deadline = time.monotonic() + within_s
    while not ((session := session_of(project)) and moment(project, session)):
        if running.process.poll() is not None:  # the last moment is a short one
            assert moment(project, session_of(project)), (
                f"it ended before its moment:\n{running.so_far.out}"
            )
        assert time.monotonic() < deadline, f"the moment never came:\n{running.so_far.out}"
        time.sleep(0.002)
    running.process.kill()
    running.process.wait()
    return Killed(project, session, count(project, session, "test_finished"))


def session_of(project: Project) -> str:
    """From the file that is there before anything else."""
    path = project.root / "test-results" / "gpu-cluster.xml"
    match = (
        re.search(r'name="session" value="([^"]+)"', path.read_text()) if path.exists() else None
    )
    return match[1] if match else ""


def count(project: Project, session: str, kind: str) -> int:
    return sum(event["kind"] == kind for event in project.events(session))


MOMENTS: dict[str, Moment] = {
    "before_the_first_event": lambda project, session: project.get(
        f"sessions/{session}/request.json"
    ),
    "in_collection": lambda project, session: count(project, session, "node"),
    "in_the_middle": lambda project, session: count(project, session, "test_finished") >= 5,
    "in_the_last_segment": lambda project, session: (
        count(project, session, "test_finished") >= TESTS - 1
    ),
    "after_the_result": lambda project, session: project.get(f"sessions/{session}/result.json"),
}


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, shared_store: str
) -> dict[tuple[str, str], str]:
    """The JUnit cases of a client that lived."""
    project = Project(tmp_path_factory.mktemp("whole") / "project", shared_store)
    project.write(tests__test_it=SUITE)
    ran: Ran = project.run("tests", "-v", **ENVIRON)
    assert ran.code == 1, ran.out
    return cases(project.root / "test-results" / "gpu-cluster.xml")


@pytest.fixture(scope="module")
def killed(
    tmp_path_factory: pytest.TempPathFactory, shared_store: str, whole: object
) -> dict[str, Killed]:
    """One client for each moment, one after the other on one cluster."""
    clients = {}
    for name, moment in MOMENTS.items():
        project = Project(tmp_path_factory.mktemp(name) / "project", shared_store)
        clients[name] = kill(project, moment)
        cluster_free(project)
    return clients


def cluster_free(project: Project) -> None:
    """The cluster goes on without the client; the next session is to find it idle."""
    assert eventually(
        lambda: all(
            b'"session": null' in project.get(key)
            for key in project.keys("clusters")
            if key.endswith("/state.json")
        )
    )


@pytest.fixture(scope="module")
def reports(killed: dict[str, Killed]) -> dict[str, str]:
    """Return the output of `gpu-cluster report` for each session.

    The commands run at once, since each watches a heartbeat for some seconds.
    """

    def report(client: Killed) -> str:
        finished = client.project.command(
            "report", client.session, "--junitxml", str(client.project.root / "finished.xml")
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(killed, pool.map(report, killed.values()), strict=True))


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_file_that_is_left_is_no_pass(moment: str, killed: dict[str, Killed]) -> None:
    """A step that was killed and whose artifacts are read must not look green; it is the final file
    only after the end.
    """
    results = killed[moment].results
    (error, *others) = [*ET.parse(results).iter("error"), *ET.parse(results).iter("failure")]

    assert schema_errors(results) == []
    assert moment == "after_the_result" or (error.get("type"), others) == (LOST, [])
    assert moment == "after_the_result" or f"gpu-cluster report {killed[moment].session}" in str(
        error.text
    )


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_finished_report_equals_that_of_a_client_that_lived(
    moment: str,
    killed: dict[str, Killed],
    reports: dict[str, str],
    whole: dict[tuple[str, str], str],
) -> None:
    """For every test that had a result: the same case, whoever writes the file; each other one is
    an error by name.
    """
    path = killed[moment].project.root / "finished.xml"
    texts = cases(path)
    reported = {key: text for key, text in texts.items() if LOST not in text}

    assert schema_errors(path) == []
    assert reported == {key: whole[key] for key in reported}
    assert (
        len({key for key in reported if not key[1].endswith("(teardown)")})
        >= killed[moment].finished
    )
    assert moment == "before_the_first_event" or {key[1] for key in texts} >= {
        name for _, name in whole if "(" not in name
    }
    assert "GPU tests" in reports[moment]


def test_after_the_result_all_of_it_is_there(
    killed: dict[str, Killed], reports: dict[str, str], whole: dict[tuple[str, str], str]
) -> None:
    """Whoever dies at the very end has lost nothing."""
    assert killed["after_the_result"].finished == TESTS
    assert cases(killed["after_the_result"].project.root / "finished.xml") == whole


def test_a_session_that_goes_on_is_only_looked_at(project: Project) -> None:
    """A report beside a living client must neither stop it nor close its record."""
    go = project.root.parent / "go"
    waiting = f"    while not os.path.exists({str(go)!r}):\n        time.sleep(0.05)\n"
    project.write(tests__test_it=f"import os, time\n\ndef test_long():\n{waiting}")
    running = project.start("tests", "-v")
    running.until("ray ")
    finished = project.command("report", "last")
    go.touch()
    ran = running.wait()

    assert finished.returncode == 0, finished.stderr
    assert "### ⏳ GPU tests: running" in finished.stdout
    assert ran.code == 0, ran.out
    assert ran.cases() == {"test_long": "passed"}
