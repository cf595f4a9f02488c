"""A working tree goes up once, and comes down whole."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_tests.s3_server import S3Server
from pytest_gpu_cluster.bundle.listing import LITTER
from pytest_gpu_cluster.bundle.ship import ship, ship_files
from pytest_gpu_cluster.contract.bounded import OBJECT_BYTES
from pytest_gpu_cluster.contract.errors import RequestError
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.node.unpack import unpack
from tests.traffic import by_kind
from tests.working_trees import paths, read, write

# --- there and back ---
NAMES = st.one_of(
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8
    ),
    st.binary(min_size=1, max_size=8).map(
        lambda raw: os.fsdecode(raw.replace(b"/", b"_").replace(b"\0", b"_"))
    ),
).filter(lambda name: name not in {".", "..", "pyvenv.cfg", *LITTER})
LEAVES = st.one_of(
    st.tuples(st.sampled_from(["file", "executable"]), st.binary(max_size=200)),
    st.tuples(st.just("link"), st.sampled_from(["sibling", "./a", "b"])),
)
TREES = st.dictionaries(
    NAMES, st.recursive(LEAVES, lambda inner: st.dictionaries(NAMES, inner, max_size=4)), max_size=6
)


def lay_out(folder: Path, tree: Mapping[str, object]) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in tree.items():
        match content:
            case ("link", str(target)):
                (folder / name).symlink_to(target)
            case (str(kind), bytes(data)):
                (folder / name).write_bytes(data)
                (folder / name).chmod(0o755 if kind == "executable" else 0o644)
            case dict():
                lay_out(folder / name, content)


@given(tree=TREES)
@settings(deadline=None, max_examples=60)
def test_any_tree_comes_back_as_it_was(tree: dict[str, object]) -> None:
    """Names in any bytes, empty files, execute bits and links: a test reads its own data."""
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        lay_out(top / "project", tree)
        store = Store.open("store", base=top)

        shipped = ship(store, top / "project")
        unpack(store, shipped.digest, top / "node" / "project", cache=top / "cache")

        assert read(top / "node" / "project") == read(top / "project")
        assert shipped.files == len(read(top / "project"))


def test_it_works_over_s3(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store of a rented machine; the index lies in the user's cache directory then."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    write(root, {"a.py": "a = 1\n", "data/b.bin": os.urandom(10_000), "c": b""})
    with S3Server() as server:
        server.make_bucket("bucket")
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        store = Store.open("s3://bucket/prefix", base=tmp_path)

        first, second = ship(store, root), ship(store, root)
        for node in ("one", "two"):  # the second from the cache
            unpack(store, first.digest, tmp_path / node, cache=tmp_path / "cache")

            assert read(tmp_path / node) == read(root)

    assert (first.sent_blobs, second.sent_blobs) == (3, 0)
    assert (first.digest, first.files, first.bytes) == (second.digest, 3, 10_006)
    assert list((tmp_path / "xdg" / "gpu-cluster").iterdir())


# --- only what changed goes up ---
def test_an_unchanged_tree_sends_no_blob_and_a_changed_file_one(
    root: Path, store: Store, at_once: None
) -> None:
    """Starting a run must not cost more than what changed since the last one."""
    write(root, {f"d{n % 7}/f{n}.py": f"n = {n}\n" for n in range(300)})

    first = ship(store, root)
    before = store.requests
    second = ship(store, root)
    requests = store.requests - before
    write(root, {"d0/f0.py": "n = 'new'\n"})
    third = ship(store, root)

    assert (first.files, first.sent_blobs) == (300, 300)
    assert (second.sent_blobs, second.sent_bytes, second.digest) == (0, 0, first.digest)
    assert requests <= 2
    assert third.sent_blobs == 1


def test_equal_files_are_one_blob(root: Path, store: Store) -> None:
    """A hundred empty __init__.py are one request."""
    write(root, {f"p{n}/__init__.py": "" for n in range(100)})

    assert ship(store, root).sent_blobs == 1


def test_a_checkout_without_an_index_sends_only_what_the_store_lacks(
    root: Path, store: Store, tmp_path: Path
) -> None:
    """Every CI job starts from a fresh clone."""
    write(root, {f"f{n}.py": f"n = {n}\n" for n in range(200)})
    ship(store, root)
    root.rename(tmp_path / "clone")
    write(tmp_path / "clone", {"new.py": "new = True\n"})

    assert ship(store, tmp_path / "clone").sent_blobs == 1


@pytest.mark.parametrize("stored", [0, 150, 200])
def test_a_bucket_is_asked_for_the_blobs_of_a_tree_and_never_listed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: int
) -> None:
    """It may have millions, of other trees. One that has none of the first 100 has none."""
    write(root, {f"f{n}.py": f"n = {n}\n" for n in range(200)})
    with S3Server() as server:
        server.make_bucket("bucket")
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        store = Store.open("s3://bucket/prefix", base=tmp_path)
        ship_files(store, {f"g{n}.py": f"n = {n}\n".encode() for n in range(stored)})
        before = len(server.answers())

        tree = ship(store, root)

        kinds = by_kind(server.answers()[before:])
    assert tree.sent_blobs == 200 - stored
    assert kinds["LIST"] == 0
    assert kinds["HEAD"] == (200 if stored else 100)


@pytest.mark.parametrize("count", [5, 300])
def test_a_blob_that_the_store_lost_is_sent_again(
    root: Path, store: Store, at_once: None, count: int
) -> None:
    """The index remembers files, never what a store holds: pruning deletes trees, then blobs."""
    write(root, {f"f{n}.py": f"n = {n}\n" for n in range(count)})
    tree = ship(store, root)
    store.delete([f"trees/{tree.digest}.json", store.list("blobs/")[0]])

    again = ship(store, root)

    assert again.sent_blobs >= 1
    assert len(store.list("blobs/")) == count


def test_a_file_changed_under_its_old_size_and_time_is_seen(
    root: Path, store: Store, at_once: None
) -> None:
    """Tools that restore timestamps exist; the inode's change time gives them away."""
    write(root, {"a.py": "a = 1\n"})
    old = (root / "a.py").stat()
    first = ship(store, root)
    write(root, {"a.py": "a = 2\n"})
    os.utime(root / "a.py", ns=(old.st_atime_ns, old.st_mtime_ns))

    assert ship(store, root).digest != first.digest


