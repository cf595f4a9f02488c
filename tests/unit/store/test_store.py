"""One contract for every store, on a directory and on a real S3 server."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_tests.s3_server import S3Server
from pytest_gpu_cluster.contract.errors import StoreError
from pytest_gpu_cluster.contract.store import Store
from tests.s3_stores import open_s3


def test_what_is_put_is_what_is_got(store: Store) -> None:
    """Code, events and results are bytes; any of them."""
    for key, data in [
        ("a/b/c", b"\0\xff" * 100),
        ("empty", b""),
        ("a/b/with space & ü", b"x"),
        (".hidden/x#y", b"y"),
    ]:
        store.put(key, data)

        assert store.get(key) == data


def test_an_object_bigger_than_one_part_arrives_whole(store: Store) -> None:
    """Above 5 MiB the vendor sends parts; a blob must not notice."""
    data = os.urandom(6 << 20)
    store.put("blobs/big", data)

    assert store.get("blobs/big") == data


def test_put_overwrites(store: Store) -> None:
    """A heartbeat is one key, written again and again."""
    store.put("beat", b"1")
    store.put("beat", b"2")

    assert store.get("beat") == b"2"


def test_nothing_there_is_none_and_not_an_error(store: Store) -> None:
    """A follower asks for the next segment long before it exists."""
    store.put("a/b", b"")

    assert store.get("absent") is None
    assert store.get("a") is None
    assert store.list("absent") == []
    assert store.names("absent") == []


def test_create_takes_what_is_free_and_only_that(store: Store) -> None:
    """Whoever creates the decision first has decided."""
    assert store.create("decision", b"mine") is True

    assert store.create("decision", b"theirs") is False
    assert store.create("decision", b"mine") is True
    assert store.get("decision") == b"mine"


def test_of_many_creators_one_wins(store: Store) -> None:
    """The keeper takes a session at the moment its client withdraws it."""
    won: list[int] = []
    gate = threading.Barrier(8)

    def race(number: int) -> None:
        gate.wait()
        if store.create("decision", b"by %d" % number):
            won.append(number)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(won) == 1
    assert store.get("decision") == b"by %d" % won[0]


def test_list_is_sorted_and_keeps_to_its_folder(store: Store) -> None:
    """`sessions/1` must not see `sessions/10`."""
    for key in ("s/1/b", "s/1/a/x", "s/10/a", "t", "s/1/a/y"):
        store.put(key, b"")

    assert store.list("s/1") == store.list("s/1/") == ["s/1/a/x", "s/1/a/y", "s/1/b"]
    assert store.list("s/1", after="s/1/a/x") == ["s/1/a/y", "s/1/b"]
    assert store.list("") == ["s/1/a/x", "s/1/a/y", "s/1/b", "s/10/a", "t"]


def test_names_are_what_is_directly_in_a_folder(store: Store) -> None:
    """New writers are found by one cheap request, however many segments each has."""
    for key in ("s/1/a/x", "s/1/a/y", "s/1/b", "s/10/a"):
        store.put(key, b"")

    assert store.names("s") == store.names("s/") == ["1", "10"]
    assert store.names("s/1") == ["a", "b"]
    assert store.names("") == ["s"]


def test_delete_is_quiet_about_what_is_gone(store: Store) -> None:
    """Two sweeps at once clear the same cluster."""
    for key in ("a", "b/c", "d"):
        store.put(key, b"")

    store.delete(["a", "never/there", "b/c"])
    store.delete(["a"])
    store.delete([])

    assert store.list("") == ["d"]


def test_a_key_that_is_no_key_is_named(store: Store) -> None:
    """A key that climbs out of the store would be a way in."""
    for key in ("a//b", "../a", "."):
        with pytest.raises(StoreError, match="that is no key") as caught:
            store.put(key, b"")

        assert key in caught.value.what


def test_requests_are_counted(store: Store) -> None:
    """The cost of an idle session an hour is a figure that is watched."""
    before = store.requests
    store.put("a", b"")
    store.get("a")
    store.list("")

    assert store.requests - before == 3


def test_a_store_that_overwrites_what_it_should_create_is_refused(s3: S3Server) -> None:
    """Keeper and client would both have decided, and both be right: a session runs twice, or not
    at all.
    """
    s3.ignore_conditions()
    with pytest.raises(StoreError, match="overwrites what it has, when a key is to be created"):
        open_s3("careless").check_writable()

    assert open_s3("careless").list("") == []


def test_check_writable_leaves_nothing_behind(store: Store) -> None:
    """The doctor asks before money is spent."""
    store.check_writable()

    assert store.list("") == []


def test_a_long_list_comes_whole(s3: S3Server) -> None:
    """S3 gives 1,000 keys at a time; the rest must be asked for."""
    store = open_s3("long")
    for number in range(1003):
        store.put(f"k/{number:04d}", b"")

    assert store.list("k") == [f"k/{number:04d}" for number in range(1003)]


@given(
    operations=st.lists(
        st.tuples(
            st.sampled_from(["put", "create", "delete"]),
            st.sampled_from(["a", "b/c", "b/d", "b/e/f", "g h/ü"]),
            st.binary(max_size=4),
        ),
        max_size=30,
    )
)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_local_store_is_a_dict(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, str, bytes]]
) -> None:
    """Whatever the order of operations, what is there is what a dictionary would hold."""
    store = Store.open("store", base=tmp_path_factory.mktemp("model"))
    model: dict[str, bytes] = {}
    for operation, key, data in operations:
        match operation:
            case "put":
                store.put(key, data)
                model[key] = data
            case "create":
                assert store.create(key, data) is (model.setdefault(key, data) == data)
            case _:
                store.delete([key])
                model.pop(key, None)
        assert store.get(key) == model.get(key)

    assert {key: store.get(key) for key in store.list("")} == model
    assert store.names("b") == sorted({key.split("/")[1] for key in model if key.startswith("b/")})
