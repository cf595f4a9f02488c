"""One contract for every store, on a directory and on a real S3 server; what goes wrong, and what is forgotten."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_tests.s3_server import Fault, S3Server
from pytest_gpu_cluster.bundle.retention import prune
from pytest_gpu_cluster.contract.errors import StoreError
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.store_errors import redact
from tests.conftest import RunPython


@pytest.fixture(scope="module")
def running_s3() -> Iterator[S3Server]:
    with S3Server() as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture
def s3(running_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The S3 server, healthy, and this process's environment as a client's of it."""
    for name, value in running_s3.env.items():
        monkeypatch.setenv(name, value)
    yield running_s3
    running_s3.heal()


def open_s3(
    prefix: str = "p", *, bucket: str = "bucket", patience_s: float = 1.0, timeout_s: float = 5.0
) -> Store:
    return Store.open(
        f"s3://{bucket}/{prefix}",
        base=Path("/"),
        request_timeout_s=timeout_s,
        patience_s=patience_s,
    )


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "file":
        return Store.open("store", base=tmp_path)
    request.getfixturevalue("s3")
    return open_s3(tmp_path.name)


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
    """What an idle session costs an hour is a figure that is watched."""
    before = store.requests
    store.put("a", b"")
    store.get("a")
    store.list("")

    assert store.requests - before == 3


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


def test_a_local_store_is_private_and_invisible_to_git(tmp_path: Path) -> None:
    """It lies in the working tree: neither a commit nor a neighbour may pick it up."""
    store = Store.open("a/store", base=tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)

    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert status.stdout == ""
    assert store.is_local
    assert store.root == tmp_path / "a" / "store"
    assert store.root.stat().st_mode & 0o777 == 0o700
    assert Store.open(store.url, base=Path("/")).root == store.root


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_store_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    """Whoever writes to a store's inbox runs code on its GPUs."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(mode)

    with pytest.raises(StoreError, match="others may write") as caught:
        Store.open("store", base=tmp_path)

    assert f"chmod go-w {tmp_path / 'store'}" in caught.value.remedy


def test_a_file_is_no_store(tmp_path: Path) -> None:
    """A typo in `store` finds a file sooner or later."""
    (tmp_path / "file").touch()

    for url in ("file", "file/below"):
        with pytest.raises(StoreError, match="a file is where a directory should be") as caught:
            Store.open(url, base=tmp_path)
        assert (tmp_path / url).as_uri() in caught.value.what


def run_mounted(tmp_path: Path, mount: str, code: str) -> str:
    """Run Python `code` where `mount` was done, without privileges; its output. Skips where that is not possible."""
    script = f'mount {mount} || exit 77; exec "$@"'
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        sys.executable,
        "-c",
        code,
    ]
    repository = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": repository},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode in (1, 77) and not done.stdout:
        pytest.skip(f"no mount without privileges here: {done.stderr.strip()}")
    return done.stdout


FILL = """
from pathlib import Path
from pytest_gpu_cluster.contract.errors import StoreError
from pytest_gpu_cluster.contract.store import Store
for act in ("put", "create", "check"):
    try:
        store = Store.open("disk/store", base=Path.cwd())
        store.check_writable() if act == "check" else getattr(store, act)("key", b"x" * 200_000)
    except StoreError as error:
        print(act, error)
"""


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    """A cluster that fills its disk must not look like a failing test."""
    (tmp_path / "disk").mkdir()

    out = run_mounted(tmp_path, "-t tmpfs -o size=64k,mode=700 tmpfs disk", FILL)

    assert out.count("the disk is full") == 2, out
    assert f"cannot put key in file://{tmp_path}/disk/store" in out
    assert "remedy: free space there" in out


def test_a_disk_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """A read-only mount is what a container often gives."""
    Store.open("disk/store", base=tmp_path)

    out = run_mounted(tmp_path, "-t tmpfs -o ro,mode=700 tmpfs disk", FILL)

    assert out.count("the file system is read-only") == 3, out


LOSE_RIGHTS = """
import os
from pathlib import Path
from pytest_gpu_cluster.contract.errors import StoreError
from pytest_gpu_cluster.contract.store import Store
store = Store.open("store", base=Path.cwd())
store.check_writable()
Path("store").chmod(0o500)
if os.geteuid() == 0:
    os.seteuid(65534)
for act in (store.check_writable, lambda: Store.open("store/below", base=Path.cwd())):
    try:
        act()
    except StoreError as error:
        print(error)
"""


def test_a_directory_of_somebody_else_is_said(tmp_path: Path, run_python: RunPython) -> None:
    """A store made by root in a container is met by a user later."""
    done = run_python("-c", LOSE_RIGHTS, cwd=tmp_path)

    assert done.stdout.count(f"file://{tmp_path}/store") == 2, done.stderr
    assert done.stdout.count("permission denied") == 2
    assert done.stdout.count("remedy: make it writable for this user") == 2


CALLS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put("k", b"x"),
    "create": lambda store: store.create("k", b"x"),
    "get": lambda store: store.get("k"),
    "list": lambda store: store.list("k"),
    "names": lambda store: store.names("k"),
    "delete": lambda store: store.delete(["k"]),
    "check": lambda store: store.check_writable(),
}
anything = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@anything
def test_a_missing_bucket_is_never_an_empty_one(
    s3: S3Server, call: Callable[[Store], object]
) -> None:
    """Else a typo in the bucket's name is a session that waits for ever."""
    with pytest.raises(StoreError, match=r"s3://nobody/p: there is no such bucket") as caught:
        call(open_s3(bucket="nobody"))

    assert "create the bucket" in caught.value.remedy


