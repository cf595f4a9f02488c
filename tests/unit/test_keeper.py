"""A node from its boot to its end: real guard, keeper and fork server; only Ray is a stand-in."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from pytest_gpu_cluster.contract import procfs
from pytest_gpu_cluster.contract.cluster_directory import make_directory
from pytest_gpu_cluster.contract.cluster_record import (
    Announcement,
    ClusterPhase,
    ClusterRecord,
    NodePhase,
)
from pytest_gpu_cluster.contract.events import SessionFinished
from pytest_gpu_cluster.contract.failures import Closer, FailureClass
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.request import Limits, SessionRequest
from pytest_gpu_cluster.contract.sealing import seal
from pytest_gpu_cluster.contract.specs import BootSpec, ClusterSecrets, KeeperSpec
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.waits import Waits
from pytest_gpu_cluster.node.forkserver import (
    PROCESS_NAME,
    SERVER_NAME,
    SUPERVISOR_NAME,
)
from pytest_gpu_cluster.node.head import supervisors, supervisors_remain
from pytest_gpu_cluster.node.keeper import TOLD_TO_END

T = TypeVar("T")

# In the place of the script that starts Ray, with one of the processes that it would start.
RAY = """
import shutil, subprocess, time
shutil.copy(shutil.which("sleep"), "gcs_server")
subprocess.Popen(["./gcs_server", "4712"])
print("Ray runtime started", flush=True)
time.sleep(4712)
"""
AGENT = """
import json, subprocess, time

def clean(spec, channel):
    channel.sendall(json.dumps({"kind": "finished", "clean": True}).encode() + b"\\n")
    return 0

def tells(spec, channel):
    with open("told", "w") as file:
        file.write(json.dumps(spec["env"]))
    return clean(spec, channel)

def fails(spec, channel):
    raise RuntimeError("cannot put clusters/1/heartbeat: deadline passed")

def forever(spec, channel):
    subprocess.Popen(["sleep", "4712"], start_new_session=True)
    time.sleep(4712)
