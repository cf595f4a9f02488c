"""A report in words: the headline, the Markdown of comments and summaries, and the plain JSON.

Everything that came from a test stands in code, where no host reads it as markup, a mention or a command.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from pytest_gpu_cluster.contract.model import NOT_TESTS, Delta, Report, Result

WHOSE = {
    "infrastructure": "a machine, Ray, the agent or the store failed",
    "environment": "the environment of the cluster could not be built",
    "capacity": "nobody would rent the machines",
    "limit": "the session's limit was reached",
    "teardown": "the results stand, but something of the cluster may still be running",
}
LISTED = 20  # of each kind of difference
TEXT_CHARS = 1_500  # of one failure


def headline(report: Report) -> str:
    """One line without markup: the verdict and the counts.

    >>> headline(Report(session="s", suite="t", verdict="capacity", message="no g6"))
    'not your tests (capacity): no g6'
    """
    counts = ", ".join(f"{number} {outcome}" for outcome, number in report.counts.items())
    took = f" in {duration(report.duration_s)}" if report.duration_s else ""
    message = one_line(report.message)
    if report.verdict == "running":
        so_far = (
            f": {len(report.results)} of {report.collected} tests{f', {counts}' if counts else ''}"
            if report.collected
            else ""
        )
        return f"running{so_far}"
    if report.verdict == "cancelled":
        return f"cancelled{f' after {counts}' if counts else ''}"
    if report.verdict in NOT_TESTS:
        return f"not your tests ({report.verdict}){f': {message}' if message else ''}{f'; {counts}' if counts else ''}"
    if report.verdict == "request":
        return f"could not start: {message}"
    return (
        f"{counts or message or report.verdict}{took}{f'; {message}' if counts and message else ''}"
    )


def session_line(report: Report) -> str:
    """Where to look: a link that others can open, else the command that shows the record."""
    return (
        f"Session: {report.link}"
        if report.link
        else f"Session: {report.session} (gpu-cluster logs {report.session})"
    )


def duration(seconds: float) -> str:
    """
    >>> duration(0.42), duration(83.4), duration(7325)
    ('0.4 s', '1 min 23 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def one_line(text: str) -> str:
    return " ".join(plain(text).split())


def plain(text: str) -> str:
    """Without control characters and ANSI colours, which no host shows."""
    return re.sub(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]",
        "",
        re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", text),
    )


# --- Markdown -------------------------------------------------------------------------------------------------------


def markdown(report: Report, *, limit: int) -> str:
    """At most `limit` characters: first failures lose their texts, then the longest lists their ends, each with a note."""
    every, long = len(report.bad), 1_000_000
    tiers = (
        *((texts, every, long) for texts in (every, 100, 20, 5)),
        *(
            (20, 500, 9_000),
            (20, 200, 5_000),
            (5, 100, 3_000),
            (0, 50, 2_000),
            (0, 10, 500),
            (0, 0, 300),
            (0, 0, 50),
        ),
    )
    for texts, listed, said in tiers:
        text = "\n\n".join(_sections(report, texts=texts, listed=listed, said=said)) + "\n"
        if len(text) <= limit:
            return text
    return f"### {_title(report)}"[: limit - 1] + "\n"


def _sections(report: Report, *, texts: int, listed: int, said: int) -> Iterable[str]:
    """`texts` failures with their text, `listed` in all by name; `said` characters of what was not a test's."""
    yield f"### {_title(report)}"
    if report.verdict in NOT_TESTS:
        yield f"**Not your tests:** {WHOSE[report.verdict]}."
    if report.message and report.verdict != "running":
        yield _fence(
            _cut(
                plain(report.message)
                + (f"\nremedy: {plain(report.remedy)}" if report.remedy else ""),
                said,
            )
        )
    yield from _delta(report.delta, listed)
    yield _table(report)
    yield from _failures(report, texts, listed)
    if report.troubles:
        yield "**Not everything could be reported:**\n\n" + _fence(
            _cut("\n".join(plain(trouble) for trouble in report.troubles), said)
        )


def _title(report: Report) -> str:
    sign = {"passed": "✅", "running": "⏳", "cancelled": "⏹️", "failed": "❌"}.get(
        report.verdict, "⚠️"
    )
    name = "" if report.suite == "gpu-cluster" else f" ({report.suite})"
    counts = ", ".join(f"{number} {outcome}" for outcome, number in report.counts.items())
    said = {"running": "running", "cancelled": "cancelled", "request": "could not start"}.get(
        report.verdict, ""
    )
    said = said or (report.verdict if report.verdict in NOT_TESTS else "")
    return f"{sign} GPU tests{name}: {', '.join(part for part in (said, counts) if part) or report.verdict}"


