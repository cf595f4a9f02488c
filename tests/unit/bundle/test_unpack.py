"""A node makes a tree whole, verified, or not at all."""

from __future__ import annotations

import hashlib
import json
import threading
import zlib
from pathlib import Path

import pytest

from pytest_gpu_cluster.bundle.ship import Tree, ship, ship_files
from pytest_gpu_cluster.contract.errors import StoreError
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.node.unpack import unpack
from tests.working_trees import read, write


@pytest.fixture
def shipped(root: Path, store: Store) -> Tree:
    write(root, {"a.py": "a = 1\n", "pkg/b.py": "b = 1\n"})
    return ship(store, root)


B = b"b = 1\n"


def remote(store: Store) -> Store:
    """Return the store as another machine sees it: not on its own disk, so that a cache helps."""
    store.is_local = False
    return store


def test_a_test_that_writes_into_its_tree_does_not_reach_the_cache(
    store: Store, shipped: Tree, tmp_path: Path
) -> None:
    """The next session on this node gets what was shipped, not what the last one left."""
    unpack(remote(store), shipped.digest, tmp_path / "one", cache=tmp_path / "cache")
    with (tmp_path / "one" / "a.py").open("r+") as file:
        file.write("spoilt")

    unpack(store, shipped.digest, tmp_path / "two", cache=tmp_path / "cache")

    assert (tmp_path / "two" / "a.py").read_text() == "a = 1\n"


def test_the_cache_saves_every_request_but_the_trees(
    store: Store, shipped: Tree, tmp_path: Path
) -> None:
    """A blob from S3 costs 20 ms."""
    unpack(remote(store), shipped.digest, tmp_path / "one", cache=tmp_path / "cache")
    before = store.requests

    unpack(store, shipped.digest, tmp_path / "two", cache=tmp_path / "cache")

    assert store.requests - before == 1
    assert read(tmp_path / "two") == read(tmp_path / "one")


def test_a_spoilt_cache_is_mended(store: Store, shipped: Tree, tmp_path: Path) -> None:
    """It lies on a disk that tests may write to."""
    unpack(remote(store), shipped.digest, tmp_path / "one", cache=tmp_path / "cache")
    for blob in (tmp_path / "cache").iterdir():
        blob.write_text("spoilt")

    unpack(store, shipped.digest, tmp_path / "two", cache=tmp_path / "cache")

    assert read(tmp_path / "two") == read(tmp_path / "one")
    assert "spoilt" not in [blob.read_text() for blob in (tmp_path / "cache").iterdir()]


def test_asking_again_leaves_a_tree_in_use_alone(
    store: Store, shipped: Tree, tmp_path: Path
) -> None:
    """Every worker of a node asks for the tree; tests of the first run in it by then."""
    unpack(store, shipped.digest, tmp_path / "node")
    (tmp_path / "node" / "a.py").write_text("changed by a test")

    unpack(store, shipped.digest, tmp_path / "node")

    assert (tmp_path / "node" / "a.py").read_text() == "changed by a test"


def test_two_at_once_make_one_tree(store: Store, shipped: Tree, tmp_path: Path) -> None:
    """Workers start together."""
    problems: list[BaseException] = []

    def make() -> None:
        try:
            unpack(store, shipped.digest, tmp_path / "node")
        except BaseException as problem:  # noqa: BLE001 - handed to the test's own thread
            problems.append(problem)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert problems == []
    assert sorted(read(tmp_path / "node")) == ["a.py", "pkg/b.py"]
    assert sorted(path.name for path in tmp_path.iterdir() if "node" in path.name) == [
        "node",
        "node.tree",
    ]


def test_another_tree_does_not_mix_with_what_is_there(
    store: Store, shipped: Tree, tmp_path: Path
) -> None:
    """Two trees in one directory would be a third that nobody shipped."""
    unpack(store, ship_files(store, {"x": b""}).digest, tmp_path / "node")

    with pytest.raises(StoreError, match="already holds"):
        unpack(store, shipped.digest, tmp_path / "node")


@pytest.mark.parametrize(
    "damage", ["missing", "other bytes", "not zlib", "unknown packing", "empty"]
)
def test_a_bad_blob_is_named_and_sent_anew_the_next_time(
    root: Path, store: Store, shipped: Tree, tmp_path: Path, damage: str
) -> None:
    """A writer to the store must not choose what runs; and a loss heals by running again."""
    key = f"blobs/{hashlib.sha256(B).hexdigest()}"
    bad = {
        "other bytes": b"\1" + zlib.compress(b"b = 2\n"),
        "not zlib": b"\1x",
        "unknown packing": b"\7b",
        "empty": b"",
    }
    if damage == "missing":
        store.delete([key])
    else:
        store.put(key, bad[damage])

    with pytest.raises(StoreError, match=key) as caught:
        unpack(store, shipped.digest, tmp_path / "node")

    assert "pkg/b.py" in caught.value.what
    assert "run again" in caught.value.remedy
    assert not (tmp_path / "node").exists()
    assert ship(store, root).sent_blobs >= 1
    unpack(store, shipped.digest, tmp_path / "node")


@pytest.mark.parametrize("damage", ["missing", "other bytes"])
def test_a_bad_tree_is_named_and_sent_anew_the_next_time(
    root: Path, store: Store, shipped: Tree, tmp_path: Path, damage: str
) -> None:
    """A tree is believed by its digest alone."""
    key = f"trees/{shipped.digest}.json"
    if damage == "missing":
        store.delete([key])
    else:
        store.put(key, (store.get(key) or b"").replace(b"a.py", b"b.py"))

    with pytest.raises(StoreError, match=shipped.digest):
        unpack(store, shipped.digest, tmp_path / "node")

    ship(store, root)
    unpack(store, shipped.digest, tmp_path / "node")


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a//x", ".", "", "a\0b", "x/"])
def test_a_path_out_of_the_tree_is_refused(store: Store, tmp_path: Path, path: str) -> None:
    """A node unpacks what a store gives it, next to other sessions."""
    tree = ship_files(store, {path: b"x"})

    with pytest.raises(StoreError, match="leads out of the tree"):
        unpack(store, tree.digest, tmp_path / "node")


def test_no_file_is_written_through_a_link_of_the_tree(store: Store, tmp_path: Path) -> None:
    """A link to /etc and a file below it: each harmless alone."""
    blob = hashlib.sha256(b"x").hexdigest()
    store.put(f"blobs/{blob}", b"\0x")
    (tmp_path / "outside").mkdir()
    link = {"path": "a", "link": str(tmp_path / "outside")}
    entries = [link, {"path": "a/x", "blob": blob, "mode": "644", "size": 1}]
    raw = json.dumps({"v": 1, "root": "", "entries": entries}).encode()
    digest = hashlib.sha256(raw).hexdigest()
    store.put(f"trees/{digest}.json", raw)

    with pytest.raises(StoreError):
        unpack(store, digest, tmp_path / "node")

    assert list((tmp_path / "outside").iterdir()) == []
