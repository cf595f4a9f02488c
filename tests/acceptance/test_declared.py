"""Help, marks, fixtures and the plan, which need no cluster; and imports that the client avoids."""

from __future__ import annotations

import json
from pathlib import Path

from tests.acceptance.project import Project

SUITE = """
import sys
import pytest

sys.modules["user_code_was_imported"] = sys

@pytest.mark.gpu(count=1)
def test_a(device, gpus, artifacts):
    assert device.type == "cpu"
    assert isinstance(gpus, list)
    (artifacts / "x").write_text("x")
"""


def test_marks_fixtures_and_options_are_declared(lone: Project) -> None:
    """`--strict-markers` must accept our marks, and a user finds everything by asking pytest."""
    lone.write(test_a=SUITE)

    marks = lone.plain("--markers").out
    fixtures = lone.plain("--fixtures").out
    options = lone.plain("--help").out

    assert "@pytest.mark.gpu(count=1, memory_gib=None):" in marks
    assert "@pytest.mark.ray(gpus=0, nodes=1):" in marks
    for name, words in (
        ("device", "torch.device"),
        ("gpus", "devices"),
        ("artifacts", "directory"),
        ("cluster", "Facts of the cluster"),
    ):
        assert name in fixtures
        assert words in fixtures
    for option in ("--gpu-cluster", "--gpu-profile=NAME", "--gpu-plan"):
        assert option in options
    assert lone.plain("--strict-markers").code == 0


def test_the_plan_is_printed_and_spends_nothing(lone: Project) -> None:
    """Before a team rents by the hour it wants to see what would be rented."""
    lone.write(test_a=SUITE)
    lone.settings("nodes = 2\n[tool.gpu-cluster.profile.big]\nnodes = 3")

    ran = lone.plain("--gpu-plan", "--gpu-profile", "big")

    assert ran.code == 0, ran.out
    for words in (
        "provider  local, Ray nodes on this machine: 3",
        "python    ",
        "limits    ends after 5 idle minutes, after 75 in any case",
        "tree      files: 2",
        "price     at most 0.00 USD; nothing was started",
    ):
        assert words in ran.out
    assert not any(Path(lone.store).glob("*/*")), "a plan wrote to the store"
    assert ran.cluster == ""


def test_a_profile_that_is_not_there_is_refused_without_a_cluster_too(lone: Project) -> None:
    """It stands in a script or in `addopts`, where a typo would wait for the first run in CI."""
    lone.write(test_a=SUITE)

    ran = lone.plain("--gpu-profile", "nope")

    assert ran.code == 4
    assert "it has: no profile" in ran.out
    assert "leave the option out" in ran.out


def test_the_plan_of_a_wrong_request_is_refused(lone: Project) -> None:
    """The plan is where a mistake is cheapest."""
    lone.settings("nodez = 2")

    ran = lone.plain("--gpu-plan")

    assert ran.code == 4
    assert "did you mean nodes?" in ran.out


def test_without_the_flag_nothing_changes(lone: Project) -> None:
    """A plugin that is installed for one suite must not touch the others."""
    lone.write(test_a="def test_a():\n    pass\n\ndef test_b():\n    assert 1 == 2\n")
    lone.settings("nodez = 'a mistake that only --gpu-cluster reads'")

    with_us = lone.plain("-v")
    without = lone.plain("-v", "-p", "no:gpu_cluster")

    def comparable(out: str) -> list[str]:
        return [
            line.partition(" in ")[0]
            for line in out.splitlines()
            if not line.startswith(("plugins:", "metadata:"))
        ]

    assert with_us.code == without.code == 1
    assert comparable(with_us.out) == comparable(without.out)
    assert not Path(lone.store).exists()


DUMP = """
import atexit, json, os, pathlib, sys

def dump():
    loaded = {name.partition(".")[0] for name in sys.modules}
    loaded |= {name for name in sys.modules if name.startswith("pytest_gpu_cluster")}
    pathlib.Path(os.environ["DUMP"]).write_text(json.dumps(sorted(loaded)))

if "pytest" in sys.orig_argv:
    atexit.register(dump)
"""


def loaded(project: Project, *args: str) -> set[str]:
    """Names of the modules that a pytest had imported when it ended."""
    hook, out = project.root.parent / "hook", project.root.parent / "loaded.json"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(DUMP)
    ran = project.plain(*args, PYTHONPATH=str(hook), DUMP=str(out))
    assert ran.code == 0, ran.out
    return set(json.loads(out.read_text()))


def test_the_client_imports_neither_heavy_things_nor_the_users_code(project: Project) -> None:
    """A CI runner has no GPU, no Ray and no torch, and the code under test may need all three to be
    imported.
    """
    project.write(
        test_a=SUITE, conftest="import sys\nsys.modules['user_code_was_imported'] = sys\n"
    )

    names = loaded(project, "--gpu-cluster")

    assert "pytest_gpu_cluster" in names
    assert (
        names
        & {
            "ray",
            "torch",
            "boto3",
            "pydantic",
            "rich",
            "numpy",
            "test_a",
            "conftest",
            "user_code_was_imported",
        }
        == set()
    )


def test_a_pytest_without_the_flag_loads_hardly_anything_of_ours(lone: Project) -> None:
    """Whoever installed the plugin for one suite pays for it in every other."""
    lone.write(test_a="def test_a():\n    pass\n")

    names = loaded(lone)

    assert names & {"obstore", "ray", "torch", "boto3"} == set()
    assert (
        names
        & {
            "pytest_gpu_cluster.session",
            "pytest_gpu_cluster.host.replay",
            "pytest_gpu_cluster.contract.store",
            "pytest_gpu_cluster.contract.journal",
            "pytest_gpu_cluster.clusters",
        }
        == set()
    )
