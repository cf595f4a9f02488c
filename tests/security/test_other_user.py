"""What another user of this machine sees of a session: nothing."""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401 - of addresses; nobody may not be able to import it
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_gpu_cluster.bundle.index import LastTree, StatIndex
from pytest_gpu_cluster.contract.store import Store
from tests.acceptance.conftest import closed_project
from tests.acceptance.processes import eventually, left_of, waits
from tests.acceptance.project import Project

NOBODY = 65534
SECRET = "planted-value-of-a-passed-variable"
PRINTED = "planted-words-of-a-test"
WALKED = ("/tmp", "/var/tmp", "/dev/shm", "/run")
READ_BYTES = 4 << 20  # of each file
SUITE = f"""
import os, time
import pytest

def test_writes(artifacts):
    print("{PRINTED}")
    assert os.environ["MY_TOKEN"] == "{SECRET}"
    (artifacts / "note.txt").write_text("{PRINTED}")
    with open("written.txt", "w") as file:
        file.write("{PRINTED}")

@pytest.mark.ray
def test_drives_ray():
    import ray
    ray.init()
    assert ray.get(ray.put("{PRINTED}" * 100_000))

def test_waits():
    print("{PRINTED}")
    while not os.path.exists({{go!r}}):
        time.sleep(0.05)
"""


@dataclass(frozen=True, kw_only=True)
class Session:
    """What there is to find of a session: words, processes and sockets."""

    began: float  # unix seconds
    words: tuple[str, ...]  # that no file may show
    secrets: tuple[str, ...]  # that no command line may show
    pids: tuple[int, ...]
    sockets: tuple[str, ...]  # paths; an abstract one begins with @
    ports: tuple[int, ...]
    own: tuple[str, ...]  # files of the user's, who decides about them


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that every user may enter, as a home often is."""
    path = Path(tempfile.mkdtemp(prefix="gpu-other-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_another_user_finds_nothing_of_a_session(open_place: Path) -> None:
    """CI runners and workstations are shared; what a session leaves to see, everybody reads."""
    go = open_place / "go"
    with closed_project(open_place) as project:
        project.settings('pass-env = ["MY_*"]\noutputs = ["written.txt"]')
        project.write(test_a=SUITE.format(go=str(go)))
        variables = {"MY_TOKEN": SECRET, "XDG_CACHE_HOME": str(open_place / "cache")}
        client = project.start("-v", **waits(), **variables, GPU_CLUSTER_IDLE_MINUTES="0")
        at = client.until("test_writes PASSED", "test_drives_ray PASSED")
        session = describe(project, client.process.pid, at.cluster, at.session)
        open_file = open_place / "open.txt"  # a search that cannot find is worth nothing
        open_file.write_text(f"a file with the name of session {at.session}")

        meanwhile = as_nobody(lambda: findings(session))
        go.touch()
        ran = client.wait()
        assert eventually(lambda: left_of(at.cluster) == []), left_of(at.cluster)
        afterwards = as_nobody(lambda: findings(session))

    assert ran.code == 0, ran.out
    assert (open_place / "project" / "written.txt").exists()
    assert len(session.pids) > 8, "guard, keeper, Ray, fork server, agent, workers"
    assert len(session.sockets) > 2
    expected = [f"{open_file} can be read"]
    assert (meanwhile, afterwards) == (expected, expected)


def describe(project: Project, client: int, cluster: str, session: str) -> Session:
    """Return what another user may look for, as root sees it."""
    pids = [int(line.split(" ", 1)[0]) for line in left_of(cluster) if line[0].isdigit()]
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    inodes.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    root = project.root
    token = token_of_ray(pids)
    return Session(
        began=project.opened().root.stat().st_ctime - 1,  # type: ignore[union-attr]
        words=(cluster, session, SECRET, PRINTED, token),
        secrets=(SECRET, token),
        pids=(client, *pids),
        sockets=tuple(unix_sockets(inodes)),
        ports=tuple(listening_ports(inodes)),
        own=(
            *(str(root / name) for name in ("test_a.py", "junit.xml", "written.txt")),
            *map(str, root.parent.glob("*.txt")),
        ),
    )


def token_of_ray(pids: Sequence[int]) -> str:
    """Return Ray's token, as its processes have it in their environment."""
    for pid in pids:
        with contextlib.suppress(OSError):
            for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if variable.startswith(b"RAY_AUTH_TOKEN="):
                    return variable.partition(b"=")[2].decode()
    raise AssertionError("no process of Ray has a token")


