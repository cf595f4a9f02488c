"""`gpu-cluster ls | logs | down | sweep | doctor`, on clusters that are really there, in text and
in JSON.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.acceptance.processes import CLUSTERS, eventually, keeper_of, left_of
from tests.acceptance.project import Project

SUITE = "def test_passes():\n    pass\n\ndef test_fails():\n    assert 1 == 2\n"


def test_what_ran_is_listed_told_and_closed(lone: Project) -> None:
    """The next morning somebody asks what happened, and whether something still runs."""
    lone.write(test_a=SUITE)
    ran = lone.run()

    listed = lone.command("ls")
    as_json = json.loads(lone.command("ls", "--json").stdout)
    log = lone.command("logs")
    version = lone.command("--version")
    by_beginning = lone.command("logs", ran.session[:-2], "--json")
    wrong = lone.command("down", "c000000")
    running = left_of(ran.cluster)
    closed = lone.command("down", ran.cluster)
    again = lone.command("down", "--json")

    assert re.search(
        rf"^{ran.session}  \d\d \w+ \d\d:\d\d +\d+\.\d s  exit 1     1 failed, 1 passed$",
        listed.stdout,
        re.MULTILINE,
    ), listed.stdout
    failed = r"^\d\d:\d\d:\d\d .* nodeid=test_a.py::test_fails .*outcome=failed"
    assert re.search(failed, log.stdout, re.MULTILINE), log.stdout
    assert re.search(r" collected .*tests=2$", log.stdout, re.MULTILINE)
    assert version.stdout.startswith("pytest-gpu-cluster ")
    assert f"cluster {ran.cluster}  local  idle" in listed.stdout
    assert [(s["session"], s["exitstatus"]) for s in as_json["sessions"]] == [(ran.session, 1)]
    assert [(c["cluster"], c["state"], c["nodes"]) for c in as_json["clusters"]] == [
        (ran.cluster, "idle", 1)
    ]
    assert "test_a.py::test_fails" in log.stdout
    assert "session_finished" in log.stdout.splitlines()[-1]
    assert [e["nodeid"] for e in json.loads(by_beginning.stdout) if e["kind"] == "test_finished"]
    assert (
        wrong.returncode,
        "c000000" in wrong.stderr,
        "remedy: take an id from: gpu-cluster ls" in wrong.stderr,
    ) == (4, True, True)
    assert running, "a wrong id closed a cluster"
    assert (closed.returncode, closed.stdout) == (0, f"cluster {ran.cluster} closed\n")
    assert left_of(ran.cluster) == []
    assert json.loads(again.stdout) == {"closed": []}
    assert "no cluster" in lone.command("ls").stdout


@pytest.mark.parametrize("session", ["20000101-000000-0000", ""])
def test_a_session_that_is_not_there_or_not_the_only_one_is_named(
    project: Project, session: str
) -> None:
    """A typo must not print another session's story."""
    Path(project.store).mkdir(exist_ok=True)

    finished = project.command("logs", session or "2")

    assert finished.returncode == 4
    assert f"sessions match {session or '2'!r}" in finished.stderr
    assert "remedy:" in finished.stderr


def test_without_a_store_each_command_says_what_to_do(lone: Project) -> None:
    """The first thing that somebody types in a fresh clone."""
    for command in (["ls"], ["logs", "last"], ["down"]):
        finished = lone.command(*command)

        assert finished.returncode == 4
        assert "there is no store at" in finished.stderr
        assert "run pytest --gpu-cluster once" in finished.stderr
    assert not Path(lone.store).exists()


def test_a_project_without_settings_or_runs_is_told_so(lone: Project, tmp_path: Path) -> None:
    """Somebody tries the commands in a directory that is not the one, and it stays as it was."""
    del lone.environ["GPU_CLUSTER_STORE"]
    (lone.root / "pyproject.toml").unlink()

    doctor = lone.command("doctor")
    left = sorted(lone.root.iterdir())
    absent = lone.command("-C", "nowhere", "ls")
    store = tmp_path / "empty"
    store.mkdir(mode=0o700)
    logs = lone.command("-C", "..", "logs", "last", GPU_CLUSTER_STORE="project/../empty")
    listed = lone.command("ls", "--json", GPU_CLUSTER_STORE="../empty")

    assert doctor.returncode == 0, doctor.stdout
    assert f"settings: no [tool.gpu-cluster] here or above; the defaults hold in {lone.root}" in (
        doctor.stdout
    )
    assert f"store: {lone.root}/.gpu-cluster will be made by the first run" in doctor.stdout
    assert left == []
    assert (absent.returncode, "'nowhere' is no directory" in absent.stderr) == (2, True)
    assert (logs.returncode, "there is no session yet" in logs.stderr) == (4, True)
    assert json.loads(listed.stdout)["store"] == f"file://{store}"


