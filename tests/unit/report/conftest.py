"""One real run for all tests of the report; no test changes it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract.events import Event
from pytest_gpu_cluster.contract.record import Ending
from pytest_gpu_cluster.report import junit
from tests.replay_rig import Scenario, run
from tests.unit.report.project import ENVIRON, FILES
from tests.unit.report.real_run import CONTEXT, RealRun

ARGS = (
    "--junitxml=junit.xml",
    *("-o", "junit_family=xunit1"),
    "--continue-on-collection-errors",
    *("-p", "no:cacheprovider"),
)


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> RealRun:
    """A run of the whole project."""
    home = tmp_path_factory.mktemp("real")
    env = {**ENVIRON, "RIG_EVENTS": str(home / "events")}
    outcome = run(Scenario(files=FILES, args=ARGS, env=env), home, replayed=True)
    assert outcome.exitcode == 1, outcome.raw
    lines = (home / "events").read_text().splitlines()
    events = tuple(Event.of(json.loads(line)) for line in lines)
    return RealRun(outcome.project, events, ET.parse(outcome.project / "junit.xml").getroot())


@pytest.fixture(scope="session")
def ours(real: RealRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our JUnit file of the run."""
    path = tmp_path_factory.mktemp("ours") / "gpu-cluster.xml"
    path.write_bytes(junit.write(real.report()))
    return path


@pytest.fixture(scope="session")
def interrupted(real: RealRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our JUnit file of the run, had its client been lost in the middle."""
    path = tmp_path_factory.mktemp("interrupted") / "gpu-cluster.xml"
    path.write_bytes(junit.write(real.half().report(CONTEXT, Ending())))
    return path
