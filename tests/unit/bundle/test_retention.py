"""Old sessions leave a local store; the newest stay, with all that they need."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from pytest_gpu_cluster.bundle.retention import prune
from pytest_gpu_cluster.contract.store import Store


def digest(n: int) -> str:
    return f"{n:064x}"


def add_session(
    store: Store, number: int, *, tree: int, blobs: list[int], finished: bool = True
) -> None:
    session = f"sessions/20260101-{number:06d}"
    entries = [{"path": f"f{blob}", "mode": 420, "blob": digest(blob)} for blob in blobs]
    store.put(
        f"trees/{digest(tree)}.json",
        json.dumps({"entries": [*entries, {"path": "l", "link": "f"}]}).encode(),
    )
    for blob in blobs:
        store.put(f"blobs/{digest(blob)}", b"")
    store.put(
        f"{session}/request.json", json.dumps({"tree": digest(tree), "code": digest(999)}).encode()
    )
    store.put(f"{session}/events/agent/00000001", b"")
    if finished:
        store.put(f"{session}/result.json", b"{}")


def make_old(store: Store, prefix: str = "") -> None:
    assert store.root is not None
    for path in [*(store.root / prefix).rglob("*"), store.root / prefix]:
        os.utime(path, (time.time() - 7200,) * 2)


def test_prune_keeps_the_newest_sessions_and_what_they_need(tmp_path: Path) -> None:
    """A local store lies in the working tree and must not grow for ever."""
    store = Store.open("store", base=tmp_path)
    for number in range(6):
        add_session(store, number, tree=100 + number, blobs=[number, number + 1])
    store.put("history/durations.json", b"{}")
    make_old(store)

    prune(store, keep_sessions=2)

    assert store.names("sessions") == ["20260101-000004", "20260101-000005"]
    assert store.names("trees") == [f"{digest(104)}.json", f"{digest(105)}.json"]
    assert store.names("blobs") == [digest(4), digest(5), digest(6)]
    assert store.names("") == ["blobs", "history", "sessions", "trees"]


def test_prune_keeps_what_somebody_may_be_sending(tmp_path: Path) -> None:
    """A session that begins now has blobs and a tree before it has a request."""
    store = Store.open("store", base=tmp_path)
    add_session(store, 1, tree=101, blobs=[1, 2])
    make_old(store)
    store.put(
        f"trees/{digest(7)}.json",
        json.dumps({"entries": [{"path": "a", "blob": digest(1)}]}).encode(),
    )
    store.put(f"blobs/{digest(8)}", b"")

    prune(store, keep_sessions=0)

    assert store.names("trees") == [f"{digest(7)}.json"]
    assert store.names("blobs") == [digest(1), digest(8)]


def test_prune_keeps_a_session_that_still_writes(tmp_path: Path) -> None:
    """A long one is overtaken by twenty short ones."""
    store = Store.open("store", base=tmp_path)
    add_session(store, 1, tree=101, blobs=[1], finished=False)
    add_session(store, 2, tree=102, blobs=[2], finished=False)
    add_session(store, 3, tree=103, blobs=[3])
    make_old(store)
    store.put("sessions/20260101-000001/events/agent/00000002", b"")

    prune(store, keep_sessions=1)

    assert store.names("sessions") == ["20260101-000001", "20260101-000003"]
    assert store.names("blobs") == [digest(1), digest(3)]


def test_prune_of_an_empty_store_is_quiet(tmp_path: Path) -> None:
    """The first run prunes too."""
    prune(Store.open("store", base=tmp_path))


def test_prune_is_fast_when_nothing_is_to_do(tmp_path: Path) -> None:
    """It runs at the end of every local session: 2,000 files, 20 sessions of 20 different trees."""
    store = Store.open("store", base=tmp_path)
    assert store.root is not None
    (store.root / "blobs").mkdir()
    for blob in range(2000):
        (store.root / "blobs" / digest(blob)).touch()
    for number in range(20):
        add_session(store, number, tree=1000 + number, blobs=[])
        entries = [
            {"path": f"some/folder/file_{blob}.py", "mode": 420, "blob": digest(blob)}
            for blob in range(2000)
        ]
        store.put(f"trees/{digest(1000 + number)}.json", json.dumps({"entries": entries}).encode())
    began = time.process_time()

    prune(store)

    assert time.process_time() - began < 0.5
    assert len(store.names("blobs")) == 2000
