"""What tests write into the tree comes home, as if they had run here."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.processes import eventually
from tests.acceptance.project import Project

# Of plugins that stay out of every other test.
PLUGINS = ("-p", "syrupy", "-p", "benchmark", "-p", "allure_pytest")
SUITE = """
import os
from pathlib import Path
import pytest

HERE = Path(__file__).parent

@pytest.mark.parametrize("n", [1, 2])
def test_snapshot(snapshot, n):
    assert {"n": n} == snapshot

@pytest.mark.parametrize("n", [1, 2])
def test_speed(benchmark, n):
    benchmark(sum, [n])

def test_results():
    (HERE / "results" / "deep").mkdir(parents=True)
    (HERE / "results" / "deep" / "loss.csv").write_text("0.5")
    (HERE / "results" / "run.sh").write_text("#!/bin/sh")
    (HERE / "results" / "run.sh").chmod(0o755)
    (HERE / "results" / "edited.txt").write_text("by the test")
    (HERE / "rest.log").write_text("x")
    (HERE / ".hypothesis").mkdir(exist_ok=True)
    (HERE / ".hypothesis" / "litter").touch()
    if here := os.environ.get("PYTEST_HERE"):  # somebody goes on working meanwhile
        Path(here, "results").mkdir()
        Path(here, "results", "edited.txt").write_text("by the user")
    assert 0, "its files come home all the same"
"""
GIVEN = (
    *PLUGINS,
    *("--snapshot-update", "--alluredir=allure", "--benchmark-json=bench.json"),
    *("--benchmark-autosave", "--benchmark-min-rounds=1", "--benchmark-max-time=0.01"),
)


def left(root: Path) -> Iterator[str]:
    """The files that a run has left, with the names that differ between runs made equal."""
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        first = name.partition("/")[0]
        if path.is_dir() or first in ("store", ".pytest_cache", ".hypothesis", "junit.xml"):
            continue
        if first == ".benchmarks":
            name = f"{first}/{path.name[:5]}"
        elif first == "allure":
            kind = path.name.rpartition("-")[2]
            if kind != "result.json":
                continue  # of fixtures, which each process sets up
            name = f"{first}/{json.loads(path.read_bytes())['fullName']}"
        if "__pycache__" not in name:
            yield name


def test_files_of_tests_and_plugins_come_home(project: Project, tmp_path: Path) -> None:
    """The same files as after plain pytest, over nothing that somebody has edited meanwhile."""
    plainly = Project(tmp_path / "plain", project.store)
    for each in (plainly, project):
        each.settings('outputs = ["results/**"]')
        each.write(test_a=SUITE)
    plain = plainly.plain(*GIVEN)
    ran = project.run(*GIVEN, PYTEST_HERE=str(project.root))
    results = (plain.code, plain.cases()), (ran.code, ran.cases())
    again = project.run("-k", "snapshot", *PLUGINS)
    log = project.command("logs", ran.session).stdout.splitlines()[-1]
    report = project.command("report", ran.session).stdout
    fetched = project.command("artifacts", ran.session, "fetched")

    assert results[0] == results[1], ran.out
    assert "order        one test at a time, as collected, for --" in ran.out
    (project.root / "rest.log").touch(exist_ok=False)
    fetched_files = project.root / "fetched" / "outputs"
    assert (fetched_files / "results" / "edited.txt").read_text() == "by the test"
    assert (fetched_files / "rest.log").read_text() == "x"
    shutil.rmtree(project.root / "fetched")
    assert sorted(left(project.root)) == sorted(left(plainly.root))
    for name in ("__snapshots__/test_a.ambr", "results/deep/loss.csv"):
        assert (project.root / name).read_text() == (plainly.root / name).read_text()
    assert os.access(project.root / "results" / "run.sh", os.X_OK)
    assert (project.root / "results" / "edited.txt").read_text() == "by the user"
    bench = json.loads((project.root / "bench.json").read_bytes())
    assert [b["name"] for b in bench["benchmarks"]] == ["test_speed[1]", "test_speed[2]"]
    kept = "results/edited.txt did not come home: it is here too and was not sent; to fetch it:"
    assert f"outputs: {kept} gpu-cluster artifacts {ran.session}" in ran.out
    stays = '1 file that the tests wrote did not come home: rest.log; outputs = ["rest.log"]'
    assert f"outputs: {stays}" in ran.out
    assert again.code == 0, again.out
    assert "gpu-cluster: outputs:" not in again.out
    assert log.startswith("files: ")
    assert f"outputs; gpu-cluster artifacts {ran.session}" in log
    assert log in report
    assert fetched.returncode == 0, fetched.stderr
    assert "rest.log" in fetched.stdout


TWO_NODES = """
import os, time
from pathlib import Path
import pytest

