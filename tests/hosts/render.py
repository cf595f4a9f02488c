"""What a reviewer sees: one page of HTML for what a host has stored, in that host's looks, to be opened in a browser and looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import singledispatch
from html import escape
from pathlib import Path
from typing import Any

from tests.hosts.bitbucket import FakeBitbucket
from tests.hosts.github import FakeGitHub, job_summary, workflow_commands
from tests.hosts.gitlab import JOB_ID, PIPELINE_ID, FakeGitLab, annotations_report
from tests.hosts.markdown import rendered
from tests.hosts.server import Host

GOOD, BAD, BUSY, GREY = "good", "bad", "busy", "grey"
ICONS = {GOOD: "✓", BAD: "✕", BUSY: "●", GREY: "–"}
COLOURS: Mapping[str, str] = {  # by host: font, accent, good, bad, busy, grey, page, border
    "bitbucket": "--font:-apple-system,'Segoe UI',Roboto,sans-serif;--accent:#0c66e4;--good:#22a06b;--bad:#c9372c;--busy:#0c66e4;"
    "--grey:#626f86;--page:#f7f8f9;--border:#dcdfe4",
    "github": "--font:-apple-system,'Segoe UI','Noto Sans',Helvetica,sans-serif;--accent:#0969da;--good:#1a7f37;--bad:#cf222e;"
    "--busy:#9a6700;--grey:#59636e;--page:#f6f8fa;--border:#d1d9e0",
    "gitlab": "--font:-apple-system,'Noto Sans',Ubuntu,sans-serif;--accent:#1068bf;--good:#108548;--bad:#dd2b0e;--busy:#1f75cb;"
    "--grey:#737278;--page:#fbfafd;--border:#dcdcde",
}
STYLE = """
:root { %s }
body { font: 14px/1.5 var(--font); color: #1f2328; background: var(--page); margin: 0; }
main { max-width: 1000px; margin: 24px auto; padding: 0 16px; }
h1 { font-size: 22px; font-weight: 600; margin: 0 0 4px; } .sub { color: var(--grey); margin: 0 0 20px; }
section { background: #fff; border: 1px solid var(--border); border-radius: 6px; margin: 0 0 16px; overflow: hidden; }
section > h2 { font-size: 13px; font-weight: 600; margin: 0; padding: 8px 16px; border-bottom: 1px solid var(--border); }
section > h2 { background: var(--page); }
.row { display: flex; gap: 10px; padding: 10px 16px; border-top: 1px solid var(--border); align-items: baseline; }
.row:first-of-type { border-top: 0; } .row .name { font-weight: 600; } .row .say { color: var(--grey); flex: 1; overflow-wrap: anywhere; }
.icon { color: #fff; border-radius: 50%%; width: 18px; height: 18px; line-height: 18px; text-align: center; font-size: 11px; flex: none; }
.good { background: var(--good); } .bad { background: var(--bad); } .busy { background: var(--busy); } .grey { background: var(--grey); }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.body { padding: 12px 16px; overflow-wrap: anywhere; } .body > :first-child { margin-top: 0; } .body > :last-child { margin-bottom: 0; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; margin: 12px 0 0; }
dt { color: var(--grey); font-size: 12px; } dd { margin: 0; font-size: 16px; font-weight: 600; overflow-wrap: anywhere; }
table { border-collapse: collapse; } td, th { border: 1px solid var(--border); padding: 4px 10px; text-align: left; }
pre { background: var(--page); border-radius: 6px; padding: 10px 12px; overflow: auto; white-space: pre-wrap; }
code { font: 12px/1.5 ui-monospace, Menlo, Consolas, monospace; background: var(--page); padding: 1px 4px; border-radius: 4px; }
pre code { padding: 0; }
.tag { border-radius: 3px; color: #fff; font-size: 11px; font-weight: 600; padding: 1px 6px; }
.file { font: 12px ui-monospace, Menlo, monospace; }
blockquote { border-left: 4px solid var(--border); color: var(--grey); margin: 0; padding: 0 12px; }
.none { color: var(--grey); padding: 10px 16px; } .gone { color: var(--grey); font-style: italic; }
"""


@singledispatch
def page(host: Host, *, stdout: str = "", report: Path | None = None) -> str:
    """HTML of a whole page. `stdout` is a step's output, for GitHub; `report` a job's annotations report, for GitLab."""
    raise TypeError(f"no page for {type(host).__name__}")


@page.register
def _(host: FakeBitbucket, *, stdout: str = "", report: Path | None = None) -> str:
    statuses = [_bitbucket_status(held) for held in host.statuses.values()]
    reports = [_bitbucket_report(held, host.annotations(*at)) for at, held in host.reports.items()]
    comments = [
        _comment(
            one["user"]["display_name"], one["content"]["raw"], tags=False, gone=one["deleted"]
        )
        for one in host.comments
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
    latest = {one["context"].lower(): one for one in host.statuses if one["sha"] == host.commit}
    checks = [_github_status(one) for one in latest.values()]
    checks += [_github_check(one) for one in host.check_runs if one["head_sha"] == host.commit]
    annotations = [
        one for run in host.check_runs for one in run.get("output", {}).get("annotations", [])
    ]
    commands = [
        one
        for one in workflow_commands(stdout)
        if one.shown and one.name in ("error", "warning", "notice")
    ]
    shown = [_github_command(one.name, one.params, one.message) for one in commands]
    shown += [
        _annotation(
            _level(one["annotation_level"]),
            one,
            one["start_line"],
            one.get("title", ""),
            one["message"],
        )
        for one in annotations
    ]
    texts = [run["output"] for run in host.check_runs if "output" in run]
    comments = [_comment(one["user"]["login"], one["body"], tags=True) for one in host.comments]
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
    outcomes = [one["status"] for one in host.statuses]
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
            _gitlab_kind(one["status"]),
            one["name"],
            one["description"] or one["status"],
            one["target_url"],
        )
        for one in host.statuses
    ]
    links = [
        _row(GREY, one.section, "", one.url, one.label)
        for one in (annotations_report(report) if report is not None else [])
    ]
    notes = [_comment(one["author"]["name"], one["body"], tags=True) for one in host.notes]
    sections = [_section("Merge request pipeline", widget), _section("Activity", notes)]
    sections += [_section(f"On the page of job #{JOB_ID}", links)] if links else []
    return _page(
        "gitlab",
        f"Merge request !{host.merge_request}",
        f"{host.path} · {host.branch} into {host.target}",
        sections,
    )


# Bitbucket.


def _bitbucket_status(held: Mapping[str, Any]) -> str:
    kinds = {"SUCCESSFUL": GOOD, "FAILED": BAD, "INPROGRESS": BUSY, "STOPPED": GREY}
    return _row(
        kinds[held["state"]],
        held.get("name") or held["key"],
        held.get("description", ""),
        held["url"],
    )


def _bitbucket_report(held: Mapping[str, Any], annotations: list[dict[str, Any]]) -> str:
    kind = {"PASSED": GOOD, "FAILED": BAD}.get(held.get("result", ""), BUSY)
    fields = "".join(
        f"<div><dt>{escape(one['title'])}</dt><dd>{value(one)}</dd></div>"
        for one in held.get("data", [])
    )
    link = f"<p>{_link(held['link'], 'View full report')}</p>" if "link" in held else ""
    reporter = (
        f"<p class='sub'>Reporter: {escape(held['reporter'])}</p>" if held.get("reporter") else ""
    )
    card = f"<div class='body'>{_tag(kind, held.get('result', 'no result'))} {_lines(held['details'])}<dl>{fields}</dl>{link}{reporter}</div>"
    by_place = sorted(annotations, key=lambda one: (one.get("path", ""), one.get("line", 0)))
    return _section(
        f"Code Insights · {held['title']}", [card, *map(_bitbucket_annotation, by_place)]
    )


def _bitbucket_annotation(one: Mapping[str, Any]) -> str:
    kind = {"FAILED": BAD, "PASSED": GOOD}.get(one.get("result", ""), GREY)
    severity = f"{one.get('severity', '')} {one.get('result', '')}".strip()
    return _annotation(
        kind,
        one,
        one.get("line"),
        one["summary"],
        one.get("details", ""),
        severity,
        one.get("link", ""),
    )


def value(item: Mapping[str, Any]) -> str:
    """HTML of a data field of a report, as its type has it: DURATION and DATE are milliseconds."""
    given = item["value"]
    match item.get("type"):
        case "BOOLEAN":
            return "Yes" if given else "No"
        case "DATE":
            return datetime.fromtimestamp(given / 1000, UTC).strftime("%d %b %Y, %H:%M")
        case "DURATION":
            return duration(given)
        case "LINK":
            return _link(given["href"], given["text"])
        case "NUMBER":
            return f"{given:,}"
        case "PERCENTAGE":
            return f"{given:g}%"
        case _:
            return escape(str(given))


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


def _github_status(held: Mapping[str, Any]) -> str:
    kinds = {"success": GOOD, "failure": BAD, "error": BAD, "pending": BUSY}
    return _row(
        kinds[held["state"]],
        held["context"],
        held["description"] or held["state"],
        held["target_url"],
    )


def _github_check(held: Mapping[str, Any]) -> str:
    good, grey = {"success"}, {"neutral", "skipped", "cancelled"}
    done = held["conclusion"]
    kind = BUSY if done is None else GOOD if done in good else GREY if done in grey else BAD
    return _row(
        kind,
        held["name"],
        held.get("output", {}).get("title", held["status"]),
        held.get("details_url"),
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
    return f"<!DOCTYPE html><html lang='en'><head>{head}</head><body class='{host}'><main>{body}</main></body></html>"


def _section(title: str, rows: Iterable[str]) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(rows) or '<div class=none>None.</div>'}</section>"


def _row(kind: str, name: str, say: str, url: str | None = None, label: str = "Details") -> str:
    link = _link(url, label) if url else ""
    return f"<div class='row'>{_icon(kind)}<span class='name'>{escape(name)}</span><span class='say'>{escape(say)}</span>{link}</div>"


def _annotation(
    kind: str,
    one: Mapping[str, Any],
    line: int | None,
    title: str,
    text: str,
    tag: str = "",
    url: str = "",
) -> str:
    path = one.get("path", "")
    place = escape(f"{path}:{line}" if path and line else path or "overview")
    more = f"<pre>{escape(text)}</pre>" if text else ""
    link = _link(url, "Details") if url else ""
    head = f"<span class='file'>{place}</span> {_tag(kind, tag) if tag else ''} <b>{_lines(title)}</b> {link}"
    return f"<div class='row'>{_icon(kind)}<div class='say' style='color:inherit'>{head}{more}</div></div>"


def _comment(author: str, text: str, *, tags: bool, gone: bool = False) -> str:
    body = "<p class='gone'>This comment was deleted.</p>" if gone else rendered(text, tags=tags)
    return f"<div class='row'><span class='name'>{escape(author)}</span></div><div class='body'>{body}</div>"


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
