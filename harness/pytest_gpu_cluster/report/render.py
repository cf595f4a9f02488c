"""Render a report: the headline, the Markdown of comments and summaries, and the plain JSON.

All that came from a test stands in code, where no host reads it as markup, a mention or a command.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.report.model import NOT_TESTS, Delta, Report, Result

LISTED = 20  # of each kind of difference
TEXT_CHARS = 1_500  # of one failure
# Sign and words of a verdict in a title. The counts of the tests say the rest.
TITLES = {
    "passed": ("✅", ""),
    "failed": ("❌", ""),
    "running": ("⏳", "running"),
    "cancelled": ("⏹️", "cancelled"),
    "request": ("⚠️", "could not start"),
    **{failure_class: ("⚠️", failure_class) for failure_class in NOT_TESTS},
}
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NO_NAME = re.compile("[^A-Za-z0-9._-]")  # what no session's id has
_ANSI = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")


def headline(report: Report) -> str:
    """Return one line without markup: the verdict and the counts.

    >>> from pytest_gpu_cluster.report.model import ReportContext
    >>> context = ReportContext(suite="t")
    >>> headline(Report(session="s", context=context, verdict="capacity", message="no g6"))
    'not your tests (capacity): no g6'
    """
    counts, message = _counts(report), one_line(report.message)
    match report.verdict:
        case "running" if report.collected:
            progress = f"{len(report.results)} of {report.collected} tests"
            return f"running: {', '.join(part for part in (progress, counts) if part)}"
        case "running":
            return "running"
        case "cancelled":
            return f"cancelled after {counts}" if counts else "cancelled"
        case "request":
            return f"could not start: {message}"
        case verdict if verdict in NOT_TESTS:
            reason = f": {message}" if message else ""
            return f"not your tests ({verdict}){reason}{f'; {counts}' if counts else ''}"
    time = f" in {duration(report.duration_s)}" if report.duration_s else ""
    reason = f"; {message}" if counts and message else ""
    return f"{counts or message or report.verdict}{time}{reason}"


def _counts(report: Report) -> str:
    return ", ".join(
        f"{number} {outcome}{'s' if outcome == 'error' and number > 1 else ''}"
        for outcome, number in report.counts.items()
    )


def session_line(report: Report) -> str:
    """Return a link that others can open, else the command that shows the record."""
    if report.context.link:
        return f"Session: {report.context.link}"
    return f"Session: {report.session} (gpu-cluster logs {report.session})"


def duration(seconds: float) -> str:
    """Return a duration as people write it.

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
    """Return `text` without control characters and ANSI colours, which no host shows."""
    return _CONTROL.sub("", _ANSI.sub("", text))


def shorten(text: str, limit: int) -> str:
    """Return at most `limit` characters of `text`; a text that was cut ends with an ellipsis."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


# --- Markdown -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Limits of one attempt to fit a report into a comment."""

    texts: int  # failures with their text
    listed: int  # failures by name, those with a text included
    message_chars: int = 1_000_000  # of the session's message, and of the troubles


def _sizes(failures: int) -> Iterable[Sizes]:
    """Yield ever smaller sizes: first failures lose their texts, then lists lose their ends."""
    for texts in (failures, 100, 20, 5):
        yield Sizes(texts=texts, listed=failures)
    yield Sizes(texts=20, listed=500, message_chars=9_000)
    yield Sizes(texts=20, listed=200, message_chars=5_000)
    yield Sizes(texts=5, listed=100, message_chars=3_000)
    yield Sizes(texts=0, listed=50, message_chars=2_000)
    yield Sizes(texts=0, listed=10, message_chars=500)
    yield Sizes(texts=0, listed=0, message_chars=300)
    yield Sizes(texts=0, listed=0, message_chars=50)


def markdown(report: Report, *, limit: int) -> str:
    """Return at most `limit` characters of Markdown; what is left out is noted."""
    for sizes in _sizes(len(report.bad)):
        text = "\n\n".join(_sections(report, sizes)) + "\n"
        if len(text) <= limit:
            return text
    return f"### {_title(report)}"[: limit - 1] + "\n"


def _sections(report: Report, sizes: Sizes) -> Iterable[str]:
    yield f"### {_title(report)}"
    if report.verdict in NOT_TESTS:
        yield f"**Not your tests:** {NOT_TESTS[report.verdict]}."
    if report.message and report.verdict != "running":
        remedy = f"\nremedy: {plain(report.remedy)}" if report.remedy else ""
        yield _fence(shorten(plain(report.message) + remedy, sizes.message_chars))
    if report.delta is not None:
        yield _difference(report.delta, sizes.listed)
    yield _table(report)
    yield from _failures(report, sizes)
    if report.troubles:
        troubles = "\n".join(plain(trouble) for trouble in report.troubles)
        fenced = _fence(shorten(troubles, sizes.message_chars))
        yield f"**Not everything could be reported:**\n\n{fenced}"


def _title(report: Report) -> str:
    sign, words = TITLES.get(report.verdict, ("⚠️", ""))
    suite = "" if report.context.suite == "gpu-cluster" else f" ({report.context.suite})"
    parts = ", ".join(part for part in (words, _counts(report)) if part)
    return f"{sign} GPU tests{suite}: {parts or report.verdict}"


