"""Remove all that two runs of one pytest may differ in: session lines, seconds, the root's path."""

from __future__ import annotations

import re
from pathlib import Path

SECONDS = re.compile(r"(?<![\w.])\d+\.\d+ ?([mun]?s|seconds)\b( \(\d+:\d\d:\d\d\))?")
AGO = re.compile(r"\d+:\d\d:\d\d ago")
TIMES = re.compile(r'(?<= )(time|timestamp)="[^"]*"')
SUITE = re.compile(r'<property name="gpu-cluster\.[^>]*/>')


def normal(text: str, root: Path) -> str:
    """Terminal text without our own lines, with N for seconds and ROOT for the root's path."""
    lines = [
        line for line in text.splitlines(keepends=True) if not line.startswith("gpu-cluster: ")
    ]
    return "".join(seconds(line) for line in lines).replace(str(root), "ROOT")


def seconds(line: str) -> str:
    """A line with N for its seconds; the rule around the last line is as long as the seconds leave
    it room.
    """
    changed = AGO.sub("N ago", SECONDS.sub("N s", line))
    if changed != line and " in N s" in changed:
        changed = re.sub(r"={2,}", "==", changed)
    return re.sub(r" +(?=N s)", " ", changed)


def normal_xml(text: str, root: Path) -> str:
    """JUnit without our suite properties, and with N for every time."""
    text = (
        SUITE.sub("", text)
        .replace("<properties></properties>", "")
        .replace('"></testsuite>', '" />')
    )
    return seconds(TIMES.sub(r'\1="N"', text)).replace(str(root), "ROOT")