@pytest.mark.parametrize("n", [0, 1])
def test_a(n, artifacts):
    (artifacts / "note.txt").write_text(str(n))
    Path(f"own-{n}.txt").write_text(str(n))
    meeting = Path(os.environ["PYTEST_MEETING"])
    (meeting / str(n)).touch()
    deadline = time.monotonic() + 60
    while len(list(meeting.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
"""


@pytest.mark.slow
def test_each_node_stores_what_was_written_there(lone: Project, tmp_path: Path) -> None:
    """The nodes of `local` share one disk, so that both have both files here."""
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    lone.settings('nodes = 2\nsimulated-gpus = 1\ndistribute = "test"\noutputs = ["*.txt"]')
    lone.write(test_a=TWO_NODES)

    ran = lone.run(PYTEST_MEETING=str(meeting), GPU_CLUSTER_IDLE_MINUTES="0")
    listed = json.loads(lone.command("artifacts", "--json").stdout)
    lone.command("artifacts")

    assert ran.code == 0, ran.out
    assert "outputs: 2 files came home: own-0.txt, own-1.txt" in ran.out
    assert f"artifacts: 2 files; gpu-cluster artifacts {ran.session}" in ran.out
    listings = [key for key in lone.keys(f"sessions/{ran.session}/outputs") if "blobs" not in key]
    assert len(listings) == 2
    assert (listed["directory"], len(listed["files"])) == (None, 4)
    fetched = lone.root / f"gpu-cluster-{ran.session}"
    assert (fetched / ".gitignore").read_text() == "*\n"
    assert {path.read_text() for path in fetched.glob("artifacts/*/note.txt")} == {"0", "1"}
    assert (fetched / "outputs" / "own-1.txt").read_text() == "1"


STUCK = """
import time
from pathlib import Path

def test_a(artifacts):
    Path("written.txt").write_text("x")
    (artifacts / "note.txt").write_text("y")
    print("it is written", flush=True)
    time.sleep(300)
"""


def test_a_killed_client_leaves_them_in_the_record(lone: Project) -> None:
    """The keeper ends the session then, and is the last who can store what the tests wrote."""
    lone.write(test_a=STUCK)
    waits = "heartbeat_s=1,grace_s=3"
    running = lone.start("-s", GPU_CLUSTER_INTERNAL_WAITS=waits)
    ran = running.until("it is written")
    running.process.kill()
    running.process.wait()

    assert eventually(
        lambda: f"sessions/{ran.session}/result.json" in lone.keys(f"sessions/{ran.session}"),
        within_s=60,
    )
    fetched = lone.command("artifacts", "last", "fetched")

    assert fetched.returncode == 0, fetched.stderr
    assert (lone.root / "fetched" / "outputs" / "written.txt").read_text() == "x"
    (note,) = (lone.root / "fetched" / "artifacts").glob("*/note.txt")
    assert note.read_text() == "y"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("20000101-000000-0000",), "0 sessions match '20000101-000000-0000'"),
        (("last",), "there is no store at"),
    ],
)
def test_a_session_that_is_not_there_is_named(
    lone: Project, arguments: tuple[str, ...], words: str
) -> None:
    """A wrong id must not fetch another session's files."""
    if arguments != ("last",):
        Path(lone.store).mkdir(mode=0o700)

    finished = lone.command("artifacts", *arguments)

    assert finished.returncode == 4
    assert words in finished.stderr
    assert not list(lone.root.glob("gpu-cluster-*"))
