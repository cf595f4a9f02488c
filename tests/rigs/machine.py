"""The second machine: its init makes a machine of its namespaces, then starts the guard there.

It has another hostname, user id, HOME, disk, /dev/shm and memory than the first one. Of that one's
files it has the interpreter and this repository alone, which stand for an installed environment.
The user has no entry in passwd, as in many containers.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_gpu_cluster.contract.cluster_directory import make_directory
from pytest_gpu_cluster.contract.fields import JsonObject
from pytest_gpu_cluster.contract.specs import KeeperSpec
from tests.rigs.world import REPOSITORY, die_with_parent

HOST, UID = "second-machine", 12345
HOME = Path("/tmp/home-of-second")
GUARD = "pytest_gpu_cluster.node.guard"
SHELVES = Path("/mnt")  # where what stays is kept while its place is covered


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a boot script would have in it."""

    spec: JsonObject  # of the keeper
    code: dict[str, str]  # by relative path
    python: str
    cgroup: str = ""  # to live in
    hidden: tuple[str, ...]  # directories of the first machine
    spoiled: bool = False  # no session can be prepared here


def run(order: Order) -> int:
    """Be this machine until its guard has ended; return the guard's exit code."""
    die_with_parent()
    if order.cgroup:
        Path(order.cgroup, "cgroup.procs").write_text(str(os.getpid()))
    socket.sethostname(HOST)
    os.chdir("/")
    mount("-t", "tmpfs", "-o", "size=64m,mode=1777", "tmpfs", "/dev/shm")
    hide(order.hidden, keep=(Path(sys.base_prefix), Path(sys.prefix), REPOSITORY))
    HOME.mkdir()
    os.chown(HOME, UID, UID)
    guard = os.fork()
    if guard == 0:
        os.setgroups([])
        os.setgid(UID)
        os.setuid(UID)
        os.umask(0o077)
        start_guard(order)
    status = 0
    pid = 0
    while pid != guard:  # as an init, this process inherits orphans
        pid, status = os.wait()
    return os.waitstatus_to_exitcode(status)


def start_guard(order: Order) -> None:
    """Do what a boot script does: files in place, then the guard in this process."""
    spec = KeeperSpec.from_json(order.spec)
    cluster = spec.directory.parent
    cluster.parent.mkdir(mode=0o700)
    make_directory(cluster.parent, cluster.name)
    for relative, text in order.code.items():
        target = cluster / "code" / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    spec.directory.mkdir()
    if order.spoiled:
        (cluster / "n0").write_text("in the way of the places of a session")
    path = spec.directory / "spec.json"
    path.write_text(json.dumps(spec.to_json()))
    log = os.open(spec.directory / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.chdir(spec.directory)
    environ = {
        "PATH": f"{Path(order.python).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(HOME),
        "LANG": "C.UTF-8",
        "ONLY_ON_SECOND": "yes",
        "PYTHONPATH": str(cluster / "code"),
    }
    os.execve(order.python, [order.python, "-m", GUARD, str(path)], environ)


def hide(places: Sequence[str], *, keep: Sequence[Path]) -> None:
    """Cover directories by empty disks, but for what is to be kept of them."""
    covered = [each for each in keep if any(each.is_relative_to(place) for place in places)]
    mount("-t", "tmpfs", "tmpfs", str(SHELVES))
    for number, each in enumerate(covered):
        (SHELVES / str(number)).mkdir()
        mount("--bind", str(each), str(SHELVES / str(number)))
    for place in places:
        mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", place)
    for number, each in enumerate(covered):
        each.mkdir(parents=True, exist_ok=True)
        mount("--bind", str(SHELVES / str(number)), str(each))


def mount(*args: str) -> None:
    subprocess.run(["mount", *args], check=True)


if __name__ == "__main__":
    document = json.load(sys.stdin)
    sys.exit(run(Order(**document)))
