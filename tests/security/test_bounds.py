"""What a store holds is measured before memory is taken for it."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpu_cluster.bundle.retention import prune
from pytest_gpu_cluster.bundle.ship import ship_files
from pytest_gpu_cluster.contract.bounded import (
    DOCUMENT_BYTES,
    NESTING,
    OBJECT_BYTES,
    SEGMENT_BYTES,
    VALUES,
    inflate,
    parse_json,
)
from pytest_gpu_cluster.contract.cluster_record import ClusterRecord
from pytest_gpu_cluster.contract.errors import StoreError, UnreadableRecordError
from pytest_gpu_cluster.contract.fields import FieldError, value_of
from pytest_gpu_cluster.contract.outputs import WrittenFile
from pytest_gpu_cluster.contract.record import SessionRecord, durations
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.trees import ZLIB, blob_key, get_tree, tree_key
from pytest_gpu_cluster.node.unpack import unpack

TAKEN_BYTES = 16 << 20  # by a reader that refuses what it is given
BOMB_BYTES = 1 << 30


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"), base=tmp_path)


@contextmanager
def little_memory() -> Iterator[None]:
    """Fail where the block takes more memory than a refusal needs."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < TAKEN_BYTES
    finally:
        tracemalloc.stop()


def bomb(size: int) -> bytes:
    """Return what zlib makes of `size` zeros, a multiple of 1 MiB, without packing each of them."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    last = zlib.compressobj(9, wbits=-15).flush()
    checksum = ((size % 65521) << 16 | 1).to_bytes(4, "big")
    return b"\x78\xda" + block * (size >> 20) + last + checksum


# --- JSON ----------------------------------------------------------------------------------------

TEXTS = st.text(alphabet='[]{}",\\a\u00e9\ud800', max_size=8)


@given(texts=st.lists(TEXTS, min_size=1, max_size=5), levels=st.integers(NESTING - 3, NESTING + 3))
def test_brackets_are_counted_where_they_nest_and_not_in_texts(
    texts: list[str], levels: int
) -> None:
    """A traceback is full of brackets; hidden between such texts a document could be too deep."""
    value: object = texts[0]
    for level in range(levels):
        text = texts[level % len(texts)]
        value = {text: value, "b" + text: text} if level % 2 else [text, value, text]
    document = json.dumps(value).encode()

    if levels <= NESTING:
        assert parse_json(document) == value
    else:
        with pytest.raises(ValueError, match="nested deeper than"):
            parse_json(document)


@pytest.mark.parametrize(
    "document", [b"[" * 10**6, b'{"a":' * 10**6, b'["]",' * 10**6, b'{"\\\\":["\\"",' * 10**5]
)
def test_a_document_without_end_is_refused(document: bytes) -> None:
    """`json` raises RecursionError, which nobody expects of a record."""
    with pytest.raises(ValueError):
        parse_json(document)


def test_values_are_counted_before_they_are_made() -> None:
    """Three bytes of an empty list take seventy of memory; a long text takes what it has."""
    lists = b"[" + b"[]," * VALUES + b"0]"

    with pytest.raises(ValueError, match=f"more than {VALUES:,} values"):
        parse_json(lists)
    assert parse_json(b'"' + b"," * (VALUES + 1) + b'"') == "," * (VALUES + 1)


def test_a_document_over_its_limit_is_refused() -> None:
    """By its bytes, before anything else."""
    with pytest.raises(ValueError, match="it has 12 bytes, over the limit of 11"):
        parse_json(b'"0123456789"', limit_bytes=11)


def test_json_is_what_python_writes() -> None:
    """A test may put NaN into a report, and a file's name need not be UTF-8."""
    assert repr(parse_json(b"[NaN, -Infinity, 1e999]")) == "[nan, -inf, inf]"
    assert parse_json(b'"\\udc80"') == "\udc80"
    assert parse_json(b'{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(ValueError, match="digits"):
        parse_json(b"9" * 5000)
    for document in (b'"\xff"', '"a"'.encode("utf-16"), b'\xef\xbb\xbf"a"', b'"\xed\xa0\x80"'):
        with pytest.raises(ValueError):
            parse_json(document)


@pytest.mark.parametrize("text", [b"NaN", b"Infinity", b"-Infinity", b"1" + b"0" * 400, b"true"])
def test_a_typed_number_is_finite(text: bytes) -> None:
    """Seconds that are no number would be slept, added up and shown."""
    with pytest.raises(FieldError, match="expected a number"):
        value_of(float, parse_json(text))


# --- what is packed ------------------------------------------------------------------------------


def test_a_bomb_is_what_it_claims_to_be() -> None:
    """Else the tests below would be about something else."""
    assert zlib.decompress(bomb(4 << 20)) == bytes(4 << 20)
    assert inflate(bomb(4 << 20), limit_bytes=4 << 20) == bytes(4 << 20)
    assert len(bomb(BOMB_BYTES)) < 2 << 20


def test_a_segment_that_would_fill_the_memory_is_refused(store: Store) -> None:
    """A mebibyte in the store, a gibibyte here, and then the lines of it."""
    store.put("sessions/s1/events/agent/00000001", bomb(BOMB_BYTES))

    with (
        little_memory(),
        pytest.raises(UnreadableRecordError, match=f"00000001 .*more than {SEGMENT_BYTES:,} bytes"),
    ):
        SessionRecord(store, "s1").reader().poll()


def test_a_segment_of_empty_lines_is_refused(store: Store) -> None:
    """Each is a value for the parser, at a thousandth of a byte in the store."""
    store.put("sessions/s1/events/agent/00000001", zlib.compress(b"\n" * (5 << 20)))

    with pytest.raises(UnreadableRecordError, match="lines"):
        SessionRecord(store, "s1").reader().poll()


def test_a_file_takes_no_more_memory_than_its_tree_says(store: Store, tmp_path: Path) -> None:
    """Whoever can write blobs need not be able to write trees."""
    tree = ship_files(store, {"a": b"a" * 5000})
    store.put(blob_key(hashlib.sha256(b"a" * 5000).hexdigest()), ZLIB + bomb(BOMB_BYTES >> 8))

    with (
        little_memory(),
        pytest.raises(StoreError, match=r"'a'.*it has 4,\d+ of 9,\d+ bytes|5,000"),
    ):
        unpack(store, tree.digest, tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_an_output_takes_no_more_memory_than_its_listing_says(store: Store) -> None:
    """It is unpacked on the machine of whoever looks at the session."""
    digest = hashlib.sha256(bytes(BOMB_BYTES >> 8)).hexdigest()
    store.put(f"sessions/s1/outputs/blobs/{digest}", ZLIB + bomb(BOMB_BYTES >> 8))
    file = WrittenFile(path="a", executable=False, blob=digest, size=1 << 20, mtime_ns=0)

    with little_memory(), pytest.raises(UnreadableRecordError, match=digest):
        SessionRecord(store, "s1").output(file)


@pytest.mark.parametrize("size", [-1, 1 << 50, 10**30])
def test_no_listing_claims_more_than_a_file_may_have(store: Store, size: int) -> None:
    """The claim is what memory is taken by."""
    store.put(
        "sessions/s1/outputs/head.json",
        json.dumps(
            {
                "node": "head",
                "files": [
                    {
                        "path": "a",
                        "executable": False,
                        "blob": "0" * 64,
                        "size": size,
                        "mtime_ns": 0,
                    }
                ],
            }
        ).encode(),
    )

    with pytest.raises(UnreadableRecordError, match=r"head\.json .*WrittenFile: no file has"):
        SessionRecord(store, "s1").outputs()


# --- what is big ---------------------------------------------------------------------------------


def of_record(read: Callable[[SessionRecord], object]) -> Callable[[Store], object]:
    return lambda store: read(SessionRecord(store, "s1"))


@pytest.mark.parametrize(
    ("key", "read", "size"),
    [
        ("clusters/c1/cluster.json", lambda s: ClusterRecord(s, "c1").description(), 2 << 20),
        ("clusters/c1/state.json", lambda s: ClusterRecord(s, "c1").heartbeat(), 2 << 20),
        ("sessions/s1/control/heartbeat", of_record(SessionRecord.heartbeat), 2 << 20),
        ("sessions/s1/control/heartbeat", of_record(SessionRecord.stop_order), 2 << 20),
        ("sessions/s1/request.json", of_record(SessionRecord.request), DOCUMENT_BYTES + 1),
        ("sessions/s1/summary.json", of_record(SessionRecord.summary), DOCUMENT_BYTES + 1),
        ("sessions/s1/artifacts/a", of_record(lambda r: r.artifact("a")), OBJECT_BYTES + 1),
        ("history/durations.json", durations, DOCUMENT_BYTES + 1),
        (tree_key("0" * 64), lambda s: get_tree(s, "0" * 64), DOCUMENT_BYTES + 1),
        (
            "sessions/s1/events/agent/00000001",
            of_record(lambda record: record.reader().poll()),
            SEGMENT_BYTES + 1,
        ),
        ("sessions/s1/request.json", prune, DOCUMENT_BYTES + 1),
    ],
)
def test_an_object_over_its_limit_is_not_read(
    store: Store, key: str, read: Callable[[Store], object], size: int
) -> None:
    """A heartbeat is asked for every second, and nobody's has a gibibyte."""
    assert store.root is not None
    path = store.root / key
    path.parent.mkdir(parents=True)
    path.touch()
    os.truncate(path, size)  # a hole takes no room on the disk

    with little_memory(), pytest.raises(UnreadableRecordError) as caught:
        read(store)

    assert key in caught.value.what
    assert f"{size:,}" in caught.value.what