def _delta(delta: Delta | None, listed: int) -> Iterable[str]:
    if delta is None:
        return
    against = (
        f"against {_code(delta.branch)}{f' at {_code(delta.commit[:12])}' if delta.commit else ''}"
    )
    if delta.empty:
        yield f"No difference {against}."
        return
    slower = [f"{nodeid} ({before:.1f} s → {now:.1f} s)" for nodeid, before, now in delta.slower]
    kinds: tuple[tuple[str, Sequence[str]], ...] = (
        ("newly failing", delta.newly_failing),
        ("fixed", delta.fixed),
        ("flaky", delta.flaky),
        ("slower", slower),
        ("removed", delta.removed),
    )
    lines = [f"**Different** {against}:", ""]
    lines += [
        f"- {len(names)} {kind}: {_list(names, min(listed, LISTED))}"
        for kind, names in kinds
        if names
    ]
    yield "\n".join(lines)


def _list(names: Sequence[str], listed: int) -> str:
    shown = ", ".join(_code(name) for name in names[:listed])
    left = len(names) - listed
    return f"{shown} and {left} more" if left > 0 and shown else shown or f"{len(names)} tests"


def _table(report: Report) -> str:
    rows = [
        (
            "session",
            f"[{report.session}](<{report.link}>)" if report.link else _code(report.session),
        )
    ]
    if report.gpus:
        names = ", ".join(
            f"{number} × {_code(name)}" for name, number in Counter(report.gpus).items()
        )
        rows.append(("GPUs", f"**SIMULATED**: {names}" if report.simulated else names))
    if report.duration_s:
        rows.append(("duration", duration(report.duration_s)))
    if report.price_usd is not None:
        rows.append(("cost", f"{report.price_usd:.2f} USD"))
    if report.cluster:
        rows.append(
            (
                "cluster",
                f"{_code(report.cluster)} ({report.provider})"
                if report.provider
                else _code(report.cluster),
            )
        )
    if report.commit:
        rows.append(("commit", _code(report.commit[:12])))
    return "\n".join(
        [
            "| | |",
            "|---|---|",
            *(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows),
        ]
    )


def _failures(report: Report, texts: int, listed: int) -> Iterable[str]:
    bad = report.bad
    for number, result in enumerate(bad[: min(texts, listed)]):
        yield _failure(result, first=number == 0)
    rest = bad[min(texts, listed) :]
    shown = rest[: max(0, listed - texts)]
    if shown:
        yield "\n".join(
            f"- {_code(result.nodeid)}: {_code(result.problems[0].message[:200])}"
            for result in shown
        )
    if left := len(rest) - len(shown):
        yield f"… and {left} more failures; all of them are in the JUnit file and in the session's record."


def _failure(result: Result, *, first: bool) -> str:
    place = f" ({_code(f'{result.file}:{result.line}')})" if result.line else ""
    heading = (
        f"**{'error' if result.outcome == 'error' else 'failed'}** {_code(result.nodeid)}{place}"
    )
    text = problems_text(result)
    cut = (
        text
        if len(text) <= TEXT_CHARS
        else f"… {len(text) - TEXT_CHARS} characters before this …\n{text[-TEXT_CHARS:]}"
    )
    return f"{heading}\n\n{_fence(plain(cut))}"


def problems_text(result: Result) -> str:
    """All that went wrong with a test, each after the first below a line that says where."""
    first, *others = result.problems
    parts = [first.text or first.message]
    parts += [
        f"{f' {problem.subtest or problem.when} ':-^80}\n{problem.text or problem.message}"
        for problem in others
    ]
    return "\n".join(parts)


def _code(text: str) -> str:
    """Inline code, whatever the text has in it; code without anything in it is none."""
    text = one_line(text) or "?"
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    ticks = "`" * (longest + 1)
    return f"{ticks} {text} {ticks}" if longest else f"`{text}`"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _fence(text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}\n{text.strip(chr(10))}\n{ticks}"


# --- JSON -----------------------------------------------------------------------------------------------------------


def as_json(report: Report) -> dict[str, Any]:
    """The summary for machines; keys that are not known are absent."""
    failures = [
        {
            "nodeid": result.nodeid,
            "file": result.file,
            "line": result.line,
            "outcome": result.outcome,
            "failure_class": result.problems[0].failure_class,
            "when": result.problems[0].when,
            "message": result.problems[0].message,
        }
        for result in report.bad
    ]
    said = {
        "v": 1,
        "session": report.session,
        "suite": report.suite,
        "verdict": report.verdict,
        "headline": headline(report),
        "your_tests": report.verdict not in NOT_TESTS,
        "exit_code": report.exit_code,
        "message": report.message,
        "remedy": report.remedy,
        "link": report.link,
        "record": report.record,
        "collected": report.collected,
        "deselected": report.deselected,
        "counts": report.counts,
        "started": report.started,
        "duration_s": round(report.duration_s, 3),
        "gpus": list(report.gpus),
        "simulated_gpus": report.simulated,
        "cluster": report.cluster,
        "provider": report.provider,
        "environment": report.environment,
        "cost_usd": report.price_usd,
        "branch": report.branch,
        "commit": report.commit,
        "delta": dataclasses.asdict(report.delta) if report.delta else None,
        "failures": failures,
        "not_reported": list(report.troubles),
    }
    return {name: value for name, value in said.items() if value not in (None, "")}


def json_text(report: Report) -> str:
    return json.dumps(as_json(report), indent=2, ensure_ascii=True) + "\n"
