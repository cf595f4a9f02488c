"""What a session tells others than its terminal: files where the CI host finds them, the host itself, the branch's history.

    reporting = Reporting(...)       # live, from the client; `from_record` for a session that is in the store
    reporting.clear()                # a JUnit file that is no pass, should nothing follow
    reporting.begin()                # "running" at the host
    reporting.hear(event)
    reporting.end(exitstatus=…)       # after teardown: the JUnit file
    reporting.tell()                 # the host and the other files; returns lines for the terminal
    reporting.close()                # after those

Nothing here changes a verdict, and nothing raises for a host that refuses: it is said instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pytest_gpu_cluster import clusters, publish
from pytest_gpu_cluster.contract.codec import Event
from pytest_gpu_cluster.contract.errors import HarnessError, RequestError
from pytest_gpu_cluster.contract.journal import JournalReader
from pytest_gpu_cluster.contract.masking import masker
from pytest_gpu_cluster.contract.model import CI, SUITE_NAME, Settings
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.publish.sender import WITHIN_S, Courier
from pytest_gpu_cluster.report import delta, junit, render
from pytest_gpu_cluster.report.builder import ReportBuilder
from pytest_gpu_cluster.report.model import Delta, Ending, Report, ReportContext

PROGRESS_S = 30.0  # between two reports to the host on the way
CANCELLED_S = 8.0  # a host that cancels a step kills it soon
MARKDOWN_CHARS = 500_000


class Reporting:
    """`asked` is the session's request as its record has it; it may still grow until the first event."""

    def __init__(
        self,
        *,
        asked: Mapping[str, Any],
        settings: Settings,
        environ: Mapping[str, str],
        root: Path,
        store: Store,
        ci: CI | None,
        echo: Callable[[str], None] = print,
    ) -> None:
        self._asked, self._settings, self._store, self._ci, self._echo = (
            asked,
            settings,
            store,
            ci,
            echo,
        )
        self.directory = root / settings.results_dir if settings.results_dir else None
        self._mask = masker(environ)
        self._publisher = publish.publisher(ci, settings, environ) if ci is not None else None
        self._courier: Courier | None = None
        self._link, self._own_page = publish.link(settings.public_url, asked["session"], ci)
        self._builder = ReportBuilder(asked, mask=self._mask, prefix=asked.get("prefix", ""))
        self._told_at = 0.0
        self._report: Report | None = None
        self._troubles: list[str] = []  # of our own

    @property
    def report(self) -> Report:
        """At its end, else as it stands."""
        return self._report or self._make()

    def clear(self) -> None:
        """Before anything else: no file of an earlier run may be taken for this one's, and the one that is there is no pass."""
        for ending in ("json", "md") if self.directory is not None else ():
            with contextlib.suppress(OSError):
                self._path(ending).unlink()
        self._write("xml", junit.write(self.report, strict=self._settings.junit_strict))

    def begin(self) -> None:
        """From here on the host knows that something goes on."""
        if self._publisher is None:
            return
        for line in self._publisher.opening():
            self._echo(line)
        self._courier = Courier(self._publisher)
        self._courier.take(self._publisher.started(self.report))
        self._told_at = time.monotonic()

    def hear(self, event: Event) -> None:
        try:
            self._builder.add(event)
        except (
            Exception
        ) as problem:  # whatever a test or a plugin put into it: the run goes on, and this is said
            self._trouble(
                f"an event of kind {event.kind} could not be taken into the report: {type(problem).__name__}: {problem}"
            )
        if (
            self._courier is not None
            and self._publisher is not None
            and time.monotonic() - self._told_at > PROGRESS_S
        ):
            self._told_at = time.monotonic()
            self._courier.take(self._publisher.progressed(self._make()))

    def _trouble(self, what: str) -> None:
        if what not in self._troubles:
            self._troubles.append(self._mask(what))

    def end(
        self,
        *,
        exitstatus: int | None,
        failure_class: str | None = None,
        message: str = "",
        remedy: str = "",
        cancelled: bool = False,
        compared: Delta | None = None,
    ) -> Report:
        """The final report, in the JUnit file already. `compared`: what an earlier report of this session had found."""
        ending = Ending(
            exit_code=exitstatus,
            failure_class=failure_class,
            message=message,
            remedy=remedy,
            cancelled=cancelled,
        )
        report = self._make(ending)
        self._report = dataclasses.replace(report, delta=compared or self._compare(report))
        self._write("xml", junit.write(self._report, strict=self._settings.junit_strict))
        return self._report

    def tell(self, *, again: bool = False) -> list[str]:
        """Bring the final report to whoever wants it; lines for the terminal. Bounded, and never raises for a host.

        `again`: what a host reads from files and from the output, it has.
        """
        assert self._report is not None
        lines = list(self._troubles)
        self._report = dataclasses.replace(self._report, troubles=tuple(lines))
        if self._publisher is not None:
            within_s = CANCELLED_S if self._report.verdict == "cancelled" else WITHIN_S
            self._courier = self._courier or Courier(self._publisher)
            told, troubles = self._courier.deliver(
                self._publisher.finished(self._report), within_s=within_s
            )
            troubles = [
                *self._troubles,
                *(self._mask(trouble) for trouble in (*self._publisher.troubles, *troubles)),
            ]
            self._report = dataclasses.replace(self._report, troubles=tuple(troubles))
            if told:
                lines.append(f"told {self._publisher.name}: {', '.join(told)}")
            lines += [
                *(f"{self._publisher.name}: {note}" for note in self._publisher.notes),
                *troubles[len(self._troubles) :],
            ]
        self._write_all(lines, again=again)
        self._keep()
        return lines

    def close(self) -> None:
        """After the last line of the terminal: from here on the host reads the output again, where it had been asked not to."""
        for line in self._publisher.closing(self.report) if self._publisher is not None else ():
            self._echo(line)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _make(self, ending: Ending | None = None) -> Report:
        ci, record = self._ci, f"{self._store.url}/sessions/{self._asked['session']}"
        context = ReportContext(
            suite=self._settings.suite,
            link=self._link,
            own_page=self._own_page,
            record=record,
            branch=ci.branch if ci else "",
            commit=ci.commit if ci else "",
        )
        return self._builder.report(context, ending)

    def _path(self, ending: str) -> Path:
        assert self.directory is not None
        return self.directory / f"{self._settings.suite}.{ending}"

    def _write(self, ending: str, data: bytes) -> bool:
        """A whole file or the one that was there; what cannot be written is said, and changes nothing."""
        if self.directory is None:
            return False
        path = self._path(ending)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".{path.name}.{os.getpid()}")
            beside.write_bytes(data)
            beside.replace(path)
        except OSError as problem:
            self._trouble(f"{path} could not be written: {problem.strerror}")
            return False
        return True

    def _write_all(self, lines: list[str], *, again: bool) -> None:
        assert self._report is not None
        if self.directory is not None:
            written = self._write("json", render.json_text(self._report).encode())
            if (
                self._write("md", render.markdown(self._report, limit=MARKDOWN_CHARS).encode())
                and written
            ):
                lines.append(
                    f"results for this host: {self.directory / self._settings.suite}.xml, .json and .md"
                )
        for path, text, append in (
            self._publisher.files(self._report, self.directory)
            if self._publisher is not None and not again
            else ()
        ):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a" if append else "w", encoding="utf-8") as file:
                    file.write(text)
            except OSError as problem:
                lines.append(f"{path} could not be written: {problem.strerror}")

    def _compare(self, report: Report) -> Delta | None:
        """Against the last session of the branch that this is for, else of its own."""
        if self._ci is None or not (branch := self._ci.target or self._ci.branch):
            return None
        with contextlib.suppress(
            HarnessError
        ):  # a store that is away is the session's own failure, said elsewhere
            return delta.compare(report, self._store.get(delta.key(branch, self._settings.suite)))
        return None

    def _keep(self) -> None:
        """The summary in the record, and the results as the branch's last: not a pull request's, whose code is not on it yet."""
        assert self._report is not None
        with contextlib.suppress(HarnessError):
            self._store.put(
                f"sessions/{self._report.session}/summary.json",
                render.json_text(self._report).encode(),
            )
            own = self._ci is not None and self._ci.branch and not self._ci.pull_request
            if (
                own
                and self._ci is not None
                and (data := delta.results_of(self._report)) is not None
            ):
                self._store.put(delta.key(self._ci.branch, self._settings.suite), data)