@anything
@pytest.mark.parametrize(
    ("fault", "meaning", "remedy"),
    [
        ("403", "access denied", "allow get, put, list and delete"),
        ("skew", "the clocks differ", "set this machine's clock"),
        ("503", "the store is busy or ill", "wait a minute"),
        ("drop", "the connection broke", "check the network"),
    ],
)
def test_what_goes_wrong_has_a_remedy(
    s3: S3Server, call: Callable[[Store], object], fault: Fault, meaning: str, remedy: str
) -> None:
    """Every call, every failure: what, on which store, and what to do now; the vendor's error chained."""
    s3.fault(fault)
    with pytest.raises(StoreError, match=rf"s3://bucket/p: {meaning}") as caught:
        call(open_s3(patience_s=0.1))

    assert remedy in caught.value.remedy
    assert caught.value.__cause__ is not None
    assert type(caught.value.__cause__).__module__.startswith(("obstore", "builtins"))


@anything
def test_nobody_there_is_said(s3: S3Server, call: Callable[[Store], object]) -> None:
    """A wrong endpoint, a network without a way out."""
    s3.refuse()
    with pytest.raises(StoreError, match="nobody answers there") as caught:
        call(open_s3(patience_s=0.1))

    assert "AWS_ENDPOINT_URL" in caught.value.remedy
    assert s3.endpoint in caught.value.what


def test_a_slow_store_is_given_up_in_time(s3: S3Server) -> None:
    """A call has a bound, so that whoever waits can say why."""
    s3.fault("slow", seconds=1.5)
    began = time.monotonic()
    with pytest.raises(StoreError, match="it was too slow"):
        open_s3(patience_s=0.5, timeout_s=0.3).get("k")

    assert time.monotonic() - began < 1.5


WAITS = """
from pathlib import Path
from pytest_gpu_cluster.contract.store import Store
store = Store.open("s3://bucket/p", base=Path("/"))
print("waits", flush=True)
try:
    store.get("k")
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_does_not_wait_for_a_slow_store(s3: S3Server, repository: Path) -> None:
    """A vendor's call that blocks would hold the signal back, and with it the teardown."""
    s3.fault("slow", seconds=5)
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-c", WAITS],
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)

    assert child.communicate()[0] == b"interrupted\n"
    assert time.monotonic() - began < 4.0


def test_a_store_that_recovers_is_not_an_error(s3: S3Server) -> None:
    """S3 answers 503 to anyone who goes fast."""
    store = open_s3("recovers", patience_s=20)
    for call in CALLS.values():
        s3.fault("503", times=2)
        call(store)


@pytest.mark.parametrize("fault", ["drop-after", "slow"])
def test_a_lost_answer_to_create_is_settled(s3: S3Server, fault: Fault) -> None:
    """The object is there, the answer is not: the retry finds it taken, by itself."""
    store = open_s3(f"lost-{fault}", timeout_s=0.4, patience_s=20)
    s3.fault(fault, times=1, method="PUT", seconds=1.0)

    assert store.create("decision", b"mine") is True
    assert store.create("decision", b"theirs") is False
    time.sleep(1.0 if fault == "slow" else 0)  # the late one arrives
    assert store.get("decision") == b"mine"


def test_a_lost_answer_to_create_is_not_taken_for_a_yes(s3: S3Server) -> None:
    """Somebody else was first while we did not hear: that is a no."""
    store = open_s3("not-yes", patience_s=20)
    store.put("decision", b"theirs")
    s3.fault("drop-after", times=1, method="PUT")

    assert store.create("decision", b"mine") is False


def test_no_credential_enters_a_message(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages end in CI logs, and so do tracebacks."""
    monkeypatch.setenv(
        "AWS_ENDPOINT_URL", s3.endpoint.replace("//", "//user:" + "hunter22"[::-1] + "@")
    )
    secret = os.urandom(8).hex()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    s3.refuse()
    with pytest.raises(StoreError) as caught:
        open_s3(patience_s=0.1).get(f"k/{secret}")

    text = "".join(traceback.format_exception(caught.value))
    assert "hunter22"[::-1] not in text
    assert secret not in text
    assert redact("see http://a:b@h/x?sig=abc&t=1 now") == "see http://***@h/x?*** now"


@pytest.mark.parametrize(
    "url", ["s3://key:hunter22@bucket/p", "s3://bucket/p?sig=hunter22", "gs://hunter22@bucket"]
)
def test_credentials_in_a_store_url_are_refused(tmp_path: Path, url: str) -> None:
    """The URL is printed, recorded, and travels to the cluster."""
    with pytest.raises(StoreError, match="has credentials in it") as caught:
        Store.open(url, base=tmp_path)

    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "s4://bucket", "https://bucket.s3.amazonaws.com/x"]
)
def test_an_unknown_scheme_is_refused(tmp_path: Path, url: str) -> None:
    """With what there is to choose from."""
    with pytest.raises(StoreError, match="unknown scheme") as caught:
        Store.open(url, base=tmp_path)

    assert "s3://" in caught.value.remedy


def test_the_vendor_is_not_imported_before_it_is_needed(run_python: RunPython) -> None:
    """It costs 20 ms, which the plugin must not, where it is not asked for."""
    done = run_python(
        "-c",
        "import pytest_gpu_cluster.contract.store, pytest_gpu_cluster.contract.journal, sys; print('obstore' in sys.modules)",
    )

    assert done.stdout == "False\n", done.stderr


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
