"""What a run and a waiting cluster ask of a store on S3: how much, and how much in a row.

The counts are those of the budgets: requests are money, and each one that has to wait for another
is the distance to the store once more before the first result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from gpu_tests.s3_server import Answer, S3Server
from pytest_gpu_cluster.contract.waits import VARIABLE
from tests.acceptance.processes import left_of
from tests.acceptance.project import Project, Ran
from tests.traffic import BESIDE, by_kind, described, place, reads, result_key, round_trips, writes

SUITE = """
import time
import pytest

@pytest.mark.parametrize("i", range(16))
def test_it(i):
    time.sleep(0.5)
"""
FAR_S = 0.2  # of every request: what begins together then overlaps, on a busy machine too


@dataclass(frozen=True)
class Rig:
    """A warm cluster whose store is on this server."""

    project: Project
    server: S3Server

    def run(self, *args: str) -> tuple[Ran, list[Answer]]:
        """Return a run on the warm cluster, and what the store was asked meanwhile."""
        before = len(self.server.answers())
        ran = self.project.run(*args)
        assert ran.code == 0, ran.out
        assert ", warm" in ran.out, ran.out
        return ran, self.server.answers()[before:]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with S3Server() as server, pytest.MonkeyPatch.context() as patch:
        server.make_bucket("tests")
        project = Project(tmp_path_factory.mktemp("far") / "project", "s3://tests/team")
        for name, value in server.env.items():
            patch.setenv(name, value)
        project.environ |= server.env | {"GPU_CLUSTER_STORE": project.store}
        project.environ.pop(VARIABLE, None)  # the heartbeats of the product
        project.settings('exclude = ["junit.xml"]')  # the tree is the same in each run
        project.write(test_one="def test_it():\n    pass\n", test_many=SUITE)
        cold = project.run("test_one.py")
        try:
            assert cold.code == 0, cold.out
            yield Rig(project, server)
        finally:
            server.throttle()
            down = project.command("down")
            assert down.returncode == 0, down.stderr
            assert left_of(cold.cluster) == []


def test_eight_requests_in_a_row_lead_to_the_first_result_of_a_warm_run(rig: Rig) -> None:
    """A CI runner far from its bucket pays each of them in full, in every run."""
    rig.server.throttle(get_s=FAR_S, put_s=FAR_S, other_s=FAR_S)
    ran, asked = rig.run("test_one.py")
    rig.server.throttle()

    assert round_trips(asked, result_key(rig.project.opened(), ran.session)) <= 8, described(asked)


def test_a_result_costs_one_segment_and_a_session_writes_and_lists_little(rig: Rig) -> None:
    """A PUT or a LIST costs as much as twelve GET.

    What comes again with time, heartbeats and looks for new writers of the journal, is left out,
    and so are logs of the nodes: one comes where something was logged.
    """
    _, asked = rig.run("test_many.py")

    segments = [a for a in asked if a.method == "PUT" and "/events/" in a.path]
    apart = ("/events/", "/logs/")
    once = [
        a
        for a in asked
        if not any(each in place(a) for each in apart) and not a.path.endswith(BESIDE)
    ]
    assert len(segments) <= 16 + 8, described(segments)
    assert by_kind(once)["PUT"] <= 6, described(once)
    assert by_kind(once)["LIST"] <= 3, described(once)


@pytest.mark.slow
def test_a_minute_of_a_waiting_cluster_is_cheap(rig: Rig) -> None:
    """It waits after every run on a laptop: this is most of its life."""
    rig.run("test_one.py")
    before = len(rig.server.answers())
    time.sleep(60)
    asked = rig.server.answers()[before:]

    assert writes(asked) <= 5, described(asked)
    assert reads(asked) <= 70, described(asked)