# --- from the store -------------------------------------------------------------------------------------------------


def refused(root: Path, environ: Mapping[str, str], problem: HarnessError) -> None:
    """In CI: what could not even be asked for is in the JUnit file too, in the place of what passed the last time."""
    if publish.detect(environ) is None:
        return
    folder, suite = environ.get("GPU_CLUSTER_RESULTS_DIR", ""), environ.get("GPU_CLUSTER_SUITE", "")
    inside = folder and not folder.startswith(("/", "~")) and ".." not in folder.split("/")
    path = (
        root
        / (folder if inside else "test-results")
        / f"{suite if re.fullmatch(SUITE_NAME, suite) else 'gpu-cluster'}.xml"
    )
    mask = masker(environ)
    report = Report(
        session="none",
        suite=path.stem,
        verdict="request",
        message=mask(problem.what),
        remedy=mask(problem.remedy),
    )
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(junit.write(report))


def to_stderr(line: str) -> None:
    """A host reads both streams, and a command's answer is on the other."""
    print(line, file=sys.stderr)


def from_record(
    session: str,
    *,
    settings: Settings,
    environ: Mapping[str, str],
    root: Path,
    store: Store,
    publish_it: bool = False,
    echo: Callable[[str], None] = to_stderr,
) -> Reporting:
    """The report of a session that another process ran, as far as the store has it. Raises RequestError, StoreError.

    `publish_it`: with the files and the requests that its client would have made; without, nothing is written or sent.
    """
    raw = store.get(f"sessions/{session}/request.json")
    if raw is None:
        raise RequestError(
            f"session {session} has no request in {store.url}",
            remedy="take an id from: gpu-cluster ls",
        )
    asked = json.loads(raw)
    public_url, suite = (
        settings.public_url or asked.get("public_url", ""),
        str(asked.get("suite", "")),
    )
    suite = suite if re.fullmatch(SUITE_NAME, suite) else settings.suite  # it becomes a file's name
    settings = dataclasses.replace(settings, suite=suite, public_url=public_url)
    if not publish_it:
        settings = dataclasses.replace(settings, publish=False, results_dir="")
    made = Reporting(
        asked=asked,
        settings=settings,
        environ=environ,
        root=root,
        store=store,
        ci=_place(asked, environ),
        echo=echo,
    )
    final = clusters.settle(store, session)
    gap = _follow(made, JournalReader(store, f"sessions/{session}/events"))
    if final:
        result = {**json.loads(store.get(f"sessions/{session}/result.json") or b"{}"), **gap}
        made.end(
            exitstatus=result.get("exitstatus"),
            failure_class=result.get("failure_class"),
            message=result.get("message") or "",
            remedy=result.get("remedy", ""),
            cancelled=bool(result.get("cancelled")),
            compared=_compared(store, session),
        )
    return made


