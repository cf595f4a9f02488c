"""The outcome of a run, and the comparison of two."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

STATUS = re.compile(r"^\S+ .*?(?= +\[ *\d+%\]$)|^\S+ .*?(?= +\[ *\d+/\d+\]$)")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The output and the files of a run, normalised; `raw` is its stdout unchanged."""

    code: int
    out: str
    err: str
    junit: str
    cache: dict[str, Any]
    raw: str
    session: str  # its record, relative to the store; empty for a plain run

    @property
    def lines(self) -> list[str]:
        """Stdout without order and without the progress column: what must hold however many workers
        there are.
        """
        return sorted(
            re.sub(r" +\[ *(\d+%|\d+/\d+)\]$", "", line) for line in self.out.splitlines()
        )

    @property
    def statuses(self) -> list[str]:
        """The lines of `-v` that give a test its outcome."""
        return [match[0] for line in self.out.splitlines() if (match := STATUS.search(line))]

    @property
    def counts(self) -> str:
        """The last line."""
        return self.out.splitlines()[-1]


def agree(plain: Outcome, ours: Outcome) -> None:
    """Fail at the first part in which the two sides differ."""
    assert ours.code == plain.code, ours.out + ours.err
    assert ours.out == plain.out
    assert ours.err == plain.err
    assert ours.junit == plain.junit
    assert ours.cache == plain.cache


def sorted_header(outcome: Outcome) -> Outcome:
    """With the lines from "platform" to "collecting" or "collected" in alphabetical order."""
    lines = outcome.out.splitlines()
    first = next((n for n, line in enumerate(lines) if line.startswith("platform ")), 0)
    last = next((n for n, line in enumerate(lines) if "collect" in line), first)
    lines[first:last] = sorted(lines[first:last])
    return replace(outcome, out="\n".join(lines))
