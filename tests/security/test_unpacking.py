"""What a tree of the store makes on a node, and what comes home, stays in its directory."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pytest_gpu_cluster.artifacts_command import fetch_artifacts
from pytest_gpu_cluster.bundle.listing import listing
from pytest_gpu_cluster.contract.errors import StoreError, UnreadableRecordError
from pytest_gpu_cluster.contract.outputs import NodeOutputs, WrittenFile
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.trees import blob_key, pack_blob, tree_key
from pytest_gpu_cluster.node.unpack import unpack
from pytest_gpu_cluster.outputs import bring_home
from tests.security.furnished import REQUEST

CONTENT = b"planted"
BLOB = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(str(tmp_path / "store"), base=tmp_path)
    store.put(blob_key(BLOB), pack_blob(CONTENT))
    return store


def file(path: str, **changes: object) -> dict[str, object]:
    return {"path": path, "mode": "644", "blob": BLOB, "size": len(CONTENT), **changes}


def planted(store: Store, *entries: Mapping[str, object]) -> str:
    """Put a tree as somebody else may write it; return its digest."""
    content = json.dumps({"v": 1, "root": "r", "entries": entries}).encode()
    digest = hashlib.sha256(content).hexdigest()
    store.put(tree_key(digest), content)
    return digest


HOSTILE: Mapping[str, tuple[Sequence[Mapping[str, object]], str]] = {
    "set-user-id": ([file("a", mode="4755")], "the key 'mode' of 'a' is '4755'"),
    "sticky": ([file("a", mode="1644")], "the key 'mode' of 'a' is '1644'"),
    "mode as a number": ([file("a", mode=755)], "the key 'mode' of 'a' is 755"),
    "a device": ([file("a", mode="60644")], "the key 'mode' of 'a' is '60644'"),
    "up": ([file("../a")], "'../a' leads out of the tree"),
    "absolute": ([file("/etc/a")], "'/etc/a' leads out of the tree"),
    "NUL": ([file("a\0b")], "leads out of the tree"),
    "no Unicode": ([file("\ud800")], "is no name here"),
    "too long": ([file("a/" + "ü" * 128)], "has a name of more than 255 bytes"),
    "a hook": ([file("p/.git/hooks/post-checkout", mode="755")], "is a hook in .git"),
    "capitals": ([file(".GIT/config")], "is a place in .git, as '.GIT/config' is read"),
    "HFS": ([file(".g\u200cit/config")], "is a place in .git"),
    "NTFS": ([file("GIT~1/config")], "is a place in .git"),
    "twice": ([file("a"), file("a")], "'a' is there twice"),
    "a file and a directory": ([file("a"), file("a/b")], "'a' is a file or a link and has files"),
    "through a link": ([{"path": "a", "link": "/tmp"}, file("a/b/c")], "'a' is a file or a link"),
    "a link below a link": (
        [{"path": "a", "link": "/tmp"}, {"path": "a/b", "link": "c"}],
        "'a' is a file or a link",
    ),
    "a link and a file": ([{"path": "a", "link": "/tmp/x"}, file("a")], "'a' is there twice"),
    "an empty link": ([{"path": "a", "link": ""}], "the key 'link' of 'a' is ''"),
    "a link of NUL": ([{"path": "a", "link": "b\0"}], "the key 'link' of 'a'"),
    "an unknown key": ([file("a", owner="root")], "'a' has unknown keys: 'owner'"),
    "no size": ([file("a", size=True)], "the key 'size' of 'a' is True"),
    "a size below nothing": ([file("a", size=-1)], "the key 'size' of 'a' is -1"),
    "sizes over all": ([file(f"a{n}", size=1 << 32) for n in range(2)], "its files have 8,589"),
}


@pytest.mark.parametrize(("entries", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_tree_is_refused_by_name_and_leaves_nothing(
    store: Store, tmp_path: Path, entries: Sequence[Mapping[str, object]], message: str
) -> None:
    """It is unpacked by the keeper, which may do more than a test."""
    digest = planted(store, *entries)
    before = {*tmp_path.rglob("*")}

    with pytest.raises(UnreadableRecordError) as caught:
        unpack(store, digest, tmp_path / "node" / "tree")

    assert f"trees/{digest}.json" in caught.value.what
    assert message in caught.value.what
    assert {*tmp_path.rglob("*")} - before <= {tmp_path / "node"}


@pytest.mark.parametrize("name", ["/etc/x", "..", "a/../../../x"])
def test_a_request_names_no_place_for_its_tree_but_below_its_session(
    store: Store, name: str
) -> None:
    """The keeper makes the tree there, before any test has run."""
    body = json.dumps({**REQUEST.to_json(), "root_name": name})
    store.put("sessions/s1/request.json", body.encode())

    with pytest.raises(UnreadableRecordError, match=r"s1/request\.json .*root_name.* leads out"):
        SessionRecord(store, "s1").request()


def test_files_of_a_tree_have_no_bits_but_those_of_a_program(store: Store, tmp_path: Path) -> None:
    """A directory that hands its group down must not make one of a file executable for it."""
    os.chmod(tmp_path, 0o2755)

    unpack(store, planted(store, file("a"), file("b/c", mode="755")), tmp_path / "tree")

    for path in (tmp_path / "tree").rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) & 0o7022 == 0


# By plain git, or by ours: whether a file of this path is made.
NAMES = (
    *(
        "a b",
        "a\\b",
        "a\tb",
        "a\nb",
        "\x1b[31ma",
        "\x7f",
        "-rf",
        "~",
        "a:b",
        "con",
        "a.",
        "ü",
        "\udcff",
    ),
    *(".gitignore", ".github/a", "git/a", "a/.gitkeep", "x.git/a"),
    *(
        "../a",
        "a/../b",
        "a//b",
        "/a",
        "./a",
        "a/.",
        ".GIT/a",
        "x/.Git/a",
        ".git",
        "git~1",
        "git~1/a",
    ),
    *(".git /a", ".git./a", ".git::$INDEX_ALLOCATION/a", ".g\u200cit/a", "a/.GIT"),
)


@pytest.mark.parametrize("path", NAMES, ids=ascii)
def test_a_name_is_what_plain_git_makes_of_it(store: Store, tmp_path: Path, path: str) -> None:
    """The same tree comes by `git clone` too: whoever may trust that may trust this."""
    repository = tmp_path / "repository"
    git = ["git", "-c", "core.protectHFS=true", "-c", "core.protectNTFS=true"]
    subprocess.run([*git, "init", "-q", repository], check=True)
    added = subprocess.run(
        [*git, "hash-object", "-w", "--stdin"],
        cwd=repository,
        input=CONTENT,
        capture_output=True,
        check=True,
    )
    entry = f"100644,{added.stdout.decode().strip()},{path}"
    made = subprocess.run(
        [*git, "update-index", "--add", "--cacheinfo", entry],
        cwd=repository,
        capture_output=True,
        check=False,
    )
    if made.returncode == 0:
        subprocess.run([*git, "checkout-index", "-a"], cwd=repository, check=True)

    plain = {
        each.relative_to(repository)
        for each in repository.rglob("*")
        if each.is_file() and each.relative_to(repository).parts[0] != ".git"
    }
    try:
        unpack(store, planted(store, file(path)), tmp_path / "tree")
    except StoreError:
        ours = set()
    else:
        top = tmp_path / "tree"
        ours = {each.relative_to(top) for each in top.rglob("*") if each.is_file()}

    if path == ".git":  # `git = true` sends a repository; a file in its place is no danger
        ours = set()
    assert ours == plain


def test_a_link_that_leads_out_is_made_and_never_followed(store: Store, tmp_path: Path) -> None:
    """git makes it as well; a file of a later tree that lies behind it is not written there."""
    outside = tmp_path / "outside"
    outside.mkdir()

    unpack(store, planted(store, {"path": "a", "link": str(outside)}), tmp_path / "tree")
    with pytest.raises(StoreError):
        unpack(
            store,
            planted(store, file("a/b"), {"path": "a", "link": str(outside)}),
            tmp_path / "tree2",
        )

    assert os.readlink(tmp_path / "tree" / "a") == str(outside)
    assert not any(outside.iterdir())


def test_what_a_node_would_refuse_is_not_sent(tmp_path: Path) -> None:
    """`include` may name .git; a run must not end on the node for what nobody asked for."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for path in (".git/hooks/pre-push", ".GIT/x", "a.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()

    paths = listing(tmp_path, include=[".git/**", ".GIT/**"], exclude=[])

    assert {"a.py", ".git/HEAD"} <= {*paths}
    assert not any("hooks" in path or ".GIT" in path for path in paths)