def _difference(delta: Delta, listed: int) -> str:
    commit = f" at {_code(delta.commit[:12])}" if delta.commit else ""
    branch = f"against {_code(delta.branch)}{commit}"
    if delta.empty:
        return f"No difference {branch}."
    slower = [f"{nodeid} ({before:.1f} s → {now:.1f} s)" for nodeid, before, now in delta.slower]
    kinds: tuple[tuple[str, Sequence[str]], ...] = (
        ("newly failing", delta.newly_failing),
        ("fixed", delta.fixed),
        ("flaky", delta.flaky),
        ("slower", slower),
        ("removed", delta.removed),
    )
    lines = [
        f"- {len(names)} {kind}: {_list(names, min(listed, LISTED))}"
        for kind, names in kinds
        if names
    ]
    return "\n".join([f"**Different** {branch}:", "", *lines])


def _list(names: Sequence[str], listed: int) -> str:
    """Return the first `listed` names and the number of the others."""
    if listed <= 0:
        return f"{len(names)} tests"
    shown = ", ".join(_code(name) for name in names[:listed])
    more = len(names) - listed
    return f"{shown} and {more} more" if more > 0 else shown


def _table(report: Report) -> str:
    context, machines = report.context, report.machines
    session = _code(report.session)
    if context.link:
        session = f"[{_NO_NAME.sub('', report.session)}](<{context.link}>)"
    rows = [("session", session)]
    if machines.gpus:
        numbers = Counter(machines.gpus)
        gpus = ", ".join(f"{number} × {_code(name)}" for name, number in numbers.items())
        rows.append(("GPUs", f"**SIMULATED**: {gpus}" if machines.simulated else gpus))
    if report.duration_s:
        rows.append(("duration", duration(report.duration_s)))
    if machines.price_usd is not None:
        rows.append(("cost", f"{machines.price_usd:.2f} USD"))
    if machines.cluster:
        provider = f" ({_code(machines.provider)})" if machines.provider else ""
        rows.append(("cluster", f"{_code(machines.cluster)}{provider}"))
    if context.commit:
        rows.append(("commit", _code(context.commit[:12])))
    lines = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def _failures(report: Report, sizes: Sizes) -> Iterable[str]:
    """Yield failures with their texts, a list of others by name, and the number of the rest."""
    bad, with_text = report.bad, min(sizes.texts, sizes.listed)
    for result in bad[:with_text]:
        yield _failure(result)
    others = bad[with_text:]
    listed = others[: max(0, sizes.listed - sizes.texts)]
    if listed:
        yield "\n".join(
            f"- {_code(result.nodeid)}: {_code(result.problems[0].message[:200])}"
            for result in listed
        )
    if more := len(others) - len(listed):
        yield (
            f"… and {more} more failures;"
            " all of them are in the JUnit file and in the session's record."
        )


def _failure(result: Result) -> str:
    kind = "error" if result.outcome == "error" else "failed"
    place = f" ({_code(f'{result.file}:{result.line}')})" if result.line else ""
    text = problems_text(result)
    if len(text) > TEXT_CHARS:  # the cause of a failure is at its end
        omitted = len(text) - TEXT_CHARS
        text = f"… {omitted} characters before this …\n{text[-TEXT_CHARS:]}"
    return f"**{kind}** {_code(result.nodeid)}{place}\n\n{_fence(plain(text))}"


def problems_text(result: Result) -> str:
    """Return the texts of a test's problems.

    Each after the first stands below a line with its subtest or phase.
    """
    first, *others = result.problems
    parts = [first.text or first.message]
    parts += [
        f"{f' {problem.subtest or problem.when} ':-^80}\n{problem.text or problem.message}"
        for problem in others
    ]
    return "\n".join(parts)


def _code(text: str) -> str:
    """Return inline code, whatever backticks `text` has; empty code would be no code."""
    text = one_line(text) or "?"
    longest = _longest_backticks(text)
    ticks = "`" * (longest + 1)
    return f"{ticks} {text} {ticks}" if longest else f"`{text}`"


def _fence(text: str) -> str:
    """Return a block of code that no line of `text` ends.

    Its fence is never longer than three backticks: GitLab looks for quick actions outside of these
    alone. A line that would end it is indented.
    """
    lines = text.strip("\n").splitlines()
    inside = (f"    {line}" if line.lstrip().startswith("```") else line for line in lines)
    return "\n".join(["```", *inside, "```"])


def _longest_backticks(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


# --- JSON -----------------------------------------------------------------------------------------


def as_json(report: Report) -> dict[str, object]:
    """Return the summary for programs; unknown values are absent."""
    context, machines = report.context, report.machines
    summary = {
        "v": 1,
        "session": report.session,
        "suite": context.suite,
        "verdict": report.verdict,
        "headline": headline(report),
        "your_tests": report.verdict not in NOT_TESTS,
        "exit_code": report.exit_code,
        "message": report.message,
        "remedy": report.remedy,
        "link": context.link,
        "record": context.record,
        "collected": report.collected,
        "deselected": report.deselected,
        "counts": report.counts,
        "started": report.started,
        "duration_s": round(report.duration_s, 3),
        "gpus": list(machines.gpus),
        "simulated_gpus": machines.simulated,
        "cluster": machines.cluster,
        "provider": machines.provider,
        "environment": machines.environment,
        "cost_usd": machines.price_usd,
        "branch": context.branch,
        "commit": context.commit,
        "delta": dataclasses.asdict(report.delta) if report.delta else None,
        "failures": [_failure_json(result) for result in report.bad],
        "not_reported": list(report.troubles),
    }
    return {name: value for name, value in summary.items() if value not in (None, "")}


def _failure_json(result: Result) -> dict[str, object]:
    problem = result.problems[0]
    return {
        "nodeid": result.nodeid,
        "file": result.file,
        "line": result.line,
        "outcome": result.outcome,
        "failure_class": problem.failure_class,
        "when": problem.when,
        "message": problem.message,
    }


def json_text(report: Report) -> str:
    return json.dumps(as_json(report), indent=2, ensure_ascii=True) + "\n"
