"""`gpu-cluster report`: the report of sessions that other processes ran.

It also publishes what their clients could not.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from pytest_gpu_cluster import publish
from pytest_gpu_cluster.contract.errors import RequestError, UnreadableRecordError
from pytest_gpu_cluster.contract.ids import is_id
from pytest_gpu_cluster.contract.record import SessionRecord, session_ids
from pytest_gpu_cluster.contract.request import CI, SessionRequest
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.liveness import close_when_client_gone
from pytest_gpu_cluster.outputs import files_line
from pytest_gpu_cluster.publish.links import link
from pytest_gpu_cluster.publish.recorded import FORGED, NO_FORM, checked_step, refusal
from pytest_gpu_cluster.report import junit, render
from pytest_gpu_cluster.report.from_record import RecordedEvents, recorded_delta
from pytest_gpu_cluster.report.model import Report, ReportContext
from pytest_gpu_cluster.report.sinks import Closing, SinkContext, Sinks

RECENT = 300  # sessions that are looked through for those of a build …
RECENT_S = 86_400.0  # … and not older than this
SET_URL = "set public-url here, or give --gpu-profile the name that pytest was given"


def report_sessions(
    root: Path,
    settings: Settings,
    store: Store,
    *,
    session: str | None,
    publish_it: bool,
    junitxml: str | None,
) -> list[tuple[Mapping[str, object], str]]:
    """Return the report of each session, for machines and for people.

    Without `session` those of this pipeline build, or the last. Raises RequestError, StoreError.
    """
    sessions = [session] if session is not None else _sessions_of_build(store)
    summaries = {name: SessionRecord(store, name).summary() for name in sessions}
    if publish_it and session is None:  # what was published already is not published twice
        sessions = [
            name for name in sessions if not summaries[name] or summaries[name].get("not_reported")
        ]
    reports: list[tuple[Mapping[str, object], str]] = []
    for name in sessions:
        report, closing = report_session(
            SessionRecord(store, name),
            settings=settings,
            environ=os.environ,
            root=root,
            publish_it=publish_it,
            already_published=bool(summaries[name]),
        )
        if junitxml:
            _write_junit(Path(junitxml), report, strict=settings.reports.junit_strict)
        text = [
            render.markdown(report, limit=1_000_000),
            *(f"gpu-cluster: {x}" for x in closing.lines),
        ]
        text += [f"gpu-cluster: {line}"] if (line := files_line(SessionRecord(store, name))) else []
        reports.append((render.as_json(report), "\n".join(text)))
    return reports


def report_session(
    record: SessionRecord,
    *,
    settings: Settings,
    environ: Mapping[str, str],
    root: Path,
    publish_it: bool,
    already_published: bool = False,
    echo: Callable[[str], None] | None = None,
) -> tuple[Report, Closing]:
    """Return the report of a session as far as the store has it, and what its sinks said.

    `publish_it`: with the files and requests that its client would have made; without, nothing is
    written or sent. `already_published`: the host has the files and output lines already. `echo`
    takes lines that a host reads from the output; by default stderr, for stdout has the answer.
    """
    echo = echo or _to_stderr
    request = record.request()
    if request is None:
        raise RequestError(
            f"session {record.session} has no request in {record.store.url}",
            remedy="take an id from: gpu-cluster ls",
        )
    request = replace(request, session=record.session)
    final = close_when_client_gone(record)
    summary = record.summary()
    context = _context(record, request, settings, environ, root, publish_it=publish_it)
    sinks = Sinks(replace(context, already_published=already_published), request)
    events = RecordedEvents(record)
    for event in events:
        sinks.event(event)
    if not final:
        return sinks.current(), Closing()
    ending, compared = events.ending(), recorded_delta(summary)
    report = sinks.report(ending, compared=compared)
    if not publish_it:
        return report, Closing()
    closing = sinks.finish(ending, compared=compared)
    for line in sinks.last_output():
        echo(line)
    return replace(report, troubles=closing.troubles), closing


def _context(
    record: SessionRecord,
    request: SessionRequest,
    settings: Settings,
    environ: Mapping[str, str],
    root: Path,
    *,
    publish_it: bool,
) -> SinkContext:
    reports, refused = settings.reports, []
    suite, public_url = request.suite, reports.public_url or request.public_url
    if not is_id(suite):  # it becomes a file's name
        refused += [refusal("suite", suite, NO_FORM, FORGED)] if suite else []
        suite = reports.suite
    if publish_it and public_url != reports.public_url:
        refused.append(refusal("public-url", public_url, "the settings here have none", SET_URL))
        public_url = ""
    ci, unused = _ci(request, environ, publish_it=publish_it)
    url, own_page = link(public_url, record.session, ci)
    reports = replace(reports, suite=suite, public_url=public_url)
    if not publish_it:
        reports = replace(reports, publish=False, results_dir="")
    return SinkContext(
        settings=replace(settings, reports=reports),
        environ=environ,
        root=root,
        record=record,
        report=ReportContext(
            suite=suite,
            link=url,
            own_page=own_page,
            record=record.url,
            branch=ci.branch if ci is not None else "",
            commit=ci.commit if ci is not None else "",
        ),
        ci=ci,
        write=_to_stderr,
        echo=_to_stderr,
        live=False,
        refused=(*refused, *unused),
    )


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _ci(
    request: SessionRequest, environ: Mapping[str, str], *, publish_it: bool
) -> tuple[CI | None, tuple[str, ...]]:
    """Return where the session was asked for, by its record, and what of that is not published.

    Whom a token is sent to is for this process alone to say.
    """
    if request.ci is None:
        return publish.detect(environ), ()
    if not publish_it:
        return replace(request.ci, api=""), ()
    return checked_step(request.ci, environ)


def _sessions_of_build(store: Store) -> list[str]:
    """Return the last session of each suite of this pipeline build; outside of CI the last session.

    Older sessions of a suite are not reported.
    """
    sessions, ci = session_ids(store), publish.detect(os.environ)
    if ci is None or not ci.build:
        return sessions[-1:]
    last: dict[str, str] = {}
    for name in _recent(sessions):
        try:
            request = SessionRecord(store, name).request()
        except UnreadableRecordError:  # no request of ours, so none of this build's
            continue
        if request is None or request.quiet or request.ci is None:
            continue
        if (request.ci.host, request.ci.build) == (ci.host, ci.build):
            last[request.suite] = name
    return list(last.values())


def _recent(sessions: Iterable[str]) -> list[str]:
    """Return the newest sessions, by the time that an id begins with."""
    since = time.strftime("%Y%m%d-%H%M%S", time.gmtime(time.time() - RECENT_S))
    return [session for session in sessions if session >= since][-RECENT:]


def _write_junit(path: Path, report: Report, *, strict: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(junit.write(report, strict=strict))
    except OSError as problem:
        raise RequestError(
            f"{path} cannot be written: {problem.strerror}", remedy="give --junitxml another path"
        ) from problem
