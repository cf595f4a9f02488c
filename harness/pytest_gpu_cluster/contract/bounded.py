"""Bounds on what is read from a store, applied before memory is taken.

Whoever may write to a store may write anything there. Every limit is far above what this package
writes itself: a tree of 1 GiB, 100,000s of files, 20,000 tests, segments of 4 MiB. What is over a
limit is a ValueError, which the reader of a key turns into a StoreError that names it.

JSON is read as Python writes it. NaN and Infinity are numbers of what tests put into a report (a
typed number refuses them), a lone surrogate is a text that was no Unicode, and of a key that stands
twice in an object the last counts. An integer has 4,300 digits at most, which is Python's limit.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import cast

from pytest_gpu_cluster.contract.fields import JsonValue

OBJECT_BYTES = 4 << 30  # of any object: an artifact, the data of coverage.py
FILE_BYTES = 4 << 30  # of one file that is unpacked, and of all files of a tree
DOCUMENT_BYTES = 256 << 20  # of JSON: the tree of a million files has 200 MiB
SMALL_BYTES = 1 << 20  # of a heartbeat, a decision, a cluster's description
SEGMENT_BYTES = 512 << 20  # of a segment, unpacked: one event is never cut in two
LINES = 4 << 20  # of a segment
VALUES = 8 << 20  # of one JSON document: a file of a tree has five
NESTING = 200  # containers in containers; `codec.to_wire` writes 190 at most
LISTED_KEYS = 8 << 20  # of one listing of the store

_INFLATION = 1032  # the most that zlib can gain
_PIECE_BYTES = 1 << 16  # of compressed bytes whose size is counted at once
_STRUCTURE = b'"[]{},'
_OTHERS = bytes(set(range(256)) - set(_STRUCTURE))
_SQUARE = bytes.maketrans(b"{}", b"[]")


def parse_json(content: bytes, *, limit_bytes: int = DOCUMENT_BYTES) -> JsonValue:
    """Return the value of a JSON document in UTF-8. Raises ValueError, and nothing else."""
    if len(content) > limit_bytes:
        raise ValueError(f"it has {len(content):,} bytes, over the limit of {limit_bytes:,}")
    opened = content.count(b"{") + content.count(b"[")
    if opened > NESTING or opened + content.count(b",") > VALUES:
        _refuse_structure(content)
    try:
        return cast(JsonValue, json.loads(content.decode()))
    except RecursionError:  # of a document whose brackets are not closed
        raise ValueError(f"it is nested deeper than {NESTING} levels") from None


def _refuse_structure(content: bytes) -> None:
    """Raise ValueError for too many values or levels, by the brackets and commas outside of texts.

    Of what is no JSON the count may be wrong: that is refused by the parser.
    """
    plain = content.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in content else content
    marks = plain.translate(None, _OTHERS).replace(b'""', b"")
    if marks.count(b'"') > 4 * VALUES:  # a value is one text at most, and has one key
        raise ValueError(f"it has more than {VALUES:,} values")
    marks = b"".join(marks.split(b'"')[::2]).translate(_SQUARE)
    if marks.count(b",") + marks.count(b"[") > VALUES:
        raise ValueError(f"it has more than {VALUES:,} values")
    levels = marks.replace(b",", b"")
    for _ in range(NESTING):  # each pass takes the innermost level away
        shorter = levels.replace(b"[]", b"")
        if len(shorter) == len(levels):
            return
        levels = shorter
    if b"[]" in levels:
        raise ValueError(f"it is nested deeper than {NESTING} levels")


def read_file(path: Path, *, limit_bytes: int = DOCUMENT_BYTES) -> bytes:
    """Return the bytes of a file. Raises ValueError for more than the limit, OSError."""
    with open(path, "rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > limit_bytes:
            raise ValueError(f"it has {size:,} bytes, over the limit of {limit_bytes:,}")
        return file.read(size)


def inflate(packed: bytes, *, limit_bytes: int) -> bytes:
    """Return what zlib has packed. Raises ValueError, without taking the memory of a bigger one."""
    try:
        if len(packed) * _INFLATION > limit_bytes:
            _refuse_size(packed, limit_bytes)
        return zlib.decompress(packed)
    except zlib.error as error:
        raise ValueError(str(error)) from error


def _refuse_size(packed: bytes, limit_bytes: int) -> None:
    """Raise ValueError for more than `limit_bytes`; each piece is unpacked and forgotten."""
    unpacker, size = zlib.decompressobj(), 0
    for start in range(0, len(packed), _PIECE_BYTES):
        rest = packed[start : start + _PIECE_BYTES]
        while rest and not unpacker.eof:
            size += len(unpacker.decompress(rest, 1 << 20))
            if size > limit_bytes:
                raise ValueError(f"it has more than {limit_bytes:,} bytes when it is unpacked")
            rest = unpacker.unconsumed_tail


def inflate_exactly(packed: bytes | memoryview, size: int) -> bytes:
    """Return the `size` bytes that zlib has packed. Raises ValueError for another number of bytes.

    No more memory is taken than for one byte more.
    """
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(packed, size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(content) != size or not unpacker.eof:
        raise ValueError(f"it does not have the {size:,} bytes of its file")
    return content
