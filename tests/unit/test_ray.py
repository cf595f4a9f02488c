"""What a test process makes of Ray's files and books, without a Ray."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract.loopback import is_loopback
from pytest_gpu_cluster.ray_remains import SERVE, Actor, Group, Job, Remains, process_name
from pytest_gpu_cluster.worker import task_entry
from pytest_gpu_cluster.worker.ray_output import PrintedFile


def actor(
    job: str, name: str = "", *, namespace: str = "", module: str = "app", gpus: float = 0.0
) -> Actor:
    return Actor(f"id-{name}", job, name, namespace, module, "Holder", "127.0.0.1", 1, gpus)


def test_only_what_a_wanted_job_printed_is_shown_with_its_task(tmp_path: Path) -> None:
    """Ray's processes serve one job after the other, and every session has its own."""
    path = tmp_path / "worker-ab-01-7.out"
    path.write_text(":job_id:01\nof another\n:job_id:02\n:task_name:f\nours\n:actor_name:A\nhalf")
    printed = PrintedFile(path, "7")

    first = list(printed.read(lambda job: job == "02"))
    with path.open("a") as file:
        file.write(" a line\n")
    second = list(printed.read(lambda job: job == "02"))

    assert first == ["(f pid=7) ours\n"]
    assert second == ["(A pid=7) half a line\n"]
    assert list(printed.read(lambda job: True)) == []


def test_what_is_left_is_told_by_job_and_serve_is_one_thing() -> None:
    """Serve has an actor for each of its parts; a reader knows his application."""
    replicas = [
        actor("02", f"SERVE_REPLICA::{name}#Model#{n}", namespace=SERVE, module="ray.serve")
        for name, n in (("a", 1), ("a", 2), ("b", 1))
    ]
    remains = Remains(
        actors=(actor("01", "other"), actor("02", "left", gpus=2.0), actor("02"), *replicas),
        groups=(Group("ff" * 9, "02", "bundle"),),
    )

    assert remains.of_jobs(["02"]).lines() == [
        "actor 'left' (Holder), 2 GPUs",
        "an actor of Holder",
        "Serve with the application a, b",
        "placement group 'bundle'",
    ]


@pytest.mark.parametrize(("gpus", "told"), [(0.0, []), (1.0, ["actor 'stats' (Holder), 1 GPU"])])
def test_rays_own_actors_are_told_of_only_where_they_hold_devices(
    gpus: float, told: list[str]
) -> None:
    """Ray Data keeps one of statistics for the next job: no test has left it there."""
    remains = Remains(actors=(actor("01", "stats", module="ray.data._stats", gpus=gpus),))

    assert remains.of_tests().lines() == told


def test_a_task_enters_the_tree_with_the_tests_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the user's own runtime_env gave stays: a directory, and a variable."""
    node, tree, own = (tmp_path / name for name in ("node", "tree", "own"))
    for directory in (node, tree, own):
        directory.mkdir()
    variables = tmp_path / "variables.json"
    variables.write_text(json.dumps({"TASK_GIVEN": "of the test", "TASK_OWN": "of the test"}))
    monkeypatch.setenv(task_entry.NODE, str(node))
    monkeypatch.setenv("TASK_OWN", "of the user")
    monkeypatch.setenv("TASK_GIVEN", "")
    monkeypatch.delenv("TASK_GIVEN")

    def enter(where: Path) -> str:
        monkeypatch.chdir(where)
        monkeypatch.setenv(task_entry.CWD, str(tree))
        monkeypatch.setenv(task_entry.VARIABLES, str(variables))
        task_entry.enter_tree()
        return os.getcwd()

    assert (enter(node), enter(own)) == (str(tree), str(own))
    assert (os.environ["TASK_GIVEN"], os.environ["TASK_OWN"]) == ("of the test", "of the user")
    assert task_entry.CWD not in os.environ


def test_an_address_beyond_this_machine_is_no_loopback() -> None:
    """Ray in a process that connects there must have an address that others can reach."""
    assert is_loopback("127.0.0.1:6379")
    assert not is_loopback("10.0.0.7:6379")
    assert not is_loopback("")


def test_on_a_ray_of_others_only_what_our_jobs_made_is_ours() -> None:
    """A detached actor of a stranger was killed there, and then the supervisor of our own job."""
    jobs = [
        Job("01", "", False),  # the stranger's
        Job("02", "", False),  # our agent's
        Job("03", process_name("s-1", "gw0"), True),
        Job("04", process_name("s-10", "gw0"), True),  # of another session there
    ]
    remains = Remains(
        actors=(actor("01", "trainer"), actor("02", "slot"), actor("03", "left"), actor("04", "x")),
        groups=(Group("aa", "01", "theirs"), Group("bb", "03", "left too"), Group("cc", "04", "y")),
    )

    ours = remains.of_session("s-1", jobs, agent="02")

    assert [each.name for each in ours.actors] == ["slot", "left"]
    assert [each.name for each in ours.groups] == ["left too"]
