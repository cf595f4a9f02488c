"""Remote events become local pytest hooks, so that reporters and plugins here work as if the tests had run here.

`Replay` is fed by whoever owns the loop:

    replay = Replay(config)          # in pytest_configure; registers itself as a plugin
    replay.facts()                   # what the remote pytest has to know of this one
    replay.collect(events, session)  # in pytest_collection: until the selection is known
    replay.run(events, session)      # in pytest_runtestloop: to the last event; raises what plain pytest would raise there
    replay.lose(session, why, failure_class=…)   # instead, when no further event will come
    replay.finish(session)           # in pytest_sessionfinish, before reporters write: order, caches, cross-check
    replay.own_failures              # of tests themselves, not of machines

`events` may be any iterable; `collect` and `run` go on where the other stopped, so an iterator must survive being left.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
from _pytest._io import TerminalWriter
from _pytest.config import create_terminal_writer
from _pytest.junitxml import xml_key

from pytest_gpu_cluster.contract.codec import Event, PathMap, crash_records, from_wire
from pytest_gpu_cluster.host import deserialize

OWN = (None, "test", "crash", "timeout")  # failure classes that are the tests' own
PRIVATE = "gpu-cluster"


class RemoteInterrupt(KeyboardInterrupt):
    """A test pressed Ctrl-C, so to say: KeyboardInterrupt was raised on the cluster."""


class RemoteInternalError(Exception):
    """pytest itself, or a plugin, failed on the cluster; the text is its traceback."""


class Replay:
    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.workers = 1
        self.own_failures = 0
        self.problems: list[str] = []  # each of them forbids exit code 0
        self.ended: Event | None = None
        self._map = PathMap([])
        self._items: list[pytest.Item] = []
        self._seen_items: dict[str, deserialize.RemoteItem] = {}  # of the collect reports
        self._index: dict[str, list[int]] = {}
        self._reported: set[int] = set()
        self._expected = False  # every collected test has to be reported
        self._raise: BaseException | None = (
            None  # what ends the session here, once the remote one has ended
        )
        self._begun = ""
        self._statuses: dict[int, tuple[Any, Any]] = {}
        self._ours: list[Any] = []  # warnings that are shown: not those of this process
        self._rank: dict[int, int] = {}
        self._tail: list[Event] = []
        self._finishing = False
        self._summary: list[Mapping[str, Any]] = []
        self._usage = ""
        self._seen: dict[str, int] = {}
        self._held: Any = None
        config.notify_exception = MethodType(_notify, config)  # type: ignore[method-assign]
        config.pluginmanager.register(self, "gpu_cluster_replay")
        config.pluginmanager.register(Summary(self), "gpu_cluster_summary")

    @property
    def terminal(self) -> Any:
        return self.config.pluginmanager.get_plugin("terminalreporter")

    def path_here(self, path: str) -> str:
        """A path of the cluster as it is on this machine."""
        return self._map.text(path)

    def facts(self) -> dict[str, Any]:
        """Plugins, colour, columns, cache, seed and import path, resolved here, for the remote pytest to follow."""
        shown = hasattr(self.config.option, "color")  # not with -p no:terminal
        writer = create_terminal_writer(self.config, sys.stdout) if shown else TerminalWriter()
        cache = getattr(self.config, "cache", None)
        names = ("lastfailed", "nodeids", "stepwise") if cache is not None else ()
        seed = getattr(self.config.option, "randomly_seed", None)
        inside = [
            path
            for path in sys.path
            if Path(path or ".").resolve().is_relative_to(self.config.rootpath)
        ]
        return {
            "plugins": [
                name
                for name, plugin in self.config.pluginmanager.list_name_plugin()
                if plugin is not None
            ],
            "sys_path": [
                str(Path(path or ".").resolve())
                for path in inside
                if not path.startswith(sys.prefix)
            ],
            "color": "yes" if writer.hasmarkup else "no",
            "columns": writer.fullwidth,
            "seed": seed if isinstance(seed, int) else None,
            "cache": {name: cache.get(f"cache/{name}", None) for name in names}
            if cache is not None
            else {},
        }

    # -- the two stages ------------------------------------------------------------------------------------------------

    def collect(self, events: Iterable[Event], session: pytest.Session) -> None:
        """Follow the selection; at its end the session has its items. Raises what stopped it."""
        held = self._release()
        self._forget_local_warnings()
        waiting: list[Event] = []  # a selection that dies starts again: shown when it is final
        for event in self._checked(events):
            if event.kind == "selection_restarted":
                waiting.clear()
            elif event.kind == "header":
                self._show_header(event)
            elif event.kind in ("warning", "collectreport", "deselected", "output", "collected"):
                waiting.append(event)
            else:
                self._apply(event, session)
            if event.kind in ("collected", "session_finished"):
                break
        self._write(held)
        raised = None
        for event in waiting:
            self._apply(event, session)
            raised = event.get("raised") or raised
        if raised:
            self._raise = (session.Failed if raised["kind"] == "failed" else session.Interrupted)(
                raised["text"]
            )
        if self._raise or self.ended:
            self._drain(events, session)

    def run(self, events: Iterable[Event], session: pytest.Session) -> None:
        """Replay tests as they finish, to the session's last event. Raises Failed, Interrupted, Exit … as pytest would."""
        self._drain(events, session)

    def expect_no_end(self) -> None:
        """The user has interrupted the run: what is missing is no surprise."""
        self.ended = self.ended or Event(
            "session_finished", {"failure_class": "interrupted", "exitstatus": None}
        )

    def lose(self, session: pytest.Session, why: str, *, failure_class: str) -> None:
        """No further event will come: every test without a result is an error that says so."""
        self.ended = self.ended or Event(
            "session_finished", {"failure_class": failure_class, "exitstatus": None}
        )
        for index in self._missing():
            item = self._items[index]
            records = crash_records(
                item.nodeid, item.location, when="setup", text=f"{failure_class}: {why}"
            )
            self._test(
                Event(
                    "test_finished",
                    {
                        "nodeid": item.nodeid,
                        "index": index,
                        "records": records,
                        "failure_class": failure_class,
                    },
                ),
                session,
            )

    def _drain(self, events: Iterable[Event], session: pytest.Session) -> None:
        if self.ended is None:
            for event in self._checked(events):
                self._apply(event, session)
                if event.kind == "session_finished":
                    break
                if (
                    event.kind in ("test_finished", "late")
                    and self._raise is None
                    and self._stop(session)
                ):
                    break
        if self._raise is not None:
            raise self._raise
        if self.ended is None:
            self.problems.append("the events stopped before the end of the session")

    def _stop(self, session: pytest.Session) -> bool:
        """Whether to end now. A stop that the cluster knows of too is waited for, so that its own end is shown as well."""
        if session.shouldfail:
            self._raise = session.Failed(session.shouldfail)
        elif session.shouldstop:
            self._raise = session.Interrupted(session.shouldstop)
            return not getattr(self.config.option, "stepwise", False)
        return False

    def _checked(self, events: Iterable[Event]) -> Iterator[Event]:
        """Each event once and in order: a gap is remembered, a repetition dropped."""
        for event in events:
            last = self._seen.get(event.writer)
            if event.seq and last is not None:
                if event.seq <= last:
                    continue
                if event.seq > last + 1:
                    self.problems.append(
                        f"events {last + 1} to {event.seq - 1} of {event.writer} are missing"
                    )
            if event.seq:
                self._seen[event.writer] = event.seq
            yield event

    # -- events --------------------------------------------------------------------------------------------------------

    def _apply(self, event: Event, session: pytest.Session) -> None:
        if self._finishing and event.kind == "output":
            self._tail.append(event)
            return
        match event.kind:
            case "hello":
                self.workers = event["workers"]
                self._map = PathMap([(event["root"], str(self.config.rootpath))])
            case "header":
                self._show_header(event)
            case "warning":
                self._warn(event.data)
            case "collectreport":
                self._collect_report(event, session)
            case "deselected":
                nodes = [
                    deserialize.node(session, {"nodeid": nodeid, "name": nodeid}, item=True)
                    for nodeid in event["nodeids"]
                ]
                self.config.hook.pytest_deselected(items=nodes)
            case "collected":
                self._collected(event, session)
            case "output":
                self._output(event, live=True)
            case "test_started":
                self._started(event)
            case "test_finished":
                self._test(event, session)
            case "late":
                self._records(event["records"], session)
            case "internal_error" | "interrupted" | "usage_error":
                self._broken(event, session)
            case "finishing":
                self._finishing = True
            case "summary":
                self._summary = event["parts"]
            case "session_finished":
                self.ended = event
            case (
                "session"
                | "phase"
                | "node"
                | "node_lost"
                | "worker_lost"
                | "retry"
                | "selection_restarted"
            ):
                pass  # told by the progress display and the page
            case unknown:
                raise ValueError(f"no replay for events of kind {unknown!r}")

    def _show_header(self, event: Event) -> None:
        terminal = self.terminal
        if terminal is not None and terminal.showheader and not terminal.no_header:
            for line in self._foreign(event["parts"]):
                terminal.write_line(self._map.text(line))

    def _foreign(self, parts: Iterable[Mapping[str, Any]]) -> Iterator[str]:
        """Lines of plugins that do not answer for themselves here."""
        for part in parts:
            if not self.config.pluginmanager.has_plugin(part["plugin"]):
                yield from part["lines"]

    def _collect_report(self, event: Event, session: pytest.Session) -> None:
        report = deserialize.collect_report(self.config, self._map(event["report"]))
        report.result = [
            deserialize.node(session, {"nodeid": nodeid, "name": name}, item=item)
            for item, nodeid, name in event["kids"]
        ]
        for node in report.result:
            if isinstance(node, deserialize.RemoteItem):
                self._seen_items.setdefault(node.nodeid, node)
        self.own_failures += report.failed
        self.config.hook.pytest_collectreport(report=report)

    def _collected(self, event: Event, session: pytest.Session) -> None:
        items = deserialize.items(
            session, event["collectors"], event["items"], reported=self._seen_items
        )
        session.items = self._items = items
        for index, item in enumerate(items):
            self._index.setdefault(item.nodeid, []).append(index)
        self._adopt_caches(event)
        self._lines = [self._map.text(line) for line in self._foreign(event["parts"])]
        terminal = self.terminal
        if terminal is not None and self.workers > 1:
            terminal.showfspath = False  # files finish mixed
        self.config.hook.pytest_collection_finish(session=session)
        if not event["raised"]:
            session.testscollected = len(items)
        for made in getattr(self.config.stash.get(xml_key, None), "node_reporters_ordered", ()):
            self._rank[id(made)] = -1
        self._expected = event["run"]
        if event["problem"]:
            self._raise = self._raise or session.Interrupted(event["problem"])

    _lines: list[str] | None = None

    def pytest_report_collectionfinish(self) -> list[str] | None:
        return self._lines

    def _adopt_caches(self, event: Event) -> None:
        """The selection was made there: the plugins that make it here only keep their files."""
        plugin = self.config.pluginmanager.get_plugin
        if (failed := plugin("lfplugin")) is not None:
            failed.active = False
        if (new := plugin("nfplugin")) is not None:
            new.cached_nodeids.update(getattr(item, "id", item.nodeid) for item in self._items)
        if (stepwise := plugin("stepwiseplugin")) is not None and event["stepwise"]:
            said, info = event["stepwise"], stepwise.cached_info
            info.last_test_count = said["last_test_count"]
            if said["last_failed"] is None or str(info.last_failed) != said["last_failed"]:
                info.last_failed = None
            stepwise.report_status = []

    # -- tests ---------------------------------------------------------------------------------------------------------

    def _place(self, event: Event) -> int | None:
        """Where in the collection a test is; None for one that was not collected."""
        if (index := event.get("index")) is not None:
            return int(index)
        places = self._index.get(event["nodeid"], [])
        return next(
            (place for place in places if place not in self._reported),
            places[-1] if places else None,
        )

    def _started(self, event: Event) -> None:
        """With one worker the name of a test is shown while it runs, and its live output after it."""
        index = self._place(event)
        if (
            self.workers == 1
            and self._raise is None
            and index is not None
            and self._begun != event["nodeid"]
        ):
            item = self._items[index]
            self._begun = item.nodeid
            self.config.hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)

    def _test(self, event: Event, session: pytest.Session) -> None:
        index = self._place(event)
        if self._raise is not None or (event.get("index") is not None and index in self._reported):
            return
        if index is not None:
            self._reported.add(index)
        failed = any(
            record["kind"] == "report" and record["report"]["outcome"] == "failed"
            for record in event["records"]
        )
        self.own_failures += failed and event.get("failure_class") in OWN
        xml: Any = self.config.stash.get(xml_key, None)
        before = len(xml.node_reporters_ordered) if xml else 0
        self._records(event["records"], session, paths=event.get("paths", True))
        for made in xml.node_reporters_ordered[before:] if xml else ():
            self._rank[id(made)] = len(self._items) if index is None else index

    def _records(
        self, records: Iterable[Mapping[str, Any]], session: pytest.Session, *, paths: bool = True
    ) -> None:
        """One test's hooks, in their order, with nothing in between; `paths`: they may name files of the remote tree."""
        hook = self.config.hook
        for record in records:
            match record["kind"]:
                case "logstart":
                    if self._begun != record["nodeid"]:
                        hook.pytest_runtest_logstart(
                            nodeid=record["nodeid"], location=tuple(record["location"])
                        )
                    self._begun = ""
                case "report":
                    report = deserialize.report(
                        self.config, self._map(record["report"]) if paths else record["report"]
                    )
                    self._statuses[id(report)] = (report, from_wire(record["status"]))
                    hook.pytest_runtest_logreport(report=report)
                case "logfinish":
                    hook.pytest_runtest_logfinish(
                        nodeid=record["nodeid"], location=tuple(record["location"])
                    )
                case "warning":
                    self._warn(record)
                case "output":
                    self._output(record, live=False)
                case "log_file":
                    self._log_file(record["text"])
                case "xml_attribute" | "xml_property" | "xml_global":
                    self._xml(record)
                case unknown:
                    raise ValueError(f"no replay for records of kind {unknown!r}")
        self._begun = ""

    def _missing(self) -> list[int]:
        return [index for index in range(len(self._items)) if index not in self._reported]

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: Any) -> Any:
        """A conftest decides letters and words; it was asked on the cluster."""
        found = self._statuses.get(id(report))
        return found[1] if found is not None and found[0] is report else None

    def _warn(self, record: Mapping[str, Any]) -> None:
        said = self._map(dict(record))
        location = from_wire(said["location"])
        stats = self.terminal.stats if self.terminal is not None else {}
        before = len(stats.get("warnings", ()))
        arguments = {
            "warning_message": deserialize.warning(said),
            "when": said["when"],
            "nodeid": said["nodeid"],
            "location": location,
        }
        self.config.hook.pytest_warning_recorded.call_historic(kwargs=arguments)
        self._ours += stats.get("warnings", [])[before:]

    def _output(self, said: Any, *, live: bool) -> None:
        """Text that a plugin or a test wrote past pytest's capture."""
        text = self._map.text(said["text"])
        if live and self.workers > 1 and said.get("worker") and not self._finishing:
            text = "".join(
                f"[{said.get('worker')}] {line}" for line in text.splitlines(keepends=True)
            )
            self._write(
                "\n"
                if self.terminal is not None and self.terminal._tw.width_of_current_line
                else "",
                fresh=True,
            )
        via = said.get("via") or ("err" if said.get("fd") == 2 else "out")
        if via == "tw":
            self._write(text, fresh=said.get("fresh", False))
        else:
            stream = sys.stderr if via == "err" else sys.stdout
            stream.write(text)
            stream.flush()

    def _write(self, text: str, *, fresh: bool = False) -> None:
        """Through the reporter; `fresh`: the remote reporter is no longer inside a line of its own."""
        if text and self.terminal is not None:
            self.terminal._tw.write(text, flush=True)
            if fresh:
                self.terminal.currentfspath = None

    def _log_file(self, text: str) -> None:
        plugin = self.config.pluginmanager.get_plugin("logging-plugin")
        with contextlib.suppress(AttributeError):
            plugin.log_file_handler.stream.write(text)  # type: ignore[union-attr]

    def _xml(self, record: Mapping[str, Any]) -> None:
        xml: Any = self.config.stash.get(xml_key, None)
        if xml is None:
            return
        name, value = record["name"], self._map.text(record["value"])
        if record["kind"] == "xml_global":
            if self.workers == 1 or not any(known == name for known, _ in xml.global_properties):
                xml.add_global_property(name, value)
        elif record["kind"] == "xml_attribute":
            xml.node_reporter(record["nodeid"]).add_attribute(name, value)
        else:
            xml.node_reporter(record["nodeid"]).add_property(name, value)

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _broken(self, event: Event, session: pytest.Session) -> None:
        """The remote session ended by something else than its tests; the first such thing counts."""
        if self._raise is not None:
            return
        text = self._map.text(event["text"])
        self._records(event.get("records", ()), session)
        if event.kind == "usage_error":
            self._usage = text
            self._raise = pytest.UsageError()
        elif event.kind == "internal_error":
            self._raise = RemoteInternalError(text)
        else:
            self._raise = self._interruption(event, text, session)

    def _interruption(self, event: Event, text: str, session: pytest.Session) -> BaseException:
        if event.get("shouldfail"):
            session.shouldfail = event["shouldfail"]
            return session.Failed(event["shouldfail"])
        if event.get("shouldstop"):
            session.shouldstop = event["shouldstop"]
            return session.Interrupted(event["shouldstop"])
        stop = (
            pytest.exit.Exception(text, event.get("returncode"))
            if event.get("exit")
            else RemoteInterrupt(text)
        )
        if event.get("longrepr"):
            stop.remote_repr = deserialize.exception_repr(self.config, self._map(event["longrepr"]))  # type: ignore[union-attr]
        return stop

    @pytest.hookimpl(trylast=True)
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """The place that is shown is the test's, not this module's."""
        shown = getattr(excinfo.value, "remote_repr", None)
        if shown is not None and self.terminal is not None:
            self.terminal._keyboardinterrupt_memo = shown

    def finish(self, session: pytest.Session) -> None:
        """Before reporters write: what the remote session wrote at its end, the order of JUnit, the cross-check."""
        self._finishing = False
        for event in self._tail:
            self._output(event, live=True)
        xml: Any = self.config.stash.get(xml_key, None)
        if xml is not None:
            xml.node_reporters_ordered.sort(
                key=lambda made: self._rank.get(id(made), len(self._items))
            )
        self._cross_check(int(session.exitstatus))
        if self.problems and session.exitstatus in (0, 1, 5):
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR

    def _cross_check(self, here: int) -> None:
        ended = self.ended
        if ended is None or ended.get("failure_class") or self._raise is not None:
            if ended is None and not self.problems and self._raise is None:
                self.problems.append("the end of the remote session never arrived")
            return
        there = ended.get("exitstatus")
        if self._expected and (missing := self._missing()):
            names = ", ".join(self._items[index].nodeid for index in missing[:3])
            self.problems.append(
                f"{len(missing)} collected tests have no result: {names}{' …' if len(missing) > 3 else ''}"
            )
        if there is None:
            self.problems.append("the remote session did not say how it ended")
        elif there != here:
            self.problems.append(
                f"the remote pytest ended with exit code {there}, its results give {here}"
            )

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self) -> Iterator[None]:
        """Keep pytest's own "collecting ..." until the remote header lines are above it."""
        terminal = self.terminal
        if terminal is not None:
            self._held = (terminal._tw, terminal._tw._file, io.StringIO())
            terminal._tw._file = self._held[2]
        try:
            return (yield)
        finally:
            self._write(self._release())

    def _release(self) -> str:
        """Let the reporter write again; what it has written meanwhile."""
        if self._held is None:
            return ""
        (writer, file, kept), self._held = self._held, None
        writer._file, writer._current_line = (
            file,
            "",
        )  # private: nothing of it stands on the terminal yet
        return str(kept.getvalue())

    def _forget_local_warnings(self) -> None:
        """Warnings of this process are about a pytest that runs nothing; the remote one has told its own."""
        terminal = self.terminal
        if terminal is not None and (
            terminal.stats.pop("warnings", None) is not None or self._ours
        ):
            if self._ours:
                terminal.stats["warnings"] = list(self._ours)
            terminal._set_main_color()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self) -> Iterator[None]:
        self._forget_local_warnings()
        return (yield)

    def write_summary(self) -> None:
        """What the user's conftests say at the end."""
        for part in self._summary:
            if not self.config.pluginmanager.has_plugin(part["plugin"]):
                self._write(self._map.text(part["text"]), fresh=part["fresh"])

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        if self._usage:
            sys.stderr.write(self._usage)


class Summary:
    """A plugin beside Replay, whose own pytest_terminal_summary surrounds the reporter's."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        self.replay.write_summary()
        for problem in self.replay.problems:
            terminalreporter.write_line(f"{PRIVATE}: {problem}", red=True)


def _notify(
    config: pytest.Config, excinfo: pytest.ExceptionInfo[BaseException], option: Any = None
) -> None:
    """`Config.notify_exception`, with the remote traceback for an error that happened there."""
    if not isinstance(excinfo.value, RemoteInternalError):
        type(config).notify_exception(config, excinfo, option)
        return
    text = str(excinfo.value)
    if not any(
        config.hook.pytest_internalerror(
            excrepr=deserialize.RemoteRepr(text, text), excinfo=excinfo
        )
    ):
        sys.stderr.write("".join(f"INTERNALERROR> {line}\n" for line in text.split("\n")))