def unix_sockets(inodes: set[str]) -> Iterator[str]:
    """Yield the names of the sockets with these inodes."""
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and f"socket:[{fields[6]}]" in inodes:
            yield fields[7]


def listening_ports(inodes: set[str]) -> Iterator[int]:
    """Yield the TCP ports on which the sockets with these inodes listen."""
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                yield int(fields[1].rpartition(":")[2], 16)


def as_nobody(work: Callable[[], list[str]]) -> list[str]:
    """Return what `work` returns in a process of the user nobody."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            result = work()
        except BaseException as problem:  # noqa: BLE001 - told as a finding
            result = [f"the search failed: {problem!r}"]
        with os.fdopen(writer, "w") as file:
            json.dump(result, file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        answer: list[str] = json.load(file)
    os.waitpid(pid, 0)
    return answer


def findings(session: Session) -> list[str]:
    """Return all that this user can see of a session."""
    return [
        *found_files(session),
        *found_sockets(session),
        *found_ports(session),
        *found_in_processes(session),
    ]


def found_files(session: Session) -> Iterator[str]:
    """Yield the files that name the session or hold its words."""
    words = [word.encode() for word in session.words]
    for top in WALKED:
        for directory, folders, names in os.walk(top):
            for name in (*folders, *names):
                path = os.path.join(directory, name)
                if any(word in path for word in session.words):
                    yield path
            for name in names:
                path = os.path.join(directory, name)
                if path not in session.own and any(w in content(path, session) for w in words):
                    yield f"{path} can be read"


def content(path: str, session: Session) -> bytes:
    """Return the content of a file that is younger than the session, where it can be read."""
    with contextlib.suppress(OSError):
        status = os.stat(path)
        if status.st_mtime >= session.began and os.path.isfile(path):
            with open(path, "rb") as file:
                return file.read(READ_BYTES)
    return b""


def found_sockets(session: Session) -> Iterator[str]:
    """Yield the sockets that this user can connect to."""
    for name in session.sockets:
        address = f"\0{name[1:]}" if name.startswith("@") else name
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as connection:
                connection.connect(address)
                yield f"socket {name} takes a connection"


def found_ports(session: Session) -> Iterator[str]:
    """Yield the ports that answer a request without a token by words of the session."""
    for port in session.ports:
        answer = answer_of(port)
        if any(word.encode() in answer for word in session.words):
            yield f"port {port} tells {answer[:200]!r}"


def answer_of(port: int) -> bytes:
    """Return what a port answers to a request without a token."""
    answer = b""
    with contextlib.suppress(OSError):
        connection = socket.create_connection(("127.0.0.1", port), timeout=2)
        with connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
            while piece := connection.recv(65536):
                answer += piece
    return answer


def found_in_processes(session: Session) -> Iterator[str]:
    """Yield what /proc shows of the session's processes that is not for all."""
    for pid in session.pids:
        for name in ("environ", "maps", "fd"):
            with contextlib.suppress(OSError):
                path = f"/proc/{pid}/{name}"
                if os.listdir(path) if name == "fd" else Path(path).read_bytes():
                    yield f"{path} can be read"
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if any(secret.encode() in line for secret in session.secrets):
                yield f"{pid} has a secret in its command line: {line!r}"


def test_what_is_remembered_for_a_bucket_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and digests of a project's files lie in the user's cache, which others may enter."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bucket = Store.open("s3://bucket/p", base=tmp_path)

    StatIndex(bucket, tmp_path).save({}, LastTree())

    (folder,) = tmp_path.iterdir()
    (file,) = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