def test_a_file_just_written_is_not_trusted_to_its_timestamp(root: Path, store: Store) -> None:
    """Two writes within a tick of the clock leave the same stamp; git's index has the same rule."""
    write(root, {"a.py": "a = 1\n"})

    ship(store, root)

    (index,) = (Path(store.root or "") / "index").iterdir()
    last, rows = map(json.loads, index.read_text().splitlines())
    assert (last["survey"], rows) == ("", {})


def test_a_trusted_file_is_not_read(root: Path, store: Store, at_once: None) -> None:
    """Reading 5,000 files would cost the budget; the doctored index shows that it is believed."""
    write(root, {"a.py": "a = 1\n", "b.py": "b = 1\n"})
    ship(store, root)
    (index,) = (Path(store.root or "") / "index").iterdir()
    last, rows = map(json.loads, index.read_text().splitlines())
    rows["b.py"][4] = rows["a.py"][4]
    index.write_text(f"{json.dumps(last | {'survey': ''})}\n{json.dumps(rows)}")

    tree = ship(store, root)
    unpack(store, tree.digest, root.parent / "node")

    assert (root.parent / "node" / "b.py").read_text() == "a = 1\n"


def test_of_an_unchanged_tree_only_the_first_line_of_the_index_is_read(
    root: Path, store: Store, at_once: None
) -> None:
    """Reading the rest, and writing tree and index again, takes a second for 50,000 files."""
    write(root, {"a.py": "a = 1\n"})
    first = ship(store, root)
    (index,) = (Path(store.root or "") / "index").iterdir()
    line = index.read_text().partition("\n")[0]
    index.write_text(f"{line}\nno rows")

    again = ship(store, root)

    assert (again.digest, again.files, again.bytes) == (first.digest, 1, 6)
    assert index.read_text() == f"{line}\nno rows"


