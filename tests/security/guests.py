"""A suite of tests that try what they should not, and what they leave in their artifacts.

It asserts nothing itself: our tests look at what each of its tests got.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pytest_gpu_cluster.contract.record import SessionRecord
from tests.acceptance.project import Project, Ran

PLANTED = "planted-" + "4b1d"  # in each credential of the store; no file of the suite has it
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": PLANTED,
    "AWS_SECRET_ACCESS_KEY": PLANTED,
    "AZURE_STORAGE_ACCOUNT_KEY": PLANTED,
    "GOOGLE_SERVICE_ACCOUNT": PLANTED,
}
TOOLS = """
import json, os, pathlib, socket, time

NODE = pathlib.Path(os.environ["TMPDIR"]).parent


def connect(name, kind=socket.SOCK_STREAM):
    connection = socket.socket(socket.AF_UNIX, kind)
    connection.connect(str(NODE / name))
    return connection


def ask(line):
    try:
        connection = connect("keeper.sock")
    except PermissionError:
        return {"error": "it cannot connect"}
    with connection:
        connection.settimeout(30)
        connection.sendall(line.encode() + b"\\n")
        return json.loads(connection.recv(65536))


def runners():
    "The processes above this one that belong to its cluster: supervisor, keeper, guard."
    pid = os.getpid()
    while pid > 1:
        pid = int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if pid in cluster():
            yield pid


def cluster():
    "All processes of the cluster, as their command lines tell."
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    place = str(NODE.parent)
    return [int(pid) for pid in pids if place in (readable(f"/proc/{pid}/cmdline") or "")]


def foreign():
    "Those that are not of this user, as far as they show it; and keeper and guard."
    for pid in cluster():
        line = readable(f"/proc/{pid}/cmdline") or ""
        try:
            if os.stat(f"/proc/{pid}").st_uid != os.getuid() or "node.guard" in line:
                yield pid, line
        except FileNotFoundError:
            pass


def readable(path):
    try:
        with open(path, errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return None


def texts():
    "What an ordinary program can read here of what runs it, but of Ray's own processes."
    yield "own environment", json.dumps(dict(os.environ))
    for pid in (os.getpid(), *runners()):
        for name in ("environ", "cmdline"):
            yield f"{name} of {pid}", readable(f"/proc/{pid}/{name}") or ""
    for folder, _, names in os.walk(NODE.parent):
        for path in (os.path.join(folder, name) for name in names):
            if not path.startswith(f"{NODE.parent}/r/") and os.path.isfile(path):
                yield path, readable(path) or ""


def wait_for(path):
    deadline = time.monotonic() + 60
    while not os.path.exists(path):
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)


def leave(artifacts, value):
    (artifacts / "left.json").write_text(json.dumps(value))
"""
FLOOD = """
import os, pathlib, socket
import pytest
from tools import connect, leave, wait_for


@pytest.mark.gpu(count=0)  # so that no other test waits behind it, in its process
def test_flood(artifacts):
    "It goes on while another process ends, what that has left is stored, and a third one starts."
    connections, refused = [], 0
    for name, kind in (("keeper.sock", socket.SOCK_STREAM), ("spawn.sock", socket.SOCK_SEQPACKET)):
        for number in range(200):
            try:
                connections.append(connect(name, kind))
                if number % 3 == 0:
                    connections[-1].send(b"\\xff" * 1000)
            except PermissionError:
                refused += 1
    pathlib.Path("flooded").touch()
    wait_for("inherited")
    leave(artifacts, [len(connections), refused])
"""
GUEST = """
import json, os, pathlib, re
import pytest
from pytest_gpu_cluster.contract.signing import session_key, signed
from tools import NODE, ask, foreign, leave, readable, texts, wait_for


def test_crash(artifacts):
    wait_for("flooded")
    leave(artifacts, "before the crash")
    os._exit(3)


