"""Only what carries the mark of a cluster of this user is looked into, and removed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_gpu_cluster.clusters.held_cluster import hand_over
from pytest_gpu_cluster.contract import procfs
from pytest_gpu_cluster.contract.cluster_directory import (
    MARK,
    is_own,
    make_directory,
    remove_directory,
)
from pytest_gpu_cluster.contract.cluster_record import ClusterRecord
from pytest_gpu_cluster.contract.errors import InfrastructureError, TeardownError
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.node.guard import remove_node
from pytest_gpu_cluster.providers import ClusterRef, ClusterSpec
from pytest_gpu_cluster.providers.local import LocalProvider
from tests.security.places import Place, contents, description

REF = ClusterRef(provider="local", id="c1")
SPEC = ClusterSpec(
    token="c1",
    nodes=1,
    gpus_per_node="auto",
    pytest_version=pytest.__version__,
    deadline_s=60.0,
    idle_s=60.0,
)
NOBODY = 65534


def unmarked(place: Place) -> None:
    (place.base / "c1").mkdir(mode=0o700)


def a_link(place: Place) -> None:
    (place.victim / MARK).write_text("c1")
    (place.base / "c1").symlink_to(place.victim)


def marked_by_a_link(place: Place) -> None:
    unmarked(place)
    (place.top / "outside" / "mark").write_text("c1")
    (place.base / "c1" / MARK).symlink_to(place.top / "outside" / "mark")


def marked_as_another(place: Place) -> None:
    make_directory(place.base, "c2").rename(place.base / "c1")


def open_to_others(place: Place) -> None:
    make_directory(place.base, "c1").chmod(0o777)


def in_an_open_base(place: Place) -> None:
    make_directory(place.base, "c1")
    place.base.chmod(0o777)


def in_a_linked_base(place: Place) -> None:
    make_directory(place.base, "c1")
    place.base.rename(place.top / "outside" / "base")
    place.base.symlink_to(place.top / "outside" / "base")


def of_somebody_else(place: Place) -> None:
    directory = make_directory(place.base, "c1")
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory to somebody else")
    os.chown(directory, NOBODY, NOBODY)


@pytest.mark.parametrize(
    "make",
    [
        unmarked,
        a_link,
        marked_by_a_link,
        marked_as_another,
        open_to_others,
        in_an_open_base,
        in_a_linked_base,
        of_somebody_else,
    ],
)
def test_what_launch_did_not_make_is_left_alone(
    place: Place, make: Callable[[Place], None], bystander: subprocess.Popen[bytes]
) -> None:
    """A directory in the right place is not enough: others can write to /tmp, and a link leads
    anywhere.
    """
    make(place)
    guards = [[bystander.pid, procfs.start_time(bystander.pid)]]
    directory = place.base / "c1"
    (directory / "n0" / "handoff").mkdir(parents=True, exist_ok=True)
    (directory / "n0" / "keeper.log").write_text("a secret")
    (directory / "guards.json").write_text(json.dumps({"store": "", "guards": guards}))
    place.plant("clusters/c1/cluster.json", description("c1"))
    provider = LocalProvider(Settings(), {})
    before = beside_the_store(place)

    owned, state = [*provider.owned()], provider.state(REF)
    for now in (False, True):
        with pytest.raises(TeardownError, match="no mark of a cluster of this user"):
            provider.close(REF, now=now)
    with pytest.raises(InfrastructureError, match="cluster c1 is gone"):
        hand_over(
            provider.plan(SPEC),
            ClusterRecord(Store.open(str(place.store), base=place.top), "c1"),
            "20260101-000000-abcd",
            {"A_TOKEN": "secret"},
        )
    remove_node(directory / "n0")
    remove_directory(directory)
    told = [place.command("down", "c1"), place.command("down"), place.command("sweep")]

    assert (owned, state.state) == ([], "gone")
    assert "a secret" not in state.reason
    assert beside_the_store(place) == before
    assert bystander.poll() is None
    assert [each.code for each in told] == [14, 14, 0]
    assert "it was left alone\n  remedy: " in told[0].out


def beside_the_store(place: Place) -> dict[str, str]:
    return {path: kind for path, kind in contents(place.top).items() if path[:5] != "store"}


def test_what_launch_has_made_is_removed_with_all_that_is_in_it(place: Place) -> None:
    """And nothing that a link in it leads to: tests write there."""
    directory = make_directory(place.base, "c1")
    (directory / "n0" / "s").mkdir(parents=True)
    (directory / "n0" / "s" / "out").symlink_to(place.victim)
    (directory / "out").symlink_to(place.victim)
    before = place.outside()

    told = place.command("sweep")

    assert "cluster c1: its keeper was gone" in told.out
    assert place.outside() == before
    assert not place.base.exists()


def test_what_cannot_be_removed_is_found_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark goes last: without it, no sweep would come back for the rest."""
    directory = make_directory(place.base, "c1")
    (directory / "n0").mkdir()

    def rmtree(path: Path, *, ignore_errors: bool) -> None:
        assert ignore_errors, path

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", rmtree)
        remove_directory(directory)

    assert is_own(directory)
    remove_directory(directory)
    assert not directory.exists()
