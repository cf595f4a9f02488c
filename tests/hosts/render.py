"""A page of HTML for the content of a host, in that host's looks, for the eyes of a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import singledispatch
from html import escape
from pathlib import Path
from typing import Any

from tests.hosts.bitbucket import FakeBitbucket
from tests.hosts.github import FakeGitHub
from tests.hosts.github_runner import job_summary, workflow_commands
from tests.hosts.gitlab import JOB_ID, PIPELINE_ID, FakeGitLab, annotations_report
from tests.hosts.markdown import rendered
from tests.hosts.server import Host

GOOD, BAD, BUSY, GREY = "good", "bad", "busy", "grey"
ICONS = {GOOD: "✓", BAD: "✕", BUSY: "●", GREY: "–"}
COLOURS: Mapping[str, str] = {  # by host: font, accent, good, bad, busy, grey, page, border
    "bitbucket": "--font:-apple-system,'Segoe UI',Roboto,sans-serif;--accent:#0c66e4;"
    "--good:#22a06b;--bad:#c9372c;--busy:#0c66e4;--grey:#626f86;--page:#f7f8f9;--border:#dcdfe4",
    "github": "--font:-apple-system,'Segoe UI','Noto Sans',Helvetica,sans-serif;--accent:#0969da;"
    "--good:#1a7f37;--bad:#cf222e;--busy:#9a6700;--grey:#59636e;--page:#f6f8fa;--border:#d1d9e0",
    "gitlab": "--font:-apple-system,'Noto Sans',Ubuntu,sans-serif;--accent:#1068bf;"
    "--good:#108548;--bad:#dd2b0e;--busy:#1f75cb;--grey:#737278;--page:#fbfafd;--border:#dcdcde",
}
STYLE = Path(__file__).with_name("page.css").read_text("utf-8")


@singledispatch
def page(host: Host, *, stdout: str = "", report: Path | None = None) -> str:
    """HTML of a whole page.

    `stdout` is a step's output, for GitHub; `report` a job's annotations report, for GitLab.
    """
    raise TypeError(f"no page for {type(host).__name__}")


@page.register
def _(host: FakeBitbucket, *, stdout: str = "", report: Path | None = None) -> str:
    statuses = [_bitbucket_status(body) for body in host.statuses.values()]
    reports = [
        _bitbucket_report(body, host.annotations(*key)) for key, body in host.reports.items()
    ]
    comments = [
        _comment(
            comment["user"]["display_name"],
            comment["content"]["raw"],
            tags=False,
            deleted=comment["deleted"],
        )
        for comment in host.comments
    ]
    sections = [_section("Builds", statuses), *reports, _section("Activity", comments)]
    return _page(
        "bitbucket",
        f"Pull request #{host.pull_request}",
        f"{host.workspace}/{host.slug} · {host.branch} → {host.target}",
        sections,
    )


@page.register
def _(host: FakeGitHub, *, stdout: str = "", report: Path | None = None) -> str:
    latest = {
        entry["context"].lower(): entry for entry in host.statuses if entry["sha"] == host.commit
    }
    checks = [_github_status(entry) for entry in latest.values()]
    checks += [_github_check(run) for run in host.check_runs if run["head_sha"] == host.commit]
    annotations = [
        annotation
        for run in host.check_runs
        for annotation in run.get("output", {}).get("annotations", [])
    ]
    commands = [
        entry
        for entry in workflow_commands(stdout)
        if entry.shown and entry.name in ("error", "warning", "notice")
    ]
    shown = [_github_command(entry.name, entry.params, entry.message) for entry in commands]
    shown += [
        _annotation(
            _level(annotation["annotation_level"]),
            annotation,
            annotation["start_line"],
            annotation.get("title", ""),
            annotation["message"],
        )
        for annotation in annotations
    ]
    texts = [run["output"] for run in host.check_runs if "output" in run]
    comments = [
        _comment(comment["user"]["login"], comment["body"], tags=True) for comment in host.comments
    ]
    sections = [_section("Checks", checks), _section("Annotations", shown)]
    sections += [
        _section(text["title"], [_body(f"{text['summary']}\n\n{text.get('text', '')}", tags=True)])
        for text in texts
    ]
    if host.summary_path is not None and (summary := job_summary(host.summary_path)):
        sections.append(_section("gpu summary", [_body(summary, tags=True)]))
    sections.append(_section("Conversation", comments))
    return _page(
        "github",
        f"Pull request #{host.pull_request}",
        f"{host.repository} · {host.target} ← {host.branch}",
        sections,
    )


@page.register
def _(host: FakeGitLab, *, stdout: str = "", report: Path | None = None) -> str:
    outcomes = [entry["status"] for entry in host.statuses]
    outcome = next(
        (
            state
            for state in ("failed", "running", "pending", "canceled", "success")
            if state in outcomes
        ),
        "",
    )
    widget = [_row(_gitlab_kind(outcome), f"Pipeline #{PIPELINE_ID}", outcome)] if outcome else []
    widget += [
        _row(
            _gitlab_kind(entry["status"]),
            entry["name"],
            entry["description"] or entry["status"],
            entry["target_url"],
        )
        for entry in host.statuses
    ]
    links = [
        _row(GREY, annotation.section, "", annotation.url, annotation.label)
        for annotation in (annotations_report(report) if report is not None else [])
    ]
    notes = [_comment(note["author"]["name"], note["body"], tags=True) for note in host.notes]
    sections = [_section("Merge request pipeline", widget), _section("Activity", notes)]
    sections += [_section(f"On the page of job #{JOB_ID}", links)] if links else []
    return _page(
        "gitlab",
        f"Merge request !{host.merge_request}",
        f"{host.path} · {host.branch} into {host.target}",
        sections,
    )


# Bitbucket.


def _bitbucket_status(status: Mapping[str, Any]) -> str:
    kinds = {"SUCCESSFUL": GOOD, "FAILED": BAD, "INPROGRESS": BUSY, "STOPPED": GREY}
    return _row(
        kinds[status["state"]],
        status.get("name") or status["key"],
        status.get("description", ""),
        status["url"],
    )


def _bitbucket_report(report: Mapping[str, Any], annotations: list[dict[str, Any]]) -> str:
    kind = {"PASSED": GOOD, "FAILED": BAD}.get(report.get("result", ""), BUSY)
    fields = "".join(
        f"<div><dt>{escape(entry['title'])}</dt><dd>{value(entry)}</dd></div>"
        for entry in report.get("data", [])
    )
    link = f"<p>{_link(report['link'], 'View full report')}</p>" if "link" in report else ""
    reporter = (
        f"<p class='sub'>Reporter: {escape(report['reporter'])}</p>"
        if report.get("reporter")
        else ""
    )
    head = f"{_tag(kind, report.get('result', 'no result'))} {_lines(report['details'])}"
    card = f"<div class='body'>{head}<dl>{fields}</dl>{link}{reporter}</div>"
    by_place = sorted(
        annotations, key=lambda annotation: (annotation.get("path", ""), annotation.get("line", 0))
    )
    return _section(
        f"Code Insights · {report['title']}", [card, *map(_bitbucket_annotation, by_place)]
    )


def _bitbucket_annotation(annotation: Mapping[str, Any]) -> str:
    kind = {"FAILED": BAD, "PASSED": GOOD}.get(annotation.get("result", ""), GREY)
    severity = f"{annotation.get('severity', '')} {annotation.get('result', '')}".strip()
    return _annotation(
        kind,
        annotation,
        annotation.get("line"),
        annotation["summary"],
        annotation.get("details", ""),
        severity,
        annotation.get("link", ""),
    )


def value(item: Mapping[str, Any]) -> str:
    """HTML of a data field of a report, as its type has it: DURATION and DATE are milliseconds."""
    content = item["value"]
    match item.get("type"):
        case "BOOLEAN":
            return "Yes" if content else "No"
        case "DATE":
            return datetime.fromtimestamp(content / 1000, UTC).strftime("%d %b %Y, %H:%M")
        case "DURATION":
            return duration(content)
        case "LINK":
            return _link(content["href"], content["text"])
        case "NUMBER":
            return f"{content:,}"
        case "PERCENTAGE":
            return f"{content:g}%"
        case _:
            return escape(str(content))


def duration(milliseconds: float) -> str:
    """1h 2m 3s, without what is zero before it.

    >>> duration(83_000), duration(950)
    ('1m 23s', '0s')
    """
    minutes, seconds = divmod(int(milliseconds // 1000), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "m"), (seconds, "s")]
    while len(parts) > 1 and parts[0][0] == 0:
        parts.pop(0)
    return " ".join(f"{count}{unit}" for count, unit in parts)


# GitHub and GitLab.


def _github_status(status: Mapping[str, Any]) -> str:
    kinds = {"success": GOOD, "failure": BAD, "error": BAD, "pending": BUSY}
    return _row(
        kinds[status["state"]],
        status["context"],
        status["description"] or status["state"],
        status["target_url"],
    )


def _github_check(run: Mapping[str, Any]) -> str:
    good, grey = {"success"}, {"neutral", "skipped", "cancelled"}
    conclusion = run["conclusion"]
    kind = (
        BUSY
        if conclusion is None
        else GOOD
        if conclusion in good
        else GREY
        if conclusion in grey
        else BAD
    )
    return _row(
        kind,
        run["name"],
        run.get("output", {}).get("title", run["status"]),
        run.get("details_url"),
    )


def _github_command(name: str, params: Mapping[str, str], message: str) -> str:
    line = int(params["line"]) if params.get("line", "").isdecimal() else None
    return _annotation(
        _level(name),
        {"path": params.get("file", "")},
        line,
        params.get("title", name.capitalize()),
        message,
    )


def _level(name: str) -> str:
    return {"error": BAD, "failure": BAD, "warning": BUSY}.get(name, GREY)


def _gitlab_kind(state: str) -> str:
    return {"success": GOOD, "failed": BAD, "running": BUSY, "pending": BUSY}.get(state, GREY)


# What they share.


def _page(host: str, title: str, sub: str, sections: Iterable[str]) -> str:
    style = STYLE % COLOURS[host]
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{style}</style>"
    body = f"<h1>{escape(title)}</h1><p class='sub'>{escape(sub)}</p>{''.join(sections)}"
    main = f"<body class='{host}'><main>{body}</main></body>"
    return f"<!DOCTYPE html><html lang='en'><head>{head}</head>{main}</html>"


def _section(title: str, rows: Iterable[str]) -> str:
    body = "".join(rows) or "<div class=none>None.</div>"
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _row(kind: str, name: str, say: str, url: str | None = None, label: str = "Details") -> str:
    link = _link(url, label) if url else ""
    text = f"<span class='name'>{escape(name)}</span><span class='say'>{escape(say)}</span>"
    return f"<div class='row'>{_icon(kind)}{text}{link}</div>"


def _annotation(
    kind: str,
    annotation: Mapping[str, Any],
    line: int | None,
    title: str,
    text: str,
    tag: str = "",
    url: str = "",
) -> str:
    path = annotation.get("path", "")
    place = escape(f"{path}:{line}" if path and line else path or "overview")
    more = f"<pre>{escape(text)}</pre>" if text else ""
    link = _link(url, "Details") if url else ""
    label = _tag(kind, tag) if tag else ""
    head = f"<span class='file'>{place}</span> {label} <b>{_lines(title)}</b> {link}"
    text = f"<div class='say' style='color:inherit'>{head}{more}</div>"
    return f"<div class='row'>{_icon(kind)}{text}</div>"


def _comment(author: str, text: str, *, tags: bool, deleted: bool = False) -> str:
    body = "<p class='gone'>This comment was deleted.</p>" if deleted else rendered(text, tags=tags)
    row = f"<div class='row'><span class='name'>{escape(author)}</span></div>"
    return f"{row}<div class='body'>{body}</div>"


def _body(text: str, *, tags: bool) -> str:
    return f"<div class='body'>{rendered(text, tags=tags)}</div>"


def _icon(kind: str) -> str:
    return f"<span class='icon {kind}'>{ICONS[kind]}</span>"


def _tag(kind: str, text: str) -> str:
    return f"<span class='tag {kind}'>{escape(text)}</span>"


def _link(url: str, label: str) -> str:
    return f'<a href="{escape(url)}">{escape(label)}</a>'


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")