def test_inherited(artifacts):
    "Files, variables, directory; and what of its runners it can open."
    umask = os.umask(0o22)
    os.umask(umask)
    files = {}
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            files[descriptor] = os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:
            pass
    opened = [f"{pid} {line}" for pid, line in foreign() if any(
        readable(f"/proc/{pid}/{name}") is not None for name in ("environ", "maps"))]
    planted = "-".join(("planted", "4b1d"))  # not as it stands: this file is looked at too
    secret = re.compile(planted + '|(RAY_AUTH_TOKEN|ray_token)"?(=|: ")[0-9a-f]{8}')
    leave(artifacts, {
        "user": [os.getuid(), os.getgid(), os.getgroups()],
        "files": files,
        "variables": dict(os.environ),
        "born": (readable("/proc/self/environ") or "").split(chr(0)),
        "cwd": os.getcwd(),
        "umask": umask,
        "opened": opened,
        "secrets": [place for place, text in texts() if secret.search(text)],
        "reached": [path for path in json.loads(os.environ["REACH"])
                    if os.access(path, os.R_OK) or os.access(path, os.W_OK)],
        "node": [name for name in ("spec.json", "handoff", "cache", "keeper.log", "ray.log",
                                   "agent.log", "forkserver.log", "s", "code", "../r", "..", ".")
                 if os.access(NODE / name, os.R_OK)],
        "writable": [name for name in (".", "s", "code", "handoff", "keeper.sock", "spawn.sock")
                     if os.access(NODE / name, os.W_OK)],
    })
    pathlib.Path("inherited").touch()


def test_socket(artifacts, cluster):
    "With nothing, and with all that looks like a key."
    keys = sorted({found for _, text in texts() for found in re.findall("[0-9a-f]{40,}", text)})
    answers = []
    for place in ("history/planted", f"{cluster.prefix}/artifacts/planted"):
        order = {"op": "upload", "sources": {place: __file__}}
        answers.append(ask(json.dumps(order)))
        for key in keys:
            for each in (key, session_key(key, cluster.session)):
                answers.append(ask(signed(order, session=cluster.session, key=each)))
    leave(artifacts, answers)


def test_ordinary(artifacts, tmp_path, tmp_path_factory):
    "A test writes where tests write."
    (tmp_path / "file").write_text("text")
    with open("/dev/stdout", "a") as stream:
        stream.write("to the terminal")
    pathlib.Path("out").mkdir()
    pathlib.Path("out/written.txt").write_text("written")
    (artifacts / "link.txt").symlink_to(tmp_path / "file")
    (artifacts / "away.txt").symlink_to(json.loads(os.environ["REACH"])[0])
    leave(artifacts, os.environ.get("HOME"))


def test_passes(): pass
def test_fails(): assert 1 == 2
def test_skips(): pytest.skip("as plain pytest does")
"""
OUTCOMES = {
    "test_flood": "passed",
    "test_crash": "failure",
    "test_inherited": "passed",
    "test_socket": "passed",
    "test_ordinary": "passed",
    "test_passes": "passed",
    "test_fails": "failure",
    "test_skips": "skipped",
}


@dataclass(frozen=True, kw_only=True)
class Guests:
    """The one run of the suite."""

    project: Project
    ran: Ran

    def left(self, test: str) -> object:
        """Return what a test has left."""
        record = SessionRecord(self.project.opened(), self.ran.session)
        (name,) = [name for name in record.artifacts() if f"{test}-" in name and "left" in name]
        return json.loads(record.artifact(name) or b"null")


def run_guests(project: Project, reach: list[str], settings: str = "", **environ: str) -> Guests:
    """Run the suite. Its tests try to read and to write the files of `reach`."""
    project.write(tools=TOOLS, test_a_flood=FLOOD, test_guest=GUEST)
    keys = ('pass-env = ["REACH"]', 'outputs = ["out"]', "gpus-per-node = 2", settings)
    project.settings("\n".join(keys))
    project.environ |= {**CREDENTIALS, "REACH": json.dumps(reach), **environ}
    ran = project.run()
    return Guests(project=project, ran=ran)
