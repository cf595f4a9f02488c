"""The role that collects once, with the user's full arguments, and then stays: the session that the user's conftests see."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pluggy
import pytest

from pytest_gpu_cluster.contract.codec import from_wire
from pytest_gpu_cluster.worker.hooks import answers, around, foreign, installed
from pytest_gpu_cluster.worker.prepare import Options
from pytest_gpu_cluster.worker.role import Role
from pytest_gpu_cluster.worker.serialize import Nodes, plugin_parts, report_data
from pytest_gpu_cluster.worker.streams import Channel

# A plugin with one of these may want to see every report.
CURIOUS = ("logreport", "logstart", "logfinish")


class Select(Role):
    """Emits header, warnings, collect reports and the collection; then hears all records and ends as the one session."""

    def __init__(self, spec: dict[str, Any], channel: Channel, options: Options) -> None:
        super().__init__(spec, channel, options)
        self.crashed: dict[str, str] = spec.get("crashed_files") or {}
        self.answers: list[tuple[str, Any]] = []
        self.part: list[str] | None = None  # of the summary that is being written
        self.parts: list[dict[str, Any]] = []
        self.feeding = False
        self.session: pytest.Session | None = None
        self.arguments: dict[Path, str] = {}  # those that lead out of the tree, by where
        channel.send(
            "hello",
            root=spec["root"],
            origin=spec["origin"],
            workers=spec["workers"],
            pytest=pytest.__version__,
            python=platform.python_version(),
            executable=sys.executable,
        )

    # -- texts and warnings --------------------------------------------------------------------------------------------

    def emit_text(self, via: str, text: str) -> None:
        if self.part is not None:
            self.part.append(text)
        elif not self.feeding:
            self.channel.send(**self.said(via, text))

    def summarises(self, plugin: str) -> bool:
        return plugin not in self.spec["plugins"]  # those say it on the client

    def hear_warning(self, record: dict[str, Any]) -> None:
        self.channel.send(**record)

    def hear_xml(self, **record: Any) -> None:
        pass

    # -- collecting ----------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session
        answers(session.config.pluginmanager.hook.pytest_report_header, self.answers)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        self.flush()
        self.channel.send("header", parts=self.heard())

    def heard(self) -> list[dict[str, Any]]:
        """What plugins answered since the last time, the first one to be shown first."""
        heard, self.answers[:] = self.answers[::-1], []
        return plugin_parts(
            heard,
            lambda answer: [answer] if isinstance(answer, str) else [str(line) for line in answer],
        )

    def pytest_collectstart(self, collector: pytest.Collector) -> None:
        if isinstance(collector, pytest.File):
            self.channel.send("collecting", path=collector.nodeid)
        elif isinstance(collector, pytest.Session):
            parts = collector._initial_parts  # private; known only now
            root = collector.config.rootpath
            self.arguments = {
                part.path: part.module_name or str(part.path)
                for part in parts
                if not part.path.is_relative_to(root)
            }

    @pytest.hookimpl(tryfirst=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> pytest.CollectReport | None:
        """A file whose import killed an earlier process is that file's error, not another death."""
        if isinstance(collector, pytest.File) and collector.nodeid in self.crashed:
            return pytest.CollectReport(
                collector.nodeid, "failed", self.crashed[collector.nodeid], []
            )
        return None

    @pytest.hookimpl(trylast=True)
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.flush()
        data = report_data(self.config, report, self.lossy)
        kids = [[isinstance(node, pytest.Item), node.nodeid, node.name] for node in report.result]
        self.channel.send("collectreport", report=data, kids=kids)
        for warning in self.take_lossy(report.nodeid):
            self.channel.send(**warning)

    @pytest.hookimpl(trylast=True)
    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.channel.send("deselected", nodeids=[item.nodeid for item in items])

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> Iterator[None]:
        reported = session.config.pluginmanager.hook.pytest_report_collectionfinish
        answers(reported, self.answers)
        for name in ("lfplugin", "stepwiseplugin"):
            self.listen_to(name, reported)
        result = yield
        self.flush()
        in_flight = sys.exc_info()[1]
        nodes = Nodes(session.config, self.arguments)
        items = [nodes.item(item) for item in session.items]
        problem = self.problem(session)
        self.channel.send(
            "collected",
            items=items,
            collectors=nodes.collectors,
            parts=self.heard(),
            raised=self.raised(in_flight),
            run=in_flight is None and not problem and not session.config.option.collectonly,
            problem=problem,
            options=self.told_options(session.config),
            stepwise=self.stepwise(session.config),
        )
        return result

    def listen_to(self, name: str, reported: pluggy.HookCaller) -> None:
        """Two of pytest's own plugins report on the selection, which was made here."""
        plugin = self.config.pluginmanager.get_plugin(name)
        implementation: Any  # pluggy calls its `function` final
        for implementation in reported.get_hookimpls():
            if plugin is not None and implementation.plugin is plugin:
                function = implementation.function

                def call(*args: Any, function: Any = function) -> Any:
                    answer = function(*args)
                    self.answers.append((f"remote {name}", answer))
                    return answer

                implementation.function = call

    @staticmethod
    def raised(problem: BaseException | None) -> dict[str, str] | None:
        """What ended the collection before its end: `-x`, or a hook that stopped the session."""
        if isinstance(problem, pytest.Session.Failed):
            return {"kind": "failed", "text": str(problem)}
        return (
            {"kind": "interrupted", "text": str(problem)}
            if isinstance(problem, pytest.Session.Interrupted)
            else None
        )

    @staticmethod
    def problem(session: pytest.Session) -> str:
        """Why no test may run, as pytest says it; empty when they may."""
        failed = session.testsfailed
        if failed and not session.config.option.continue_on_collection_errors:
            return f"{failed} error{'s' if failed != 1 else ''} during collection"
        return ""

    def told_options(self, config: pytest.Config) -> dict[str, Any]:
        option = config.option
        return {
            "maxfail": option.maxfail,
            "capture": getattr(option, "capture", "no"),
            "stepwise": bool(getattr(option, "stepwise", False)),
            "randomly_seed": getattr(option, "randomly_seed", None),
            "wants_reports": self.wants_reports(config),
        }

    def wants_reports(self, config: pytest.Config) -> bool:
        """Whether a hook of the user's own (not of an installed plugin, which the client runs itself) may ask for them."""
        known = installed(config)
        hook = config.pluginmanager.hook
        hooks = [getattr(hook, f"pytest_runtest_{name}") for name in CURIOUS]
        hooks += [hook.pytest_terminal_summary, hook.pytest_sessionfinish, hook.pytest_unconfigure]
        return any(
            (i.function.__module__ or "").partition(".")[0] not in known
            for caller in hooks
            for i in foreign(caller)
        )

    @staticmethod
    def stepwise(config: pytest.Config) -> dict[str, Any] | None:
        plugin: Any = config.pluginmanager.get_plugin("stepwiseplugin")
        if plugin is None:
            return None
        failed = plugin.cached_info.last_failed
        return {
            "last_failed": None if failed is None else str(failed),
            "last_test_count": plugin.cached_info.last_test_count,
        }

    # -- the one session -----------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if problem := self.problem(session):
            raise session.Interrupted(problem)
        if session.config.option.collectonly:
            return True
        while (message := self.channel.receive(wait=True)) is not None:
            for records in message.get("reports", ()):
                self.feed(session.config, records)
            if "finish" in message:
                self.finish(session, message["finish"])
                break
        return True

    def finish(self, session: pytest.Session, said: dict[str, Any]) -> None:
        self.flush()
        session.testsfailed = max(session.testsfailed, int(said.get("testsfailed") or 0))
        if said.get("shouldfail"):
            session.shouldfail = said["shouldfail"]
            raise session.Failed(said["shouldfail"])
        if said.get("shouldstop"):
            raise session.Interrupted(said["shouldstop"])

    def feed(self, config: pytest.Config, records: list[dict[str, Any]]) -> None:
        """Let the user's plugins see a test that ran elsewhere; what they print was printed there already."""
        self.feeding = True
        try:
            for record in records:
                match record["kind"]:
                    case "logstart" | "logfinish" as kind:
                        hook = getattr(config.hook, f"pytest_runtest_{kind}")
                        hook(nodeid=record["nodeid"], location=tuple(record["location"]))
                    case "report":
                        data = dict(record["report"])
                        if isinstance(data["longrepr"], dict) and "$repr" in data["longrepr"]:
                            data["longrepr"] = data["longrepr"]["$repr"][0]
                        report = config.hook.pytest_report_from_serializable(
                            config=config, data=from_wire(data)
                        )
                        config.hook.pytest_runtest_logreport(report=report)
        finally:
            self.flush()
            self.feeding = False

    # -- the end -------------------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        self.channel.send("finishing")
        for implementation in foreign(session.config.pluginmanager.hook.pytest_terminal_summary):
            around(implementation, self.writing(implementation.plugin_name))
        result = yield
        self.flush()
        self.channel.send("summary", parts=self.parts)
        return result

    def writing(self, plugin: str) -> Callable[[], AbstractContextManager[None]]:
        """A part of the summary: what a plugin writes, to the reporter or to stdout."""

        @contextlib.contextmanager
        def context() -> Iterator[None]:
            self.flush()
            self.part = []
            if self.options.asked.get("xmlpath") or self.options.asked.get("htmlpath"):
                self.reporter.currentfspath = (
                    None  # their own lines, which the client writes, end the line of results
                )
            try:
                with self.outlet.into(lambda text: self.text("tw", text)):
                    yield
            finally:
                self.flush()
                text, self.part = "".join(self.part), None
                if text:
                    self.parts.append(
                        {
                            "plugin": plugin,
                            "text": text,
                            "fresh": self.reporter.currentfspath is None,
                        }
                    )

        return context

    def outcome(self) -> dict[str, Any]:
        session = self.session
        if session is None:
            return {}
        return {"shouldfail": session.shouldfail, "shouldstop": session.shouldstop}