def _place(asked: Mapping[str, Any], environ: Mapping[str, str]) -> CI | None:
    """Where the session was asked for. Its record says so; whom a token is sent to is for this process alone to say."""
    ci = publish.detect(environ)
    names = {field.name for field in dataclasses.fields(CI)}
    if said := {name: value for name, value in (asked.get("ci") or {}).items() if name in names}:
        ci = dataclasses.replace(CI(**said), api=publish.api(said["host"], environ))
    return ci


def _follow(made: Reporting, reader: JournalReader) -> dict[str, Any]:
    """Take in all that is there; of a journal with a hole what it means for the result."""
    try:
        while events := reader.poll():
            for event in events:
                made.hear(Event.of(event))
    except HarnessError as problem:
        return {
            "exitstatus": None,
            "failure_class": "infrastructure",
            "message": problem.what,
            "remedy": problem.remedy,
        }
    return {}


def summary(store: Store, session: str) -> dict[str, Any]:
    """What was told of a session; empty where nothing was."""
    with contextlib.suppress(ValueError):
        said = json.loads(store.get(f"sessions/{session}/summary.json") or b"{}")
        return said if isinstance(said, dict) else {}
    return {}


def of_build(store: Store, sessions: Iterable[str], ci: CI) -> list[str]:
    """The last session of each suite among those that steps of this pipeline build have run: an older one is nobody's news any more."""
    last: dict[str, str] = {}
    for session in sessions:
        with contextlib.suppress(
            ValueError, KeyError, TypeError
        ):  # what is no request of ours is none of this build's
            asked = json.loads(store.get(f"sessions/{session}/request.json") or b"{}")
            if not asked.get("quiet") and (asked["ci"]["host"], asked["ci"]["build"]) == (
                ci.host,
                ci.build,
            ):
                last[str(asked["suite"])] = session
    return list(last.values())


def _compared(store: Store, session: str) -> Delta | None:
    """What the client had found: by now the branch's last session may be this one."""
    said = summary(store, session).get("delta")
    if said is None:
        return None
    lists = {
        name: tuple(tuple(v) if isinstance(v, list) else v for v in value)
        for name, value in said.items()
        if isinstance(value, list)
    }
    return Delta(**{**said, **lists})