def listed(record: SessionRecord, *paths: str) -> None:
    record.put_output(BLOB, CONTENT)
    files = tuple(
        WrittenFile(path=path, executable=True, blob=BLOB, size=len(CONTENT), mtime_ns=1)
        for path in paths
    )
    record.put_outputs(NodeOutputs(node="head", files=files))


OUTPUTS = (
    *("../x", "/x", "a/../../x", "link/x", "link", ".git/hooks/x", ".GIT/x", "sub/.Git/config"),
    *(".git./x", "git~1/x", ".g\u200cit/x", ".git:x", "x\0", "\ud800", "ü" * 128, "file/x"),
)


def test_nothing_comes_home_but_into_the_tree(store: Store, tmp_path: Path) -> None:
    """The record of a stranger's run is read on the laptop of a maintainer."""
    root, outside = tmp_path / "home" / "root", tmp_path / "home" / "outside"
    root.mkdir(parents=True)
    outside.mkdir()
    (root / "link").symlink_to(outside)
    (root / "file").write_bytes(b"mine")
    record = SessionRecord(store, "s1")
    listed(record, *OUTPUTS, "good", "new\nname")

    home = bring_home(record, root, tree="", outputs=["**"], of_options=[], began=0.0)

    assert set(home.written) == {"good", "new\nname"}
    assert home.kept.keys() == {*OUTPUTS}
    assert not any(outside.iterdir())
    assert {each.name for each in (tmp_path / "home").rglob("*")} == {
        *("root", "outside", "link", "file", "good", "new\nname")
    }
    assert (root / "file").read_bytes() == b"mine"