def test_whatever_makes_another_tree_is_noticed(root: Path, store: Store, at_once: None) -> None:
    """The first line of the index must not stand for a tree that is not there any more."""
    write(root, {"a.py": "a = 1\n", "b.py": "b = 1\n"})
    (root / "link").symlink_to("a.py")
    digests = {ship(store, root).digest}

    (root / "a.py").chmod(0o755)
    digests.add(ship(store, root).digest)
    (root / "link").unlink()
    (root / "link").symlink_to("b.py")
    digests.add(ship(store, root).digest)
    (root / "b.py").rename(root / "c.py")
    digests.add(ship(store, root).digest)
    (root / "link").unlink()
    digests.add(ship(store, root).digest)
    write(root, {"new.py": ""})
    digests.add(ship(store, root).digest)

    assert len(digests) == 6


def test_a_file_that_may_no_longer_be_sent_is_refused_in_an_unchanged_tree(
    root: Path, store: Store, at_once: None
) -> None:
    """The settings have changed, the files have not."""
    write(root, {".env": "A_TOKEN=abc\n"})
    ship(store, root, allow_files=[".env"])

    with pytest.raises(RequestError, match="looks like a credential"):
        ship(store, root)


def test_a_broken_index_costs_time_only(root: Path, store: Store) -> None:
    """It is a cache; a disk that filled up while it was written must not stop a run."""
    write(root, {"a.py": "a = 1\n"})
    tree = ship(store, root)
    (index,) = (Path(store.root or "") / "index").iterdir()
    for content in ("", "[]", '{"v": 2}', '{"v": 2}\n[]', '{"v": 2, "tree": "x"}\n{"a.py": [1]}'):
        index.write_text(content)

        assert ship(store, root).digest == tree.digest


def test_incompressible_data_is_kept_as_it_is(root: Path, store: Store) -> None:
    """Images and weights are packed already; packing them again costs seconds and gains nothing."""
    noise = os.urandom(300_000)
    write(root, {"noise.bin": noise, "text.txt": "again and again\n" * 20_000})

    tree = ship(store, root)

    assert store.get(f"blobs/{hashlib.sha256(noise).hexdigest()}") == b"\0" + noise
    assert tree.sent_bytes < 310_000


def test_own_files_need_no_working_tree(store: Store, tmp_path: Path) -> None:
    """This package's own code goes the same way, from wherever it is installed."""
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)

    tree = ship_files(store, {"bin/run.sh": script, "harness/__init__.py": b""})
    again = ship_files(store, {"harness/__init__.py": b"", "bin/run.sh": script})
    unpack(store, tree.digest, tmp_path / "code")

    assert (tree.sent_blobs, again.sent_blobs, tree.digest) == (2, 0, again.digest)
    assert read(tmp_path / "code") == {
        "bin/run.sh": ("executable", b"#!/bin/sh\n"),
        "harness/__init__.py": ("file", b""),
    }


# --- a tree that moves ---
def meddle(store: Store, monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Call `act` with 0, 1, … at each request for a tree: files are read then, and not yet sent."""
    get, times = store.get, iter(range(1000))

    def get_and_act(key: str, *, limit_bytes: int = OBJECT_BYTES) -> bytes | None:
        act(next(times))
        return get(key, limit_bytes=limit_bytes)

    monkeypatch.setattr(store, "get", get_and_act)


def test_a_file_that_changes_meanwhile_is_read_again(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An editor saves while the tree goes up; one state of the file arrives, under its digest."""
    write(root, {"a.py": "a = 1\n", "b.py": ""})
    meddle(store, monkeypatch, lambda n: write(root, {"a.py": "a = 22\n"} if n == 0 else {}))

    tree = ship(store, root)
    unpack(store, tree.digest, tmp_path / "node")

    assert (tmp_path / "node" / "a.py").read_text() == "a = 22\n"


def test_a_file_that_vanishes_meanwhile_is_left_out(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Editors make and remove swap files all the time."""
    write(root, {"a.py": "", ".a.py.swp": "x"})
    meddle(store, monkeypatch, lambda n: (root / ".a.py.swp").unlink(missing_ok=True))

    assert paths(store, ship(store, root)) == ["a.py"]


def test_a_file_that_never_rests_is_named(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log file inside the tree; trying for ever would hang the run."""
    write(root, {"server.log": ""})
    meddle(store, monkeypatch, lambda n: write(root, {"server.log": f"line {n}\n"}))

    with pytest.raises(RequestError, match=r"'server\.log' keeps changing") as caught:
        ship(store, root)

    assert "exclude" in caught.value.remedy