"""
CODE = "0" * 64  # the digest of the agent's code, which is on the node already
SECRETS = ClusterSecrets(ray_token="token", keeper_secret="secret")
BOOT = BootSpec(
    cluster="c1",
    store="",
    code="0" * 64,
    nodes=1,
    gpus_per_node=2,
    simulated_gpus=2,
    idle_s=60,
    deadline_s=60,
    waits=Waits(),
)
REQUEST = SessionRequest(
    session="s1",
    asked_at=0.0,
    provider="local",
    agent="agent:clean",
    root_name="root",
    origin="/origin",
    cwd=".",
    args=(),
    passed=(),
    limits=Limits(max_s=60, idle_s=60, test_timeout_s=60, infra_retries=0, default_gpus=None),
    code=CODE,
)


@dataclass(frozen=True)
class Booted:
    """A head node whose guard runs, and its records."""

    guard: subprocess.Popen[bytes]
    directory: Path
    session: SessionRecord
    cluster: ClusterRecord

    @property
    def keeper(self) -> int:
        (pid,) = until(lambda: procfs.children(self.guard.pid))
        return pid

    def named(self, name: str) -> int:
        """Return the pid of a process of the node by its name in the kernel; the oldest one."""
        return until(
            lambda: min(
                (pid for pid in self.processes() if procfs.kernel_name(pid) == name), default=None
            )
        )

    def phase(self) -> ClusterPhase:
        return self.cluster.announcement().state

    def end(self) -> SessionFinished | None:
        """Return the last event of the session, from whichever writer."""
        events = self.session.reader().poll()
        ends = [event for event in events if isinstance(event, SessionFinished)]
        return ends[-1] if ends else None

    def processes(self) -> list[int]:
        return procfs.with_environment(f"{self.directory.parent}/".encode())


def until(value: Callable[[], T | None], timeout_s: float = 40.0) -> T:
    """Return the first true value."""
    deadline = time.monotonic() + timeout_s
    while not (result := value()):
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.02)
    return result


class Boot(Protocol):
    def __call__(
        self,
        agent: str,
        *,
        head: bool = True,
        grace_s: float = 45,
        deadline_s: float = 60,
        simulated_gpus: int = 2,
        sealed: bool = False,
    ) -> Booted: ...


@pytest.fixture
def boot(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Boot]:
    """Boot a node; to a head, a session has offered itself. Every process ends with the test."""
    nodes: list[Booted] = []

    def start(
        agent: str,
        *,
        head: bool = True,
        grace_s: float = 45,
        deadline_s: float = 60,
        simulated_gpus: int = 2,
        sealed: bool = False,
    ) -> Booted:
        base = tmp_path_factory.mktemp("c")
        waits = Waits(grace_s=grace_s)
        boot = replace(
            BOOT,
            store=f"file://{base}/store",
            waits=waits,
            deadline_s=deadline_s,
            simulated_gpus=simulated_gpus,
            sealed=sealed,
        )
        directory = make_directory(base, "c1") / "n0"
        spec = KeeperSpec(
            secrets=SECRETS,
            boot=boot,
            directory=directory,
            ray_directory=base / "r",
            head=head,
            ip="127.0.0.1",
        )
        store = Store.open(boot.store, base=base)
        session, cluster = SessionRecord(store, "s1"), ClusterRecord(store, "c1")
        session.put_request(replace(REQUEST, agent=f"agent:{agent}"))
        cluster.offer("s1")
        package = base / "code"
        shutil.copytree(repository / "harness", package, ignore=shutil.ignore_patterns("*.pyc"))
        (package / "pytest_gpu_cluster/node/ray_start.py").write_text(RAY)
        guard = start_guard(spec, package, base / "keeper.log")
        nodes.append(Booted(guard, directory, session, cluster))
        return nodes[-1]

    yield start
    for node in nodes:
        node.guard.terminate()
        node.guard.wait(30)
        assert node.processes() == []


def start_guard(spec: KeeperSpec, package: Path, log: Path) -> subprocess.Popen[bytes]:
    """Do what a provider does: files in place, then the guard."""
    files = {
        "spec.json": json.dumps(spec.to_json()),
        f"code/{CODE[:16]}/agent.py": AGENT,
        f"code/{CODE[:16]}.tree": CODE,
        "handoff/s1": json.dumps({"PASSED": "1"}),
    }
    write(spec.directory, files)
    path = str(spec.directory / "spec.json")
    with open(log, "ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "pytest_gpu_cluster.node.guard", path],
            cwd=spec.directory,
            env={**os.environ, "PYTHONPATH": str(package)},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def write(directory: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_session_is_served_and_the_cluster_is_idle_again(boot: Boot) -> None:
    """The whole life of a node, to an end on which nothing of it is left."""
    booted = boot("clean")

    assert until(lambda: booted.cluster.decision("s1"))
    until(lambda: not (booted.directory / "handoff" / "s1").exists())
    until(lambda: not (booted.directory / "s" / "s1").exists())
    until(lambda: booted.phase() is ClusterPhase.IDLE)
    assert booted.end() is None  # the agent's own words are enough

    booted.guard.terminate()
    assert booted.guard.wait(30) == 0
    assert not booted.directory.parent.exists()
    assert booted.processes() == []
    assert booted.cluster.store.list("clusters") == []


def test_a_session_waits_for_its_sealed_values_and_no_reader_of_the_store_sees_them(
    boot: Boot,
) -> None:
    """On a machine elsewhere the store is the only way in, and others may read it."""
    booted = boot("tells", sealed=True)
    public = until(booted.cluster.key)
    time.sleep(0.3)
    assert booted.cluster.decision("s1") is None

    sealed = seal(public, "s1", {"A_TOKEN": "q7Zk-very-secret"})
    booted.cluster.put_sealed("s1", sealed)

    told = until(lambda: [*booted.directory.rglob("told")])
    until(lambda: booted.end() or booted.phase() is ClusterPhase.IDLE)
    assert json.loads(until(lambda: told[0].read_text() if told[0].exists() else "{}"))
    assert b"q7Zk-very-secret" not in sealed
    assert booted.cluster.take_sealed("s1") is None


def test_an_offer_whose_values_do_not_come_holds_up_no_other(boot: Boot) -> None:
    """Its client may be dead. Each is taken once, whichever number comes first."""
    booted = boot("clean", sealed=True)
    store = booted.cluster.store
    request = replace(REQUEST, session="s2", agent="agent:clean")
    SessionRecord(store, "s2").put_request(request)
    public = until(booted.cluster.key)
    booted.cluster.put_sealed("s2", seal(public, "s2", {}))
    ClusterRecord(store, "c1").offer("s2")

    assert until(lambda: booted.cluster.decision("s2"))
    assert booted.cluster.decision("s1") is None
    booted.cluster.put_sealed("s1", seal(public, "s1", {}))
    assert until(lambda: booted.cluster.decision("s1"))
    until(lambda: booted.phase() is ClusterPhase.IDLE)
    assert booted.cluster.announcement().inbox == 3


@pytest.mark.parametrize(("lives_s", "remains"), [(0.4, False), (30, True)])
def test_a_supervisor_on_its_way_out_does_not_cost_the_cluster(
    lives_s: float, remains: bool
) -> None:
    """On a busy machine it took longer than a fixed moment to go, and was a zombie then, which has
    its name: a warm cluster was ended for nothing.
    """
    name = f"import pathlib, time; pathlib.Path('/proc/self/comm').write_text({SUPERVISOR_NAME!r})"
    waits = f"{name}; print(flush=True); time.sleep({lives_s})"
    with subprocess.Popen([sys.executable, "-c", waits], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()

        assert supervisors() == [process.pid]
        assert supervisors_remain(patience_s=2) is remains

        process.kill()


def test_the_words_of_an_agent_decide_nothing(boot: Boot) -> None:
    """An error may speak of heartbeats; the record stays open for a client that lives."""
    booted = boot("fails")

    end = until(booted.end)

    assert end.writer == "keeper"
    assert end.failure_class is FailureClass.INFRASTRUCTURE
    assert end.message == (
        "its agent ended with 1: RuntimeError: cannot put clusters/1/heartbeat: deadline passed"
    )
    assert "Traceback" in end.tail
    assert not booted.session.is_closed()
    booted.guard.wait(30)  # a cluster that lost an agent is not lent again
    assert not booted.directory.exists()


def test_a_silent_client_ends_its_session_and_the_record_is_closed(boot: Boot) -> None:
    """Nobody pays for tests whose client is gone, and nobody is left to close the record."""
    booted = boot("forever", grace_s=1.0)

    until(booted.session.is_closed)

    result = booted.session.result()
    assert result is not None
    assert result.closed_by is Closer.KEEPER
    assert result.failure_class is FailureClass.INFRASTRUCTURE
    assert result.message.startswith("the client's heartbeat stopped for 1 s: it was stopped, ")
    booted.guard.wait(30)
    assert booted.processes() == []


def test_the_deadline_of_a_cluster_ends_its_session_with_a_limit(boot: Boot) -> None:
    """Exit code 13: the time was up, no machine has failed."""
    booted = boot("forever", deadline_s=8.0)

    end = until(booted.end)

    assert end.failure_class is FailureClass.LIMIT
    assert end.message == "the cluster's deadline passed"
    assert not booted.session.is_closed()
    booted.guard.wait(30)
    assert booted.processes() == []


def test_a_killed_keeper_leaves_nothing_and_its_session_learns_of_it(boot: Boot) -> None:
    """The guard is there for this moment; with a silent client it closes the record too."""
    booted = boot("forever")
    until(lambda: booted.phase() is ClusterPhase.BUSY)

    os.kill(booted.keeper, signal.SIGKILL)

    end = until(booted.end)
    assert end.writer == "guard"
    assert end.message == "the keeper of the head node was lost (exit -9)"
    booted.guard.wait(30)
    assert not booted.directory.parent.exists()
    assert booted.processes() == []
    result = booted.session.result()
    assert result is not None
    assert result.closed_by is Closer.GUARD
    assert booted.cluster.store.list("clusters") == []
    logs = booted.session.store.names("sessions/s1/logs/n0")
    assert "ray.log" in logs, "the guard stores what the keeper could not"


@contextlib.contextmanager
def client(booted: Booted) -> Iterator[None]:
    """Beat as a living client does."""
    ended = threading.Event()

    def beat() -> None:
        count = 0
        while not ended.wait(0.2):
            count += 1
            booted.session.beat(str(count))

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    ended.set()
    thread.join()


# By the words of the message: how the process is called in the kernel.
STOPPED = {
    "the keeper of the head node": "",
    "its agent": PROCESS_NAME,
    "the fork server": SERVER_NAME,
    "gcs_server": "gcs_server",
}


@pytest.mark.parametrize("words", STOPPED)
def test_a_stopped_process_is_noticed_and_named_and_nothing_is_left(boot: Boot, words: str) -> None:
    """It ends with no exit code and closes no pipe: the session would wait to its deadline."""
    booted = boot("forever", grace_s=2.0)
    with client(booted):
        until(lambda: booted.phase() is ClusterPhase.BUSY)
        name = STOPPED[words]
        pid = booted.named(name) if name else booted.keeper

        os.kill(pid, signal.SIGSTOP)

        end = until(booted.end)
        assert end.message.startswith(f"{words} (pid {pid}) was stopped, as by SIGSTOP, for more")
        assert end.failure_class is FailureClass.INFRASTRUCTURE
        assert booted.guard.wait(30) == 0
    assert not booted.session.is_closed(), "its client lives, and does it"
    assert booted.processes() == []
    assert not booted.directory.exists()


def test_processes_that_go_on_in_time_are_let_be(boot: Boot) -> None:
    """A machine that sleeps for a while, or a debugger, costs nobody a session."""
    booted = boot("forever", grace_s=4.0)
    with client(booted):
        until(lambda: booted.phase() is ClusterPhase.BUSY)
        pids = [booted.keeper, *map(booted.named, (PROCESS_NAME, SERVER_NAME, "gcs_server"))]
        for number in (signal.SIGSTOP, signal.SIGCONT) * 2:
            for pid in pids:
                os.kill(pid, number)
            time.sleep(2.2)

        assert booted.end() is None
        assert booted.phase() is ClusterPhase.BUSY
        assert [pid for pid in pids if procfs.start_time(pid) is None] == []


def test_a_stopped_keeper_ends_in_order_when_its_cluster_is_told_to(boot: Boot) -> None:
    """`gpu-cluster down` need not wait until it may kill."""
    booted = boot("forever")
    until(lambda: booted.phase() is ClusterPhase.BUSY)
    os.kill(booted.keeper, signal.SIGSTOP)

    booted.guard.terminate()

    assert booted.guard.wait(30) == 0
    end = until(booted.end)
    assert (end.writer, end.message) == ("keeper", TOLD_TO_END)


def test_a_killed_guard_leaves_nothing(boot: Boot) -> None:
    """Its death is the keeper's order to end the session and to do the guard's work."""
    booted = boot("forever")
    until(lambda: booted.phase() is ClusterPhase.BUSY)
    keeper = booted.keeper

    booted.guard.kill()

    until(lambda: procfs.start_time(keeper) is None)
    end = until(booted.end)
    assert (end.writer, end.message) == ("keeper", TOLD_TO_END)
    until(lambda: booted.processes() == [])
    assert not booted.directory.parent.exists()
    assert booted.cluster.store.list("clusters") == []


def test_a_follower_joins_the_heads_ray_and_closes_when_the_head_is_silent(boot: Boot) -> None:
    """A node whose head is gone would run, and cost, to the cluster's deadline."""
    booted = boot("clean", head=False, grace_s=1.0)
    booted.cluster.announce(Announcement(beats=1))
    booted.cluster.put_head("10.0.0.1:6379")

    path = booted.directory / "ray.json"
    until(path.exists)
    assert json.loads(path.read_text()) == {"address": "10.0.0.1:6379"}

    assert booted.guard.wait(30) == 0
    log = booted.directory.parent.parent / "keeper.log"
    assert log.read_text().endswith("keeper: the head's heartbeat stopped\n")
    assert not booted.directory.exists()
    assert booted.cluster.has_offer("s1"), "sessions are the head's"


def test_a_machine_without_the_gpus_that_were_ordered_is_no_node(boot: Boot) -> None:
    """Tests that pass on simulated GPUs of a rented machine are a green that proves nothing."""
    booted = boot("clean", simulated_gpus=0)

    end = until(booted.end)

    assert end.failure_class is FailureClass.INFRASTRUCTURE
    assert end.message.startswith("n0: 2 GPUs ordered, and NVML finds 0 here; look at the machine")
    booted.guard.wait(30)
    assert booted.processes() == []


def test_another_machine_without_them_says_so_to_the_head(boot: Boot) -> None:
    """The head would wait for it until its patience ends, and then know no reason."""
    booted = boot("clean", head=False, simulated_gpus=0)

    (node,) = until(booted.cluster.nodes)

    assert node.phase is NodePhase.ENDED
    assert "2 GPUs ordered" in node.text
    booted.guard.wait(30)
