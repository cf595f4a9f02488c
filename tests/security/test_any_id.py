"""Whatever stands in the place of an id: nothing beside the store and the clusters is touched."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_gpu_cluster.contract.cluster_record import Announcement, ClusterRecord
from pytest_gpu_cluster.contract.errors import StoreError
from pytest_gpu_cluster.contract.ids import check_id, is_id
from pytest_gpu_cluster.contract.record import SessionRecord, branch_key
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.providers import ClusterRef
from tests.security.places import Place, closed, description, state

SESSION = "20260101-000000-abcd"
PARTS = ("..", ".", "", "c1", "outside", "victim", "project", "~", "%2e%2e", "a\nb", "-C", "\0")
TEXTS = st.one_of(
    st.text(max_size=100),
    st.text(st.characters(categories=["Cs", "Cc", "Ll", "Po"]), max_size=20),
    st.lists(st.sampled_from(PARTS), max_size=6).map("/".join),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", fullmatch=True),
)


@given(text=TEXTS)
@example(text="..")
@example(text="c1\n")
@example(text="a" * 81)
def test_what_passes_the_door_is_one_part_of_a_path(text: str) -> None:
    """Every key and every path that is made of an id has the parts that it was written with."""
    if not is_id(text):
        with pytest.raises(StoreError, match="is no id of a"):
            check_id(text, "session")
        with pytest.raises(StoreError):
            ClusterRef(provider="local", id=text)
        return
    assert check_id(text, "session") == text
    assert Path(os.path.normpath(Path("/base") / text)).parent == Path("/base")
    assert PurePosixPath(f"sessions/{text}/x").parts == ("sessions", text, "x")


@given(branch=st.text(max_size=60), other=st.text(max_size=60))
@example(branch="main~nightly", other="main")
@example(branch="..", other=".")
def test_a_branch_is_one_part_of_a_key_and_its_own(branch: str, other: str) -> None:
    """A branch has slashes in its name, and belongs to whoever pushes it."""
    keys = [
        branch_key(name, suite) for name in (branch, other) for suite in ("gpu-cluster", "nightly")
    ]

    assert all(key.count("/") == 2 and key.endswith(".json") for key in keys)
    assert len({*keys}) == 2 * len({branch, other})


@given(text=TEXTS)
@example(text="../outside/victim")
@example(text="../../outside/victim")
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_text_in_the_place_of_an_id_leads_out(place: Place, text: str) -> None:
    """As an argument, as the name of a folder of the store, in each record that names another."""
    shutil.rmtree(place.store)
    place.store.mkdir(mode=0o700)
    place.base.mkdir(mode=0o700, exist_ok=True)
    plant(place, text)
    out = place.base / "fetched"
    before = place.outside()

    told = {
        arguments[0]: place.command(*arguments)
        for arguments in (
            *(("ls",), ("sweep",), ("logs", "--", text), ("report", "--", text)),
            *(("artifacts", "--", text, str(out)), ("down", "--", text), ("down",)),
        )
    }
    shutil.rmtree(out, ignore_errors=True)

    assert place.outside() == before
    assert (told["ls"].code, told["sweep"].code) == (0, 0), told
    assert {each.code for each in told.values()} <= {0, 1, 4, 10}


def plant(place: Place, text: str) -> None:
    """Write the text wherever an id may stand."""
    place.plant(f"sessions/{SESSION}/result.json", closed())
    request = json.dumps({"v": 1, "session": text, "root_name": text, "suite": text}).encode()
    place.plant(f"sessions/{SESSION}/request.json", request)
    listing = json.dumps({"node": text, "files": []}).encode()
    place.plant(f"sessions/{SESSION}/outputs/head.json", listing)
    place.plant("clusters/c1/cluster.json", description(text))
    place.plant("clusters/c2/cluster.json", description("c2"))
    place.plant("clusters/c2/state.json", state(text))
    place.plant(f"clusters/c2/inbox/{SESSION}", b"")
    keys = (
        *(f"clusters/{text}/cluster.json", f"clusters/c2/inbox/{text}"),
        *(f"sessions/{text}/result.json", f"sessions/{SESSION}/events/{text}/00000001"),
    )
    for key in keys:
        path = Path(os.path.normpath(place.store / key))
        if path.is_relative_to(place.store):  # else the disk, not the product, would be wrong
            with contextlib.suppress(OSError, ValueError):
                place.plant(key, description(text) if key.endswith("cluster.json") else closed())


@given(text=TEXTS)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_record_keeps_to_its_prefix(place: Place, text: str) -> None:
    """Whatever is called on it; a text that is no id makes none."""
    store = Store.open(str(place.store), base=place.top)
    before = place.outside()

    with contextlib.suppress(StoreError):
        record = SessionRecord(store, text)
        record.beat("1")
        record.store.delete(store.list(record.prefix))
    with contextlib.suppress(StoreError):
        cluster = ClusterRecord(store, text)
        cluster.announce(Announcement())
        cluster.delete()
    with contextlib.suppress(StoreError):
        ClusterRecord(store, "c1").offer(text)
        ClusterRecord(store, "c1").delete()

    assert place.outside() == before
    assert store.list("") == []
