"""The form of a stored tree: what is written is read, and what is wrong is named."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpu_cluster.contract.trees import (
    FileEntry,
    LinkEntry,
    StoredTree,
    pack_blob,
    unpack_blob,
)

BLOB = hashlib.sha256(b"").hexdigest()
FILE = {"path": "a", "mode": "644", "blob": BLOB, "size": 0}


def test_a_tree_is_read_as_it_was_written() -> None:
    """Client and node agree on it, whatever the order in which files were listed."""
    files = (FileEntry("b\udc80", 0o755, BLOB, 3), FileEntry("a/c", 0o644, BLOB, 0))
    tree = StoredTree(root="r", files=files, links=(LinkEntry("a/b", "c"),))

    content = tree.to_bytes()
    back = StoredTree.from_bytes(content, hashlib.sha256(content).hexdigest())

    assert (back.root, set(back.files), back.links) == ("r", set(files), tree.links)
    assert back.to_bytes() == content


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"mode": "644", "blob": BLOB, "size": 0}, "the key 'path' is missing"),
        (FILE | {"path": 3}, "the key 'path' is 3"),
        (FILE | {"mode": "4755"}, "the key 'mode' of 'a' is '4755'"),
        (FILE | {"blob": "../x"}, "the key 'blob' of 'a' is '../x'"),
        ({"path": "a"}, "the key 'mode' of 'a' is missing"),
        ({"path": "a", "mode": "644", "size": 0}, "the key 'blob' of 'a' is missing"),
        ({"path": "a", "mode": "644", "blob": BLOB}, "the key 'size' of 'a' is missing"),
        ({"path": "a", "link": None}, "the key 'link' of 'a' is None"),
        ({"path": "a/../b", "link": "c"}, "the path 'a/../b' leads out of the tree"),
        (3, "the key 'entries' is [3]"),
    ],
)
def test_a_wrong_entry_names_its_key(entry: object, message: str) -> None:
    """A client of another version writes it; a KeyError would not name the tree, nor a remedy."""
    content = json.dumps({"v": 1, "root": "r", "entries": [entry]}).encode()

    with pytest.raises(ValueError) as caught:
        StoredTree.from_bytes(content, hashlib.sha256(content).hexdigest())

    assert str(caught.value) == message


@pytest.mark.parametrize("document", [{"v": 2, "root": "r", "entries": []}, {}, []])
def test_an_unknown_version_is_refused(document: object) -> None:
    """Its entries may mean something else."""
    content = json.dumps(document).encode()

    with pytest.raises(ValueError, match=r"version .* is unknown"):
        StoredTree.from_bytes(content, hashlib.sha256(content).hexdigest())


@given(content=st.binary(max_size=300))
def test_a_blob_holds_the_bytes_of_its_file_and_no_others(content: bytes) -> None:
    """A node runs them."""
    blob = pack_blob(content)

    assert unpack_blob(blob, hashlib.sha256(content).hexdigest(), len(content)) == content
    with pytest.raises(ValueError, match="another digest"):
        unpack_blob(blob, BLOB if content else "0" * 64, len(content))