def test_the_doctor_says_what_would_go_wrong_before_anything_is_spent(lone: Project) -> None:
    """Each check on its own: one failure must not hide the next."""
    well = lone.command("doctor", GPU_TESTS_TOKEN="q7Zk-very", GPU_TESTS_PASSWORD="admin")
    lone.settings("require-gpu = true")
    Path(lone.store).rmdir() if Path(lone.store).is_dir() and not os.listdir(lone.store) else None
    ill = lone.command("doctor", GPU_CLUSTER_STORE="/proc/nowhere")
    as_json = json.loads(lone.command("doctor", "--json", GPU_CLUSTER_STORE="/proc/nowhere").stdout)

    assert well.returncode == 0, well.stdout + well.stderr
    assert [line[:4] for line in well.stdout.splitlines()] == ["ok  "] * 6
    assert "secrets: masked: GPU_TESTS_TOKEN; not masked: GPU_TESTS_PASSWORD, whose" in well.stdout
    assert "ray 2." in well.stdout
    assert ill.returncode == 4
    assert [f["check"] for f in as_json if not f["ok"]] == [
        "store",
        *([] if os.path.exists("/dev/nvidiactl") else ["cluster"]),
    ]
    assert all(f["remedy"] for f in as_json if not f["ok"])
    assert "remedy:" in ill.stdout


def test_a_sweep_finishes_what_a_double_kill_left(lone: Project) -> None:
    """Client and keeper killed together: nobody is left who could clean up, but the guard, and it
    is killed too.
    """
    lone.write(test_a="import time\ndef test_a():\n    time.sleep(300)\n")
    running = lone.start("-v")
    ran = running.until("gpu-cluster: ray ")
    cluster = ran.cluster
    keeper = keeper_of(cluster)
    guard = int(Path(f"/proc/{keeper}/stat").read_text().rpartition(")")[2].split()[1])

    os.kill(running.process.pid, signal.SIGKILL)
    os.kill(guard, signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    running.process.wait()
    time.sleep(0.5)
    listed = lone.command("ls")
    swept = lone.command("sweep")

    assert f"cluster {cluster}  local  gone" in listed.stdout
    assert swept.returncode == 0, swept.stderr
    assert f"cluster {cluster}:" in swept.stdout
    assert f"session {ran.session}: its client was lost; the record is now closed" in swept.stdout
    (session,) = json.loads(lone.command("ls", "--json").stdout)["sessions"]
    assert (session["closed_by"], session["failure_class"]) == ("sweep", "infrastructure")
    assert eventually(lambda: left_of(cluster) == [], within_s=5), left_of(cluster)
    assert not (CLUSTERS / cluster).exists()
    assert f"cluster {cluster}" not in lone.command("ls").stdout
    assert cluster not in lone.command("sweep").stdout


def test_a_sweep_leaves_a_living_cluster_alone(project: Project) -> None:
    """It may run in cron, beside somebody's session."""
    project.write(test_a=SUITE)
    ran = project.run("-k", "passes")

    project.command("sweep")

    assert ran.code == 0, ran.out
    assert left_of(ran.cluster), "the sweep ended a cluster that waits for its next session"


def test_doctor_says_what_the_ci_host_will_not_take(project: Project) -> None:
    """A credential of the wrong kind is found before a step is spent on it; its value stands
    nowhere.
    """
    step = {
        "CI": "true",
        "BITBUCKET_BUILD_NUMBER": "7",
        "BITBUCKET_REPO_FULL_NAME": "acme/aerial",
        "BITBUCKET_COMMIT": "c" * 40,
    }
    (project.root / "store").mkdir(mode=0o700)
    fine = project.command("doctor", **step)
    wrong = project.command("doctor", **step, BITBUCKET_TOKEN="ATBBx7Yz9x7Yz9x7Yz9")

    assert (
        "ok   CI host: Bitbucket, acme/aerial at cccccccccccc; BITBUCKET_TOKEN is not set:"
        in fine.stdout
    )
    assert wrong.returncode == 4
    assert (
        "FAIL CI host: Bitbucket: BITBUCKET_TOKEN is an app password: app passwords were removed"
        in wrong.stdout
    )
    assert "x7Yz9" not in wrong.stdout
