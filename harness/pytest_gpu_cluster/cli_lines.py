"""The lines of `gpu-cluster ls` and `gpu-cluster logs`, from what the store has.

A test may have put any text there, and GitHub's runner reads what a step prints.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping

from pytest_gpu_cluster.contract.errors import UnreadableRecordError
from pytest_gpu_cluster.contract.events import TestFinished
from pytest_gpu_cluster.contract.fields import JsonObject, JsonValue
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.record_check import LAST_SECOND

# Of an event, the keys that a reader looks for.
SHOWN = (
    *("name", "detail", "seconds", "nodeid", "when", "attempt", "worker"),
    *("failure_class", "status", "exitstatus", "message", "text"),
)
# All but tab and newline: those of terminals, those that turn the order of a line, half characters.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def for_runner(text: str, environ: Mapping[str, str]) -> str:
    """Return a text in which GitHub's runner takes no line as a command; elsewhere it stays."""
    if environ.get("GITHUB_ACTIONS") != "true":
        return text
    word = secrets.token_hex(16)  # only this process knows what ends the time without commands
    return f"::stop-commands::{word}\n{text}\n::{word}::"


def session_row(record: SessionRecord) -> JsonObject:
    """Return what `ls --json` says of a session."""
    row: JsonObject = {"session": record.session, "exitstatus": None, "asked_at": None}
    row |= {"branch": "", "closed_by": None}
    try:
        request, result = record.request(), record.result()
    except UnreadableRecordError as problem:
        return {**row, "message": f"unreadable: {problem.what}"}
    if request is not None:
        branch = request.ci.branch if request.ci is not None else ""
        row |= {"asked_at": request.asked_at, "branch": branch}
    return row | ({"message": ""} if result is None else result.to_json())


def session_line(row: JsonObject, *, running: bool) -> str:
    """Return a session for a reader: id, begin by the clock here, duration, end, tests, branch."""
    asked_at, seconds, counts = row["asked_at"], row.get("seconds"), row.get("counts")
    begun = clock(asked_at, "%d %b %H:%M")
    end = f"exit {row['exitstatus']}" if row["closed_by"] else "running" if running else "open"
    tests = (
        [f"{number} {word}" for word, number in counts.items()] if isinstance(counts, dict) else []
    )
    cells = (
        f"{row['session']}",
        f"{begun:12}",
        f"{f'{seconds:.1f} s' if isinstance(seconds, float) else '':>8}",
        f"{'cancelled' if row.get('cancelled') else end:9}",
        *(cell for cell in (", ".join(tests), row["branch"], row.get("failure_class")) if cell),
        str(row["message"]),
    )
    return "  ".join(map(str, cells)).rstrip()


def cluster_line(row: Mapping[str, object]) -> str:
    """Return a cluster for a reader: id, provider, state, and the session that it serves."""
    if row["problem"]:
        return f"cluster {row['cluster']}  {row['state']}: {row['problem']}"
    line = f"cluster {row['cluster']}  {row['provider']}  {row['state']}  {row['session'] or ''}"
    return line.rstrip()


def log_line(entry: JsonObject) -> str:
    """Return an event for a reader: when, by whom, and the keys that matter."""
    warning = entry.get("warning")
    if isinstance(warning, dict):  # its keys lie one level deeper
        entry = {**warning, **entry}
    values = {key: entry[key] for key in SHOWN if entry.get(key) not in (None, "")}
    items, records = entry.get("items"), entry.get("records")
    if isinstance(items, list):
        values["tests"] = len(items)
    if entry["kind"] == TestFinished.kind and isinstance(records, list):
        values["outcome"] = _outcome(records)
    text = " ".join(
        f"{key}={round(value, 3) if isinstance(value, float) else value}"
        for key, value in values.items()
    )
    at = clock(entry.get("t"), "%H:%M:%S")
    return f"{at:8} {entry['seq']:>6} {entry['writer']:8} {entry['kind']:18} {text}"


def _outcome(records: list[JsonValue]) -> str:
    """Return the outcome of a test by its reports: error where its setup or teardown failed."""
    reports = [
        r.get("report") for r in records if isinstance(r, dict) and r.get("kind") == "report"
    ]
    worst = "passed"
    for report in reports:
        if isinstance(report, dict) and report.get("outcome") != "passed" and worst == "passed":
            failed, outcome = report.get("outcome") == "failed", report.get("outcome")
            worst = "error" if failed and report.get("when") != "call" else str(outcome)
    return worst


def printable(text: str) -> str:
    """Return a text with its control characters escaped: others wrote it, this terminal obeys.

    >>> printable("a\\x1b[2Jb\\n") == "a\\\\x1b[2Jb\\n"
    True
    """
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def clock(seconds: JsonValue, form: str) -> str:
    """Return a time of the store by the clock here; "" for none, or one that no calendar has."""
    if not isinstance(seconds, int | float) or not 0 <= seconds < LAST_SECOND:
        return ""
    return time.strftime(form, time.localtime(seconds))
