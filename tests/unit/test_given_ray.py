"""What is decided about a Ray that is there, without one: devices, token, versions, places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_gpu_cluster.agent.cases import Resources, cases_of
from pytest_gpu_cluster.contract.errors import EnvironmentBuildError, InfrastructureError
from pytest_gpu_cluster.contract.gpus import SIMULATED, by_nvml, given_gpus
from pytest_gpu_cluster.contract.records import ItemRow
from pytest_gpu_cluster.contract.selection import SelectionOptions
from pytest_gpu_cluster.node.context import given_token
from pytest_gpu_cluster.node.node_facts import Facts, check_versions, common_place

HOST = Facts(
    host="a",
    ip="10.0.0.1",
    python="3.11.9",
    versions={"pytest": "9.2.0", "ray": "2.60.0", "obstore": "0.8", "pynacl": "1.6"},
    places=("/tmp/g", "/dev/shm/g"),
    refused=(),
)


@pytest.mark.skipif(bool(by_nvml({})[0]), reason="this machine has real GPUs")
def test_gpus_of_ray_that_nvml_does_not_find_are_a_failure() -> None:
    """They would be simulated, and a suite green that no GPU has seen."""
    with pytest.raises(InfrastructureError, match="GPUs 0, 1, and NVML finds 0"):
        given_gpus({}, ("0", "1"))

    devices, driver = given_gpus({SIMULATED: "1"}, ("2", "3"))

    assert [(each.id, each.simulated) for each in devices] == [("2", True), ("3", True)]
    assert driver is None


def test_the_token_is_found_where_ray_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keeper has it from the processes of Ray, whose nodes may have it as a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "token").write_text("of a path\n")

    assert given_token({}) == ""
    assert given_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}) == "of a path"
    assert given_token({"RAY_AUTH_TOKEN": "t", "RAY_AUTH_TOKEN_PATH": "/x"}) == "t"
    assert given_token({"RAY_AUTH_TOKEN": "t", "RAY_AUTH_MODE": "disabled"}) == ""

    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of the home")

    assert given_token({"RAY_AUTH_MODE": "token"}) == "of the home"


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({"ray": "2.60.0"}, "pytest, obstore and pynacl not installed on b"),
        ({**HOST.versions, "pytest": "8.4.1"}, "pytest is 9.2.0 on the client and 8.4.1 on b"),
    ],
)
def test_a_node_that_cannot_run_the_tests_is_named(versions: dict[str, str], words: str) -> None:
    """One image of several may be an older one."""
    with pytest.raises(EnvironmentBuildError, match=words):
        check_versions([HOST, replace(HOST, host="b", versions=versions)], "9.2.0")

    check_versions([HOST, HOST], "9.2.7")


def test_the_nodes_agree_on_a_place_for_files() -> None:
    """The tree of a session has one path on all of them."""
    full = replace(HOST, host="b", places=("/dev/shm/g",), refused=("/tmp has 3 MiB free",))

    assert common_place([HOST, full]) == Path("/dev/shm/g")
    with pytest.raises(InfrastructureError, match="b: /tmp has 3 MiB free"):
        common_place([HOST, replace(full, places=())])


def test_a_test_that_drives_a_shared_ray_has_the_devices_to_itself() -> None:
    """Ray has to give them to it, and what our group holds is not free in Ray's books."""
    row: ItemRow = {
        "nodeid": "t.py::test_x",
        "name": "test_x",
        "location": ("t.py", 1, "test_x"),
        "parent": 0,
        "outside": None,
        "gpu": None,
        "ray": {"gpus": 1},
    }
    nodes = {"a": 2.0, "b": 2.0}

    def demand(*, shared: bool) -> tuple[float, int]:
        resources = Resources(nodes=nodes, gpus=(), default_gpus=1.0, shared=shared)
        (case,) = cases_of([row], resources, {}, SelectionOptions()).runnable
        return case.demand.ray_gpus, case.demand.ray_nodes

    assert demand(shared=False) == (1.0, 1)
    assert demand(shared=True) == (4.0, 2)
