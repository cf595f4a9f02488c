"""GitHub's runner: the commands in a step's output, and its summary."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SUMMARY_BYTES = 1024 * 1024
SHOWN_A_STEP = 10  # of errors, of warnings, and of notices


@dataclass(frozen=True)
class Command:
    """A workflow command as the runner understood it.

    `shown`: somebody sees the annotation.
    """

    name: str
    params: Mapping[str, str]
    message: str
    shown: bool = True
    line: int = 0  # of the output, counted from 1


KNOWN = frozenset(
    {
        "add-mask",
        "add-matcher",
        "add-path",
        "debug",
        "echo",
        "endgroup",
        "error",
        "group",
        "notice",
        "remove-matcher",
        "save-state",
        "set-env",
        "set-output",
        "stop-commands",
        "warning",
    }
)
_DATA = (("%0D", "\r"), ("%0A", "\n"))
_PARAMETER = (*_DATA, ("%3A", ":"), ("%2C", ","))
_OLD = (*_DATA, ("%3B", ";"), ("%5D", "]"))


@dataclass
class _Runner:
    """Reads lines as the runner does: `token` is what commands are stopped until."""

    token: str = ""
    counts: Counter[str] = field(default_factory=Counter)

    def read(self, line: str, number: int) -> Command | None:
        names = KNOWN | ({self.token.lower()} if self.token else set())
        command = _command(line, names) or _old_command(line, names)
        if command is None:
            return None
        name, params, message = command
        if self.token:
            if name.lower() == self.token.lower():
                self.token = ""
            return None
        if name == "stop-commands":
            self.token = (
                "" if message.lower() in KNOWN else message
            )  # a token that anybody might print stops nothing
            return None
        self.counts[name] += 1
        shown = name not in ("error", "warning", "notice") or self.counts[name] <= SHOWN_A_STEP
        return Command(name, params, message, shown, number)


def workflow_commands(stdout: str) -> list[Command]:
    """The commands in a step's output, in order.

    What stands between stop-commands and its token is none.
    """
    runner = _Runner()
    lines = re.split(r"\r\n|\r|\n", stdout)
    return [
        command
        for number, line in enumerate(lines, 1)
        if (command := runner.read(line, number)) is not None
    ]


def _command(line: str, names: frozenset[str]) -> tuple[str, dict[str, str], str] | None:
    """`::name key=value,key=value::message`, with nothing but space before it.

    The message starts at the second `::` at all.
    """
    match = re.match(r"\s*::(.*?)::(.*)", line)
    if match is None:
        return None
    name, _, parameters = match[1].partition(" ")
    params = _params(parameters.strip(), ",", _PARAMETER)
    return (name.lower(), params, _unescaped(match[2], _DATA)) if name.lower() in names else None


def _old_command(line: str, names: frozenset[str]) -> tuple[str, dict[str, str], str] | None:
    """`##[name key=value;key=value]message`, anywhere in the line.

    An older form: no longer documented, and still obeyed.
    """
    match = re.search(r"##\[(.*?)\](.*)", line)
    if match is None:
        return None
    name, _, parameters = match[1].partition(" ")
    return (
        (name.lower(), _params(parameters, ";", _OLD), _unescaped(match[2], _OLD))
        if name.lower() in names
        else None
    )


def _params(text: str, separator: str, escapes: tuple[tuple[str, str], ...]) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in text.split(separator))
    return {name: _unescaped(value, escapes) for name, _, value in pairs if name and value}


def _unescaped(value: str, escapes: tuple[tuple[str, str], ...]) -> str:
    for escape, character in (*escapes, ("%25", "%")):
        value = value.replace(escape, character)
    return value


def job_summary(path: Path) -> str:
    """The Markdown of a step's summary; ValueError where GitHub would not upload it."""
    content = path.read_bytes()
    if len(content) > SUMMARY_BYTES:
        raise ValueError(
            f"{path.name} has {len(content)} bytes, "
            f"and a summary of more than {SUMMARY_BYTES} is not uploaded"
        )
    return content.decode()
