"""Turn a serialised report of pytest into texts: masked, cut, with the paths of this machine."""

from __future__ import annotations

import io
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from typing import cast

import pytest
from _pytest._io import TerminalWriter

from pytest_gpu_cluster.contract.codec import PathMap, from_wire
from pytest_gpu_cluster.contract.records import ReportData
from pytest_gpu_cluster.report.model import Problem, When

OUTPUT_CHARS = 10_000  # of each captured section: half from its beginning, half from its end
TEXT_CHARS = 100_000  # of one failure


class ReportTexts:
    """Every text of one session's report passes through here, so that none holds a secret.

    `mask` takes secrets out of a text. `origin` is the root of the tree on this machine, `prefix`
    the path from the repository to that root.
    """

    def __init__(self, mask: Callable[[str], str], *, origin: str, prefix: str) -> None:
        self._mask, self._origin, self._prefix = mask, origin, prefix
        self._map = PathMap([])

    def map_paths(self, root: str) -> None:
        """Replace paths below `root`, the tree on the cluster, by paths below the origin."""
        self._map = PathMap([(root, self._origin)])

    def clean(self, text: str) -> str:
        return self._mask(self._map.text(text))

    def file(self, path: str) -> str:
        """Return the path in the repository of a path in the tree; "" if it is outside."""
        joined = posixpath.normpath(posixpath.join(self._prefix, path))
        if not path or joined in (".", "..") or joined.startswith(("../", "/")):
            return ""
        return self.clean(joined)

    def problem(self, report: ReportData, failure_class: str, file: str) -> Problem:
        """Return the problem of a failed report; `file` is the test's file in the repository."""
        longrepr = self._map(report["longrepr"])
        text = self.clean(plain_text(longrepr))
        crash = longrepr.get("reprcrash") if isinstance(longrepr, dict) else None
        place = crash if isinstance(crash, dict) else None  # pytest's own, where it has one
        cause = self.clean(str(place["message"])) if place else error_line(text)
        path = str(place["path"]).removeprefix(f"{self._origin}/") if place else ""
        line = place["lineno"] if place and file and self.file(path) == file else 0
        context = from_wire(report.get("_subtest.context"))
        subtest = self.clean(subtest_name(context)) if context else ""
        first_line = cause.strip().partition("\n")[0] or "failed"
        return Problem(
            when=cast(When, report["when"]),
            failure_class=failure_class,
            message=f"{subtest}: {first_line}" if subtest else first_line,
            text=omit_middle(text, TEXT_CHARS),
            line=line if isinstance(line, int) else 0,
            subtest=subtest,
        )

    def skip_reason(self, longrepr: object) -> str:
        """Return the reason of a skip, whose `longrepr` is path, line and reason."""
        place = from_wire(longrepr)
        is_place = isinstance(place, tuple | list) and len(place) == 3
        reason = str(place[2]) if is_place else plain_text(longrepr)
        return self.clean(reason.removeprefix("Skipped: "))

    def output(self, sections: Iterable[tuple[str, object]]) -> str:
        """Return captured sections, each below its name."""
        # Mask before the cut, which may halve a secret.
        named = [(name, self.clean(str(text))) for name, text in sections if text]
        return "".join(
            f"{f' {name} ':-^80}\n{omit_middle(text, OUTPUT_CHARS).rstrip()}\n"
            for name, text in named
        )

    def properties(self, user_properties: object) -> Iterator[tuple[str, str]]:
        """Yield name and value of each user property; what is no pair is left out."""
        for pair in from_wire(user_properties or ()):
            if isinstance(pair, tuple | list) and len(pair) == 2:
                yield self.clean(str(pair[0])), self.clean(str(pair[1]))


def plain_text(longrepr: object) -> str:
    """Return a failure as pytest prints it, without colours."""
    if longrepr is None or isinstance(longrepr, str):
        return longrepr or ""
    if isinstance(longrepr, dict) and "$repr" in longrepr:
        return str(longrepr["$repr"][0])
    if isinstance(longrepr, dict) and "reprcrash" not in longrepr:
        return str(from_wire(longrepr))
    data = {
        "nodeid": "",
        "location": ("", 0, ""),
        "keywords": {},
        "outcome": "failed",
        "when": "call",
        "longrepr": from_wire(longrepr),
    }
    report = pytest.TestReport._from_json(data)  # private; pytest-xdist calls it too
    stream = io.StringIO()
    writer = TerminalWriter(stream)
    writer.hasmarkup = False
    report.toterminal(writer)
    return stream.getvalue().strip("\n")


def error_line(text: str) -> str:
    """Return the first line that pytest marks with an E, else the first line."""
    lines = nonblank_lines(text)
    marked = next((line[1:].strip() for line in lines if line.startswith("E ")), "")
    return marked or (lines[0].strip() if lines else "")


def last_line(text: str) -> str:
    """Return the last line that is not blank: of a traceback, the exception."""
    lines = nonblank_lines(text)
    return lines[-1].strip() if lines else ""


def usage_error_line(text: str) -> str:
    """Return the line of a usage error that pytest marks with "error:", else the last line."""
    marked = (
        line.strip()
        for line in nonblank_lines(text)
        if re.search(r"(?i)\berror: (?!usage:)", line.strip())
    )
    return next(marked, "") or last_line(text)


def nonblank_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def subtest_name(context: dict[str, object]) -> str:
    """Return `[message] (key=value, …)`, as pytest names a subtest."""
    kwargs = context.get("kwargs")
    pairs = kwargs.items() if isinstance(kwargs, dict) else ()
    values = ", ".join(f"{key}={value}" for key, value in pairs)
    message = f"[{context['msg']}]" if context.get("msg") else ""
    parts = (message, f"({values})" if values else "")
    return " ".join(part for part in parts if part) or "(subtest)"


def omit_middle(text: str, limit: int) -> str:
    """Return at most `limit` characters of `text`, half from each end, with a note of the rest."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"