def test_artifacts_are_fetched_into_their_directory_alone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not written is named, on one line and without what a terminal would obey."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    record = SessionRecord(store, "s1")
    hostile = [path for path in OUTPUTS if "link" not in path and "file" not in path]
    listed(record, *hostile, "good", "\x1b[2Jx")
    store.put(f"{record.artifacts_prefix()}/t/x", b"x")

    document, text = fetch_artifacts(record, "files", only_list=False)

    refused = document["not_written"]
    assert isinstance(refused, list)
    assert len(refused) == len(OUTPUTS) - 3
    assert "\x1b" not in text
    written = {each.relative_to(place).as_posix() for each in place.rglob("*") if each.is_file()}
    assert written == {"files/outputs/good", "files/outputs/\x1b[2Jx", "files/artifacts/t/x"}


def test_the_node_of_a_listing_is_no_way_out(store: Store, tmp_path: Path) -> None:
    """A file that another node overtook goes into a directory of its node's name."""
    record = SessionRecord(store, "s1")
    listed(record, "a")
    other = hashlib.sha256(b"other").hexdigest()
    record.put_output(other, b"other")
    file = WrittenFile(path="a", executable=False, blob=other, size=5, mtime_ns=2)
    body = NodeOutputs(node="../../x", files=(file,)).to_json()
    store.put("sessions/s1/outputs/other.json", json.dumps(body).encode())

    with pytest.raises(UnreadableRecordError, match=r"names '\.\./\.\./x'"):
        fetch_artifacts(record, str(tmp_path / "files"), only_list=False)

    assert {*tmp_path.iterdir()} <= {tmp_path / "files", tmp_path / "store"}
