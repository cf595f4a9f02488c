"""A node beside the head: when it closes, and what it leaves of the sessions that it sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract.cluster_directory import make_directory
from pytest_gpu_cluster.contract.cluster_record import Announcement, ClusterPhase
from pytest_gpu_cluster.contract.failures import Closer
from pytest_gpu_cluster.contract.masking import PassedValues
from pytest_gpu_cluster.contract.record import Ending, SessionRecord
from pytest_gpu_cluster.contract.specs import BootSpec, KeeperSpec
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.waits import Waits
from pytest_gpu_cluster.node.context import Node, Shutdown
from pytest_gpu_cluster.node.follower import Follower
from pytest_gpu_cluster.node.guard import leave_logs, lost_session, remove_node
from pytest_gpu_cluster.node.logs import Legacy, NodeLogs, Served
from pytest_gpu_cluster.node.processes import Ray, State
from pytest_gpu_cluster.node.visits import Visit, Visits, prepare
from pytest_gpu_cluster.node.working_trees import WorkingTrees
from tests.unit.test_keeper import BOOT, SECRETS

TOKEN = "q7Zk-very-secret"


class Second:
    """The second node of a cluster, without its processes."""

    def __init__(self, top: Path, **waits: float) -> None:
        self.waits = Waits(heartbeat_s=0, **waits)
        boot: BootSpec = replace(BOOT, store=f"file://{top}/store", waits=self.waits)
        directory = top / "c1" / "n1"
        directory.mkdir(parents=True)
        spec = KeeperSpec(
            boot=boot,
            secrets=SECRETS,
            directory=directory,
            ray_directory=top / "r",
            head=False,
            ip="127.0.0.1",
        )
        self.store = Store.open(boot.store, base=top)
        self.node = Node(spec=spec, store=self.store, gpus=(), driver=None, host="second")
        self.legacy, self.shutdown = Legacy(), Shutdown()
        self.logs = NodeLogs(self.store, directory, self.legacy)
        trees = WorkingTrees(self.store, directory, cache=self.node.cache)
        self.visits = Visits(self.node, trees, self.logs)
        self.ray = Ray(self.node)
        self.ray.state = State.READY
        self.duty = Follower(self.node, self.ray, self.visits, self.logs, self.shutdown)
        self.log = directory / "keeper.log"

    def visit(self, session: str) -> Path:
        """Have a session here, as its first request does; return its directory."""
        scratch = self.node.directory.parent / "n0" / "s" / session
        served = Served(session=session, passed=PassedValues(env={"A_TOKEN": TOKEN}))
        self.visits.begin(Visit(served=served, scratch=scratch))
        prepare(self.node, scratch)
        return scratch

    def head_serves(self, session: str | None) -> None:
        phase = ClusterPhase.BUSY if session else ClusterPhase.IDLE
        self.node.cluster.announce(Announcement(state=phase, session=session))

    def stored_log(self, session: str) -> bytes | None:
        return self.store.get(f"sessions/{session}/logs/n1/keeper.log")


@pytest.fixture
def second(tmp_path: Path) -> Second:
    return Second(tmp_path)


def test_it_closes_at_once_when_the_cluster_has_ended(second: Second) -> None:
    """Each minute of grace after the end is a minute of rent."""
    second.node.cluster.announce(Announcement(beats=1))
    second.duty.tick()
    assert not second.shutdown.requested

    second.node.cluster.delete()
    second.duty.tick()

    assert second.shutdown.message == "the cluster has ended: its record is gone"


def test_it_waits_longer_for_a_head_that_boots_than_for_one_that_was_heard(tmp_path: Path) -> None:
    """Machines of one order are ready minutes after each other."""
    booting = Second(tmp_path / "a", grace_s=-1, join_s=60)
    heard = Second(tmp_path / "b", grace_s=-1, join_s=60)
    heard.node.cluster.announce(Announcement(beats=1))

    for each in (booting, heard):
        each.duty.tick()
        each.duty.tick()

    assert not booting.shutdown.requested
    assert heard.shutdown.message == "the head's heartbeat stopped"


def test_what_a_session_has_here_goes_when_the_head_serves_it_no_more(second: Second) -> None:
    """The source of somebody's work would stay on a disk that is not theirs."""
    scratch = second.visit("s1")
    (scratch / "source.py").touch()
    second.head_serves("s1")
    second.duty.tick()
    assert scratch.exists()

    second.head_serves(None)
    second.duty.tick()

    assert not scratch.exists()
    assert not (second.node.directory / "t").exists()


def test_a_word_of_the_head_that_is_older_than_the_session_ends_nothing(second: Second) -> None:
    """It would take the tree away from under running tests."""
    second.head_serves(None)
    scratch = second.visit("s1")

    second.duty.tick()
    assert scratch.exists()

    SessionRecord(second.store, "s1").close(Ending(), by=Closer.CLIENT)
    second.duty.tick()
    assert scratch.exists(), "its agent may still be leaving"
    second.duty.tick()
    assert not scratch.exists()


def test_a_node_that_closes_under_a_session_leaves_its_places_alone(second: Second) -> None:
    """On one machine they are those of the head, where the session goes on."""
    scratch = second.visit("s1")
    second.log.write_text("Ray died")

    second.duty.end()

    assert scratch.exists()
    assert second.stored_log("s1") == b"Ray died"


def test_the_next_session_ends_the_last_one(second: Second) -> None:
    """On a warm cluster the head may have taken the next before this node looks again."""
    first = second.visit("s1")

    later = second.visit("s2")

    assert (first.exists(), later.exists()) == (False, True)


def test_logs_are_masked_and_those_of_the_last_session_are_not_the_next_ones(
    second: Second,
) -> None:
    """A record is read by many; and a warm node logs for as long as it lives."""
    second.log.write_text(f"boots; the token is {TOKEN}\n")
    second.visit("s1")
    second.visit("s2")
    assert second.stored_log("s1") == b"boots; the token is ***\n"
    assert second.stored_log("s2") is None

    with second.log.open("a") as log:
        log.write("more\n")
    second.duty.tick()

    assert second.stored_log("s2") == b"more\n"


def test_a_guard_masks_the_logs_of_a_keeper_that_was_killed(second: Second) -> None:
    """It knows the secrets of the session by the memory that it has in common with the keeper."""
    second.visit("s1")
    second.log.write_text(f"the last words with {TOKEN}\n")

    served = lost_session(second.node.spec, -9, second.legacy)
    leave_logs(second.node.spec, served, second.legacy)

    assert second.stored_log("s1") == b"the last words with ***\n"


def test_the_logs_of_a_node_that_never_came_up_go_to_the_session_that_waits(
    second: Second,
) -> None:
    """The reason why it has failed is nowhere else."""
    second.ray.state = State.ENDED
    second.node.cluster.offer("s1")
    second.log.write_text("Ray did not come up\n")

    second.duty.end()

    assert second.stored_log("s1") == b"Ray did not come up\n"


@pytest.mark.parametrize(("of_head", "remains"), [(("s", "code"), False), (("handoff",), True)])
def test_the_places_of_a_session_are_no_node(
    tmp_path: Path, of_head: tuple[str, ...], remains: bool
) -> None:
    """On its own disk the last node takes the directory of the cluster with it."""
    tmp_path.chmod(0o700)
    cluster = make_directory(tmp_path, "c1")
    for name in of_head:
        (cluster / "n0" / name).mkdir(parents=True)
    (cluster / "n1").mkdir()

    remove_node(cluster / "n1")

    assert (cluster / "n0").exists() is remains
