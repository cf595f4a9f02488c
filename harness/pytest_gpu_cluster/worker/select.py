"""The role that selects tests: the one session that the user's conftests see from start to end."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pluggy
import pytest

from pytest_gpu_cluster.contract.codec import from_wire
from pytest_gpu_cluster.contract.events import (
    Collected,
    CollectorFinished,
    Deselected,
    Finishing,
    Header,
    Hello,
    Summary,
    WarningRaised,
)
from pytest_gpu_cluster.contract.messages import Collecting, FinishSession, Ready, ShowReports
from pytest_gpu_cluster.contract.records import (
    PluginLines,
    ReportData,
    TestRecord,
    WarningRecord,
    XmlRecord,
)
from pytest_gpu_cluster.contract.specs import WorkerSpec
from pytest_gpu_cluster.worker import snapshots
from pytest_gpu_cluster.worker.benchmarks import without_xdist
from pytest_gpu_cluster.worker.hooks import (
    Answer,
    module_of,
    record_answer,
    record_answers,
    shared_modules,
    surround,
    third_party,
)
from pytest_gpu_cluster.worker.masked_memory import MaskedMemory
from pytest_gpu_cluster.worker.prepare import Options
from pytest_gpu_cluster.worker.recorder import output_event
from pytest_gpu_cluster.worker.role import RemoteSession, stop_request
from pytest_gpu_cluster.worker.scopes import Scopes, distribution, is_reordered
from pytest_gpu_cluster.worker.selection_facts import (
    collection_problem,
    raised,
    selection_options,
    stepwise,
)
from pytest_gpu_cluster.worker.serialize import CollectionTable, plugin_lines, report_data
from pytest_gpu_cluster.worker.streams import Channel, Via

# Two of pytest's own plugins report on the selection.
SELECTION_PLUGINS = ("lfplugin", "stepwiseplugin")


class SelectingSession(RemoteSession):
    """Collects once, with the user's full arguments, and sends header, warnings and collection.

    Then it shows all records to the user's hooks, and ends as the one session.
    """

    def __init__(self, spec: WorkerSpec, channel: Channel, options: Options) -> None:
        super().__init__(spec, channel, options)
        self.answers: list[Answer] = []  # of plugins, since they were last sent
        self.has_snapshots = False  # the workers have reports of syrupy's
        self.showing = False  # the user's hooks see tests that ran elsewhere
        self.session: pytest.Session | None = None
        self.unsorted: Sequence[pytest.Item] = ()  # the tests before any plugin has sorted them
        # The arguments that lead out of the tree, by their place.
        self.arguments: dict[Path, str] = {}
        self.memory = MaskedMemory(spec)
        channel.send(
            Hello(
                root=spec.tree.root,
                origin=spec.tree.origin,
                workers=spec.workers,
                pytest=pytest.__version__,
                python=platform.python_version(),
                executable=sys.executable,
            )
        )

    # -- texts and warnings ------------------------------------------------------------------------

    def emit_text(self, via: Via, text: str) -> None:
        if not self.showing:
            fresh = via == "tw" and self.at_line_start()
            self.channel.send(output_event(via, text, fresh=fresh))

    def shows_summary_of(self, implementation: pluggy.HookImpl) -> bool:
        # What the client has, it writes itself; but it has seen no snapshot.
        is_syrupy = module_of(implementation) == snapshots.MODULE
        return is_syrupy or not self.is_shared(implementation)

    def is_shared(self, implementation: pluggy.HookImpl) -> bool:
        """Return True if the client has this plugin, too."""
        names = self.spec.client.plugins
        if implementation.plugin_name in names:
            return True
        return module_of(implementation).partition(".")[0] in shared_modules(self.config, names)

    def on_warning(self, record: WarningRecord) -> None:
        self.channel.send(WarningRaised(warning=record))

    def on_xml(self, record: XmlRecord) -> None:
        pass

    def configure(self, config: pytest.Config) -> None:
        """Have --nf sort by the client's times: here all files are as new as the session."""
        super().configure(config)
        self.memory.configure(config)
        plugin = config.pluginmanager.get_plugin("nfplugin")
        if plugin is not None and self.spec.client.mtimes:
            plugin._get_increasing_order = self.newest_first  # private

    def newest_first(self, items: Iterable[pytest.Item]) -> list[pytest.Item]:
        """Return the tests of the files that were changed last on the client before the others."""

        def time_of(item: pytest.Item) -> int:
            path = os.path.relpath(item.path, self.spec.tree.root)
            return self.spec.client.mtimes.get(path, 0)

        return sorted(items, key=time_of, reverse=True)

    # -- collecting --------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session
        record_answers(session.config.pluginmanager.hook.pytest_report_header, self.answers)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        self.texts.flush()
        self.channel.send(Header(parts=self.take_answers()))

    def take_answers(self) -> list[PluginLines]:
        """Return what plugins have answered since the last time, in the order of the terminal."""
        answers, self.answers[:] = self.answers[::-1], []
        return plugin_lines(answers, lines_of)

    def pytest_collectstart(self, collector: pytest.Collector) -> None:
        if isinstance(collector, pytest.File):
            self.channel.send(Collecting(path=collector.nodeid))
        elif isinstance(collector, pytest.Session):
            root = collector.config.rootpath
            self.arguments = {
                part.path: part.module_name or str(part.path)
                for part in collector._initial_parts  # private; known only now
                if not part.path.is_relative_to(root)
            }

    @pytest.hookimpl(tryfirst=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> pytest.CollectReport | None:
        """Make the file whose import killed an earlier process that file's error."""
        crashed = self.spec.crashed_files
        if isinstance(collector, pytest.File) and collector.nodeid in crashed:
            return pytest.CollectReport(collector.nodeid, "failed", crashed[collector.nodeid], [])
        return None

    @pytest.hookimpl(trylast=True)
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.texts.flush()
        data = report_data(self.config, report, self.lossy.names)
        kids = tuple(
            (isinstance(node, pytest.Item), node.nodeid, node.name) for node in report.result
        )
        self.channel.send(CollectorFinished(report=data, kids=kids))
        for warning in self.lossy.warnings(report.nodeid):
            self.channel.send(WarningRaised(warning=warning))

    @pytest.hookimpl(trylast=True)
    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.channel.send(Deselected(nodeids=tuple(item.nodeid for item in items)))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Iterator[None]:
        self.unsorted = tuple(items)
        self.memory.before_selection(self.config, items)
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> Iterator[None]:
        reported = session.config.pluginmanager.hook.pytest_report_collectionfinish
        record_answers(reported, self.answers)
        for name in SELECTION_PLUGINS:
            self.record_answers_of(name, reported)
        result = yield
        self.texts.flush()
        self.channel.send(self.collected(session, sys.exc_info()[1]))
        return result

    def record_answers_of(self, name: str, caller: pluggy.HookCaller) -> None:
        """Record the answers of one of pytest's own plugins, which selected the tests here."""
        plugin = self.config.pluginmanager.get_plugin(name)
        for implementation in caller.get_hookimpls():
            if plugin is not None and implementation.plugin is plugin:
                record_answer(implementation, f"remote {name}", self.answers)

    def collected(self, session: pytest.Session, in_flight: BaseException | None) -> Collected:
        """Return the selection. `in_flight` is the exception that is ending the collection."""
        scopes = Scopes(session.items, distribution(self.spec.distribute, session.config))
        table = CollectionTable(session.config, self.arguments, scopes.row)
        items = [table.item(item) for item in session.items]
        problem = collection_problem(session)
        return Collected(
            items=items,
            collectors=table.collectors,
            parts=self.take_answers(),
            raised=raised(in_flight),
            run=in_flight is None and not problem and not session.config.option.collectonly,
            problem=problem,
            options=selection_options(
                session.config,
                session.items,
                reordered=is_reordered(self.unsorted, session.items),
                scopes=scopes,
            ),
            stepwise=stepwise(session.config),
        )

    # -- the one session ---------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if problem := collection_problem(session):
            raise session.Interrupted(problem)
        if session.config.option.collectonly:
            return True
        self.channel.send(Ready())
        while (order := self.channel.receive(wait=True)) is not None:
            match order:
                case ShowReports(tests=tests):
                    for records in tests:
                        self.show(session, records)
                case FinishSession():
                    self.finish(session, order)
                    break
                case _:
                    raise ValueError(f"the process that selects tests got {order!r}")
        return True

    def finish(self, session: pytest.Session, order: FinishSession) -> None:
        """Let the session end as the tests have ended. Raises what a plain session raises."""
        self.texts.flush()
        session.testsfailed = max(session.testsfailed, order.testsfailed)
        snapshots.add_reports(session.config, order.snapshots)
        self.has_snapshots = bool(order.snapshots)
        if order.shouldfail:
            session.shouldfail = order.shouldfail
            raise session.Failed(order.shouldfail)
        if order.shouldstop:
            raise session.Interrupted(order.shouldstop)

    def show(self, session: pytest.Session, records: Iterable[TestRecord]) -> None:
        """Let the user's plugins see a test that ran elsewhere.

        What they print was printed there already.
        """
        config, self.showing = session.config, True
        try:
            for record in records:
                if record["kind"] == "report":
                    report = rebuilt(config, record["report"])
                    before = session.testsfailed, session.shouldfail
                    config.hook.pytest_runtest_logreport(report=report)
                    if "counted" in record:
                        session.testsfailed, session.shouldfail = before
                elif record["kind"] == "logstart" or record["kind"] == "logfinish":
                    hook = getattr(config.hook, f"pytest_runtest_{record['kind']}")
                    hook(nodeid=record["nodeid"], location=tuple(record["location"]))
        finally:
            self.texts.flush()
            self.showing = False

    # -- the end -----------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        self.channel.send(Finishing())
        self.tests_status = int(session.exitstatus)
        hook = session.config.pluginmanager.hook
        for implementation in third_party(hook.pytest_sessionfinish):
            if module_of(implementation) == snapshots.MODULE and self.has_snapshots:
                surround(implementation, lambda: without_xdist(session.config))
            elif self.is_shared(implementation):
                surround(implementation, lambda: status_kept(session))
        for implementation in third_party(hook.pytest_terminal_summary):
            name = implementation.plugin_name
            if module_of(implementation) == snapshots.MODULE and self.has_snapshots:
                surround(implementation, lambda: without_xdist(session.config))
                name = f"remote {name}"
            surround(implementation, self.part_of(name))
        result = yield
        self.texts.flush()
        self.channel.send(Summary(parts=self.parts))
        return result

    def stop_requests(self) -> tuple[bool | str | None, bool | str | None]:
        session = self.session
        if session is None:
            return None, None
        return stop_request(session.shouldfail), stop_request(session.shouldstop)


@contextlib.contextmanager
def status_kept(session: pytest.Session) -> Iterator[None]:
    """Undo a change of the exit status: the client's own copy of the plugin makes it there."""
    status = session.exitstatus
    try:
        yield
    finally:
        session.exitstatus = status


def lines_of(answer: object) -> list[str]:
    """Return the lines of a plugin's answer to a hook that reports lines."""
    if isinstance(answer, Iterable) and not isinstance(answer, str):
        return [str(line) for line in answer]
    return [str(answer)]


def rebuilt(config: pytest.Config, data: ReportData) -> pytest.TestReport:
    """Return the report that `report_data` made plain. A failure without a form is its text."""
    plain = dict(data)
    longrepr = plain["longrepr"]
    if isinstance(longrepr, dict) and "$repr" in longrepr:
        plain["longrepr"] = longrepr["$repr"][0]
    report: pytest.TestReport = config.hook.pytest_report_from_serializable(
        config=config, data=from_wire(plain)
    )
    return report
