"""The codec: whatever a report holds arrives, and nothing it holds can stop a session."""

from __future__ import annotations

import enum
import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpu_cluster.contract.codec import PathMap, encode_line, from_wire, to_wire

TEXT = st.text(st.characters(codec=None))  # lone surrogates too
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
KEYS = (
    TEXT
    | st.integers()
    | st.booleans()
    | st.none()
    | st.tuples(TEXT, st.integers())
    | st.sampled_from(["$t", "$d"])
)
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v) | st.lists(v).map(tuple) | st.dictionaries(KEYS, v), max_leaves=20
)


def through_json(value: object) -> object:
    return from_wire(json.loads(json.dumps(to_wire(value), ensure_ascii=True)))


@given(VALUES)
def test_plain_values_and_tuples_survive(value: object) -> None:
    """A skip reason that comes back as a list is an INTERNALERROR of pytest's own."""
    assert through_json(value) == value


@given(VALUES)
def test_a_line_is_one_line_of_ascii(value: object) -> None:
    """Journal segments are split at newlines, and a lone surrogate has no UTF-8 form."""
    line = encode_line({"kind": "output", "text": to_wire(value)})

    assert line.count(b"\n") == 1
    assert line.isascii()
    assert from_wire(json.loads(line)["text"]) == value


class Colour(enum.Enum):
    RED = 1


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no")


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "expected", "types"),
    [
        (pathlib.Path("/a/b"), "/a/b", []),
        (Colour.RED, "Colour.RED", ["Colour"]),
        (b"bytes", "b'bytes'", ["bytes"]),
        ({1}, "{1}", ["set"]),
        (Hostile(), "<unprintable Hostile>", ["Hostile"]),
        (Text("x"), "x", []),
        (10**5000, hex(10**5000), []),
    ],
    ids=[
        "path",
        "enum",
        "bytes",
        "set",
        "hostile",
        "str subclass",
        "an integer without a decimal form",
    ],
)
def test_anything_else_is_its_text(value: object, expected: str, types: list[str]) -> None:
    """JUnit would print the same; xdist loses the session over it."""
    lossy: list[str] = []

    assert through_json(value) == expected
    assert to_wire([value], lossy) == [expected]
    assert lossy == types


def test_a_value_that_holds_itself_ends() -> None:
    """A report attribute may point back to what owns it."""
    loop: list[object] = []
    loop.append(loop)

    assert json.dumps(to_wire(loop))


@given(
    st.recursive(
        st.builds(object) | st.builds(Hostile) | LEAVES,
        lambda v: st.lists(v) | st.dictionaries(KEYS, v),
    )
)
def test_encoding_never_raises(value: object) -> None:
    """An encode error inside a hook would lose the test that it reports."""
    encode_line({"kind": "x", "value": to_wire(value)})
    encode_line({"kind": "x", "value": value})  # type: ignore[dict-item]  # it is not JSON


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/far/root", "/near/p"),
        ("/far/root/a.py:3: in f", "/near/p/a.py:3: in f"),
        ("in /far/root.", "in /near/p."),
        ("\x1b[1m\x1b[31m/far/root/a.py\x1b[0m", "\x1b[1m\x1b[31m/near/p/a.py\x1b[0m"),
        ("'line\\n/far/root/x'", "'line\\n/near/p/x'"),
        ("/far/root:/far/root/b", "/near/p:/near/p/b"),
        ("a\n/far/root/b", "a\n/near/p/b"),
        ("/far/root2/a", "/far/root2/a"),
        ("/far/root-old /far/root.bak", "/far/root-old /far/root.bak"),
        ("/so/far/root", "/so/far/root"),
        ("relative/far/root", "relative/far/root"),
    ],
)
def test_paths_map_on_path_boundaries(text: str, expected: str) -> None:
    """A plain replace turned `tests/` into `tests/tests/` in two of pytest's own tests."""
    assert PathMap([("/far/root", "/near/p")]).text(text) == expected


def test_paths_map_in_every_string_of_a_structure() -> None:
    """Tracebacks hold paths in entries, crash lines, sections and keys."""
    paths = PathMap([("/far/root/", "/near"), ("/far", "/other")])

    assert paths({"/far/root/k": ["/far/root/v", {"$t": ["/far/x", 1]}]}) == {
        "/near/k": ["/near/v", {"$t": ["/other/x", 1]}]
    }
    assert PathMap([("/same", "/same")])("/same/x") == "/same/x"


@given(st.text(), st.text(alphabet="/abc.-_"))
def test_text_without_the_root_is_untouched(text: str, path: str) -> None:
    """Mapping is for paths; everything else is the test's own words."""
    changed = PathMap([("/far/root", "/near")]).text(text + path)

    assert changed == text + path or "/far/root" in text + path
