"""Sinks: one line in a registry or an entry point each, and none of them can harm a run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract.events import Event, NodeReady, Requested, SessionFinished
from pytest_gpu_cluster.contract.failures import FailureClass
from pytest_gpu_cluster.contract.gpus import Gpu
from pytest_gpu_cluster.contract.record import Ending, SessionRecord
from pytest_gpu_cluster.contract.request import Limits, SessionRequest
from pytest_gpu_cluster.contract.settings import ReportSettings, Settings
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.report.model import ReportContext
from pytest_gpu_cluster.report.sinks import GROUP, SinkContext, Sinks

LIMITS = Limits(max_s=60, idle_s=0, test_timeout_s=60, infra_retries=2, default_gpus=None)
GPU = Gpu(id="0", name="H100", memory_gib=80.0, simulated=False)
NODE = NodeReady(node="head", host="h", gpus=(GPU,), driver="1", simulated=False, cluster="c1")

# A whole sink, as another distribution would bring it.
CHAT = """
from pytest_gpu_cluster.report.sinks import Closing, Sink

class Chat(Sink):
    def __init__(self):
        self.kinds = []

    @classmethod
    def create(cls, context, current):
        return cls()

    def event(self, event):
        self.kinds.append(event.kind)

    def finish(self, report):
        return Closing(lines=(f"chat heard {', '.join(self.kinds)} and {report.verdict}",))
"""


def request(session: str) -> SessionRequest:
    return SessionRequest(
        session=session,
        asked_at=0.0,
        provider="local",
        agent="x:y",
        root_name="project",
        origin="/project",
        cwd=".",
        args=(),
        passed=(),
        limits=LIMITS,
    )


class Session:
    """A session that only sinks see."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.lines: list[str] = []
        store = Store.open(str(folder / "store"), base=folder)
        record = SessionRecord(store, "s1")
        context = SinkContext(
            settings=settings,
            environ={},
            root=folder,
            record=record,
            report=ReportContext(suite=settings.reports.suite),
            ci=None,
            write=self.lines.append,
            echo=self.lines.append,
        )
        self.sinks = Sinks(context, request("s1"))

    def tell(self, *events: Event) -> None:
        for event in (Requested(request=request("s1")), *events):
            self.sinks.event(event)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution with a sink, as pip would lay it out."""
    site = tmp_path / "site"
    metadata = site / "acme_chat-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-chat\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\nchat = acme_chat:Chat\n")
    (site / "acme_chat.py").write_text(CHAT)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "acme_chat", raising=False)
    return site


@pytest.mark.usefixtures("installed")
def test_a_sink_from_outside_is_one_file_and_one_entry_point(tmp_path: Path) -> None:
    """A team that wants a message in its chat must not need a change of this package."""
    session = Session(tmp_path, Settings())
    session.tell(NODE)

    closing = session.sinks.finish(Ending(exit_code=0))

    assert closing.lines == ("chat heard request, node and passed",)


@pytest.mark.parametrize("method", ["create", "event", "finish"])
def test_a_sink_that_raises_is_dropped_and_that_is_said(
    tmp_path: Path, installed: Path, method: str
) -> None:
    """A chat server that is down must cost neither the run nor the other sinks their report."""
    broken = re.sub(rf"(def {method}\(.*\n)", r"\1        raise ZeroDivisionError\n", CHAT)
    (installed / "acme_chat.py").write_text(broken)
    session = Session(tmp_path, Settings(reports=ReportSettings(results_dir="results")))
    session.tell(NODE, SessionFinished(writer="agent", fit=True))

    closing = session.sinks.finish(Ending(exit_code=0))

    text = "\n".join(closing.lines)
    assert "the report failed in" in text
    assert "ZeroDivisionError" in text
    assert 'errors="0"' in (tmp_path / "results" / "gpu-cluster.xml").read_text()


def test_a_file_of_an_earlier_run_is_never_this_ones(tmp_path: Path) -> None:
    """A client that is killed leaves what it found: a green file would be read as its result."""
    results = tmp_path / "results"
    results.mkdir()
    for suffix in ("xml", "json", "md"):
        (results / f"gpu-cluster.{suffix}").write_text("all green")

    Session(tmp_path, Settings(reports=ReportSettings(results_dir="results")))

    assert [path.name for path in results.iterdir()] == ["gpu-cluster.xml"]
    assert "<error" in (results / "gpu-cluster.xml").read_text()


def test_on_a_laptop_no_report_is_built(tmp_path: Path) -> None:
    """Nobody reads it, and each of a thousand tests would pay for it."""
    session = Session(tmp_path, Settings())
    session.tell(NODE)

    session.sinks.finish(Ending(exit_code=0))

    assert not (tmp_path / "store" / "sessions").exists()
    assert session.sinks.facts.gpus == ["H100"]


@pytest.mark.usefixtures("installed")
def test_a_sink_that_cannot_be_loaded_costs_nothing_but_itself(
    tmp_path: Path, installed: Path
) -> None:
    """An entry point of another package must not turn every run of a team red."""
    (installed / "acme_chat.py").write_text("import no_such_module\n")
    session = Session(tmp_path, Settings(reports=ReportSettings(results_dir="results")))

    closing = session.sinks.finish(Ending(exit_code=0))

    assert "no_such_module" in "\n".join(closing.lines)
    assert (tmp_path / "results" / "gpu-cluster.xml").exists()


def test_the_last_output_comes_also_from_a_sink_that_was_dropped(
    tmp_path: Path, installed: Path
) -> None:
    """A host that was asked not to read the output has to be asked to read it again."""
    source = CHAT.replace("self.kinds.append(event.kind)", "1 / 0")
    last = "    def last_output(self, report):\n        return ['::resume::']\n"
    (installed / "acme_chat.py").write_text(source + last)
    session = Session(tmp_path, Settings())
    session.tell(NODE)

    session.sinks.finish(Ending(exit_code=0))

    assert session.sinks.last_output() == ["::resume::"]


def test_the_last_output_is_made_of_the_final_report(tmp_path: Path, installed: Path) -> None:
    """The last line of a log is what a reviewer reads: it must not say that the run goes on."""
    last = "    def last_output(self, report):\n        return [report.verdict]\n"
    (installed / "acme_chat.py").write_text(CHAT + last)
    session = Session(tmp_path, Settings())
    session.tell(NODE)

    session.sinks.finish(Ending(exit_code=12, failure_class=FailureClass.CAPACITY))

    assert session.sinks.last_output() == ["capacity"]


def test_junit_is_there_as_soon_as_the_cluster_is_gone(tmp_path: Path) -> None:
    """A host that kills a cancelled step does not wait for pytest's summary."""
    session = Session(tmp_path, Settings(reports=ReportSettings(results_dir="results")))
    session.tell(NODE, SessionFinished(writer="agent", fit=True))

    session.sinks.ended(Ending(exit_code=0))

    assert 'errors="0"' in (tmp_path / "results" / "gpu-cluster.xml").read_text()
