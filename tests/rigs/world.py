"""A world for two machines: namespaces without a way out, which end with whoever made them.

    test ── janitor ── unshare ── init of the world (S3 at 10.77.0.1) ── clients, first machine
                                     └ unshare ── init of the second machine (10.77.0.2) ── guard

The inits are the first processes of their pid namespaces: when one ends, the kernel ends all that
is in it. Both hang on a pipe of the test, so they end too when the test is killed. What namespaces
do not hold are a memory cgroup and the first machine's directory of clusters: the janitor removes
both.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpu_tests.s3_server import S3Server

FIRST, SECOND = "10.77.0.1", "10.77.0.2"
NETWORK = "second"  # the name of the second machine's network namespace
REQUIRED = "GPU_CLUSTER_INTERNAL_RIGS"  # "required": a rig that cannot be is a failure
MEMORY = Path("/sys/fs/cgroup/memory")  # of cgroup v1; of v2 the memory files are in each group
REPOSITORY = Path(__file__).resolve().parents[2]
UNSHARE = ("unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child")
NETWORK_SETUP = f"""
mount -t tmpfs tmpfs /run
ip link set lo up
ip netns add {NETWORK}
ip link add first type veth peer name second netns {NETWORK}
ip address add {FIRST}/24 dev first
ip link set first up
ip -n {NETWORK} link set lo up
ip -n {NETWORK} address add {SECOND}/24 dev second
ip -n {NETWORK} link set second up
"""


def missing() -> str:
    """Return why this machine cannot hold a world; "" where it can."""
    for tool in ("unshare", "nsenter", "ip", "mount"):
        if shutil.which(tool) is None:
            return f"there is no `{tool}` here"
    if os.geteuid() != 0:
        return "machines as namespaces need root"
    argv = [*UNSHARE, "--mount-proc", "sh", "-ec", NETWORK_SETUP]
    tried = subprocess.run(argv, capture_output=True, text=True, check=False)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass(frozen=True, kw_only=True)
class World:
    """A world that runs."""

    pid: int  # of its init, as this process sees it
    environ: dict[str, str]  # of its store's clients
    clusters: Path  # the first machine's directory of them
    cgroup: Path | None  # that the second machine lives in; None where none is to be had

    @property
    def within(self) -> tuple[str, ...]:
        """A command that runs what follows it in this world, on the first machine."""
        enter = f"nsenter --target={self.pid} --net --mount --uts --pid"
        return ("sh", "-c", f'exec {enter} --wdns="$PWD" -- "$@"', "sh")

    def run(self, *args: str, cwd: Path, environ: Mapping[str, str]) -> str:
        """Run this interpreter on the first machine; return what it printed."""
        run = subprocess.run(
            [*self.within, sys.executable, *args],
            cwd=cwd,
            env=environ,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=60,
        )
        return run.stdout

    def objects(self, store: str, prefix: str = "") -> dict[str, str]:
        """Return the objects below a prefix of a store that only this world reaches."""
        argv = ("-m", "tests.rigs.objects", store, prefix)
        printed = self.run(*argv, cwd=REPOSITORY, environ=os.environ | self.environ)
        found: dict[str, str] = json.loads(printed)
        return found


@contextlib.contextmanager
def new_world(*, memory_bytes: int) -> Iterator[World]:
    """Give a world, whose second machine may use so much memory."""
    argv = [sys.executable, "-m", "tests.rigs.world", "janitor", str(memory_bytes)]
    janitor = subprocess.Popen(
        argv,
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert janitor.stdin is not None
    assert janitor.stdout is not None
    with janitor, janitor.stdin:
        said = json.loads(janitor.stdout.readline())
        cgroup = Path(said["cgroup"]) if said["cgroup"] else None
        clusters = clusters_of(janitor.pid)
        environ = said["environ"] | {"GPU_CLUSTER_INTERNAL_CLUSTERS": str(clusters)}
        yield World(pid=said["pid"], environ=environ, cgroup=cgroup, clusters=clusters)


# --- the janitor ----------------------------------------------------------------------------------


def sweep_behind(memory_bytes: int) -> None:
    """Hold a world until stdin ends, then remove its cgroup."""
    cgroup = _new_cgroup(memory_bytes)
    argv = [*UNSHARE, "--mount-proc", sys.executable, "-m", "tests.rigs.world", "init"]
    world = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert world.stdin is not None
    assert world.stdout is not None
    with world:
        environ = json.loads(world.stdout.readline())
        children = Path(f"/proc/{world.pid}/task/{world.pid}/children").read_text().split()
        said = {"pid": int(children[0]), "environ": environ, "cgroup": str(cgroup or "")}
        print(json.dumps(said), flush=True)
        sys.stdin.read()
        world.stdin.close()
        world.wait()
    if cgroup is not None:
        cgroup.rmdir()
    shutil.rmtree(clusters_of(os.getpid()), ignore_errors=True)


def clusters_of(janitor: int) -> Path:
    """Return the directory for clusters of a world, which is short as that of a user."""
    return Path(f"/tmp/gpu-rig-{janitor}")


def _new_cgroup(memory_bytes: int) -> Path | None:
    """Make a cgroup below this process's, with a limit of memory; None where that is not allowed.

    The same in both versions of cgroups but for names.
    """
    first = MEMORY.is_dir()
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = {line.split(":")[1]: line.split(":")[2] for line in lines}
    top, place = (MEMORY, own.get("memory", "/")) if first else (MEMORY.parent, own.get("", "/"))
    cgroup = top / place.lstrip("/") / f"gpu-test-{os.getpid()}"
    try:
        cgroup.mkdir()
    except OSError:
        return None
    try:
        names = ("memory.limit_in_bytes",) if first else ("memory.max",)
        for name in names:
            (cgroup / name).write_text(str(memory_bytes))
    except OSError:
        cgroup.rmdir()
        return None
    return cgroup


# --- the init of the world ------------------------------------------------------------------------


def be_init() -> None:
    """Connect the two machines, serve a store, and reap what is orphaned, until stdin ends."""
    die_with_parent()
    subprocess.run(["sh", "-ec", NETWORK_SETUP], check=True)
    with S3Server(FIRST) as server:
        server.make_bucket("bucket")
        print(json.dumps(server.env | {"AWS_ALLOW_HTTP": "true"}), flush=True)
        while not select.select([sys.stdin], [], [], 0.1)[0]:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        os._exit(0)  # and with it every process of this world


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends."""
    ctypes.CDLL(None).prctl(1, 9)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["janitor", number]:
            sweep_behind(int(number))
        case ["init"]:
            be_init()
