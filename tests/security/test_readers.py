"""Whatever is in a store, its readers answer with one error that names the key."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pytest_gpu_cluster
from pytest_gpu_cluster.contract.errors import HarnessError, UnreadableRecordError
from pytest_gpu_cluster.contract.store import Store
from tests.security.furnished import SESSION, furnish
from tests.security.mutations import ACTIONS, JUNK, RAW, Change, mutated
from tests.security.readers import READERS, Reader

AT_ONCE = 10  # documents of one example
EXAMPLES = 45  # of each reader
PACKAGE = Path(pytest_gpu_cluster.__file__).parent
CHANGES = st.lists(
    st.builds(
        Change,
        action=st.sampled_from(ACTIONS),
        place=st.integers(0, 1 << 20),
        what=st.integers(0, len(JUNK) * len(RAW)),
    ),
    min_size=1,
    max_size=3,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with a cluster and a session."""
    store = Store.open(str(tmp_path / "store"), base=tmp_path)
    furnish(store)
    return store


def plant(store: Store, key: str, content: bytes) -> None:
    assert store.root is not None
    (store.root / key).write_bytes(content)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_a_reader_reads_what_was_written(
    reader: Reader, store: Store, pytestconfig: pytest.Config
) -> None:
    """Else the documents below would all be refused at their first byte."""
    if reader is READERS["coverage"]:
        with pytest.raises(UnreadableRecordError, match=r"w1 is no data of coverage"):
            reader.read(store, pytestconfig)
    else:
        reader.read(store, pytestconfig)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(documents=st.lists(CHANGES, min_size=AT_ONCE, max_size=AT_ONCE))
def test_no_document_ends_a_reader_but_with_its_error(
    reader: Reader, store: Store, pytestconfig: pytest.Config, documents: list[list[Change]]
) -> None:
    """A team shares a bucket that strangers' pull requests write to."""
    key = reader.key(store)
    assert store.root is not None
    valid = (store.root / key).read_bytes()
    for changes in documents:
        plant(store, key, mutated(valid, changes, lines=reader.lines))
        try:
            reader.read(store, pytestconfig)
        except HarnessError:
            pass
        finally:
            plant(store, key, valid)


def test_there_are_ten_thousand_documents() -> None:
    """Fewer find less; the number is what the threat model says."""
    assert EXAMPLES * AT_ONCE * len(READERS) >= 10_000


@pytest.mark.parametrize(
    ("name", "key", "field"),
    [
        ("cluster", "clusters/c1/cluster.json", "protocol"),
        ("announcement", "clusters/c1/state.json", "state"),
        ("request", f"sessions/{SESSION}/request.json", "limits"),
        ("result", f"sessions/{SESSION}/result.json", "counts"),
        ("listing", f"sessions/{SESSION}/outputs/head.json", "files"),
    ],
)
def test_an_error_names_the_key_and_the_field(
    name: str, key: str, field: str, store: Store, pytestconfig: pytest.Config
) -> None:
    """Whoever has to mend or remove it must find it among thousands."""
    content = store.get(key) or b""
    plant(store, key, content.replace(f'"{field}": '.encode(), f'"{field}": null, "x": '.encode()))

    with pytest.raises(UnreadableRecordError) as caught:
        READERS[name].read(store, pytestconfig)

    assert key in caught.value.what
    assert field in caught.value.what


# --- none is forgotten ---------------------------------------------------------------------------


def reads(path: Path) -> Iterator[str]:
    """Yield the functions of a module that take something out of a store, or read a file of it."""
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and is_read(node.func):
                    yield f"{path.relative_to(PACKAGE).as_posix()}:{function.name}"


def is_read(called: ast.expr) -> bool:
    """Return True for `….store.get`, and for the functions that readers are made of."""
    if isinstance(called, ast.Attribute) and called.attr == "get":
        return ast.unparse(called.value).rpartition(".")[2] in ("store", "_store", "obstore")
    return isinstance(called, ast.Name) and called.id in (
        *("get_noun", "get_tree", "read_tree", "read_file"),
    )


def test_every_place_that_reads_a_store_is_among_the_readers_above() -> None:
    """A new one is fuzzed from its first day, or this fails."""
    found = {site for path in PACKAGE.rglob("*.py") for site in reads(path)}
    known = {site for reader in READERS.values() for site in reader.sites}

    assert found - {"contract/store.py:get"} == known
