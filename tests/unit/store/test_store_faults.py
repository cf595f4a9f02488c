"""Each failure of a store has a meaning and a remedy, and gives no secret away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_tests.s3_server import Fault, S3Server
from pytest_gpu_cluster.contract.errors import StoreError
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.store_errors import redact
from tests.conftest import RunPython
from tests.s3_stores import open_s3


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
    """Run Python `code` below an unprivileged mount; return its output. Skips where that fails."""
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
    repository = str(Path(__file__).resolve().parents[3])
    process = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": repository},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode in (1, 77) and not process.stdout:
        pytest.skip(f"no mount without privileges here: {process.stderr.strip()}")
    return process.stdout


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
    process = run_python("-c", LOSE_RIGHTS, cwd=tmp_path)

    assert process.stdout.count(f"file://{tmp_path}/store") == 2, process.stderr
    assert process.stdout.count("permission denied") == 2
    assert process.stdout.count("remedy: make it writable for this user") == 2


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
        ("507", "the store is full", "free space there"),
        ("drop", "the connection broke", "check the network"),
    ],
)
def test_what_goes_wrong_has_a_remedy(
    s3: S3Server, call: Callable[[Store], object], fault: Fault, meaning: str, remedy: str
) -> None:
    """Each failure of each call has a meaning, the store's URL, a remedy and the vendor's error."""
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
    process = run_python(
        "-c",
        "import pytest_gpu_cluster.contract.store, pytest_gpu_cluster.contract.journal, sys\n"
        "print('obstore' in sys.modules)",
    )

    assert process.stdout == "False\n", process.stderr
