"""The same small session on a directory and on a real S3 over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpu_tests.s3_server import S3Server
from tests.acceptance.processes import left_of
from tests.acceptance.project import Project

SUITE = """
import os
import pytest

def test_passes(artifacts):
    (artifacts / "note.txt").write_text("from the cluster")
    with open("written.txt", "w") as file:
        file.write("into the tree")

def test_fails():
    assert 1 == 2, "as it should"

@pytest.mark.ray(gpus=1)
def test_drives_ray():
    import ray
    ray.init()
    f = ray.remote(lambda: {name for name in os.environ if name.startswith("AWS_")})
    assert ray.get(f.options(num_gpus=1).remote()) == set()

def test_has_no_credentials():
    assert [name for name in os.environ if name.startswith("AWS_")] == []

def test_dies():
    os._exit(7)
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """An S3 with one bucket."""
    with S3Server() as server:
        server.make_bucket("tests")
        yield server


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_a_session_is_the_same_on_every_store(
    project: Project, s3: S3Server, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The laptop's directory and the team's bucket are one product; and the bucket's keys stop at
    keeper and agent.
    """
    environ = {"file": {}, "s3": s3.env | {"GPU_CLUSTER_STORE": "s3://tests/team/a"}}[kind]
    project.store = environ.get("GPU_CLUSTER_STORE", project.store)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    project.environ |= environ
    project.write(test_a=SUITE)

    ran = project.run(GPU_CLUSTER_IDLE_MINUTES="0" if kind == "s3" else "5")
    project.command("artifacts", ran.session, "fetched")

    assert ran.code == 1, ran.out
    (note,) = (project.root / "fetched" / "artifacts").glob("*/note.txt")
    assert note.read_text() == "from the cluster"
    written = project.root / "fetched" / "outputs" / "written.txt"
    assert written.read_text() == "into the tree"
    assert ran.cases() == {
        "test_passes": "passed",
        "test_fails": "failure",
        "test_drives_ray": "passed",
        "test_has_no_credentials": "passed",
        "test_dies": "failure",
    }
    assert ran.message("test_dies").startswith("crash: exit 7")
    assert f"{project.store}/sessions/{ran.session}" in ran.out
    kinds = [event["kind"] for event in project.events(ran.session)]
    assert kinds.count("test_finished") == 5
    assert kinds[-1] == "session_finished"
    assert [
        key.rpartition("/")[2] for key in project.keys(f"sessions/{ran.session}/artifacts/")
    ] == ["note.txt"]
    assert b'"closed_by": "client"' in project.get(f"sessions/{ran.session}/result.json")
    for value in ("dummy-access-key", "dummy-secret-key"):
        assert value not in ran.out
        assert [
            key for key in project.keys("sessions/") if value.encode() in project.get(key)
        ] == []
    if kind == "s3":
        assert left_of(ran.cluster) == []
        assert project.keys("clusters/") == []
