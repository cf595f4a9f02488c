"""GitHub's runner: commands in the output, and the summary of a job."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpu_cluster.publish.workflow_commands import command
from pytest_gpu_cluster.report import render
from tests.hosts import Command, FakeGitHub, job_summary, workflow_commands
from tests.hosts.github_runner import SUMMARY_BYTES
from tests.unit.publish.rig import (
    MACHINES_FAULT,
    PAGE,
    SESSION,
    as_ended,
    failing,
    failures,
    report,
    step,
    write_files,
)

HOSTILE_LINES = [
    "::error::x",
    "::error file=a.py,line=1::x",
    "::add-mask::1",
    "##[error]x",
    "text before ##[add-mask]x",
    "::stop-commands::mine",
    "::mine::",
    "::warning::after",
    "::stop-commands::error",
    "::error::after an end that was not meant",
    "\x1b[31m::error::in colour\x1b[0m",
    "   ::set-output name=a::b",
    "\r::error::after a carriage return",
    "left\r\n::error::on a line of its own\r\n",
    "::save-state name=a::b\r##[set-env name=PATH]/evil",
    "::group::x",
    "::echo::on",
]


def test_nothing_that_a_test_prints_is_a_command(github: FakeGitHub, tmp_path: Path) -> None:
    """It could mask a digit in the whole log, or fake an annotation.

    It could also set a variable of later steps.
    """
    publisher = step(github.environ(tmp_path)).publisher
    opening = publisher.opening()
    closing = publisher.closing(as_ended("failed"))

    commands = workflow_commands("\n".join(["before", *opening, *HOSTILE_LINES, *closing]))

    assert commands == [
        Command(
            "notice",
            {"title": f"gpu-cluster: session {SESSION}"},
            f"1 failed, 1 passed in 1 min 23 s {PAGE}",
            line=commands[0].line,
        ),
        Command(
            "error",
            {
                "file": "tests/test_tiles.py",
                "line": "12",
                "title": "tests/test_tiles.py::test_breaks",
            },
            f"assert 1 == 2\nSession: {PAGE}",
            line=commands[1].line,
        ),
    ]


def test_the_word_that_starts_commands_again_is_another_each_time(
    github: FakeGitHub, tmp_path: Path
) -> None:
    """A test that knows it could end the silence itself."""
    openings = [step(github.environ(tmp_path)).publisher.opening() for _ in range(20)]

    assert len({line for (line,) in openings}) == 20
    assert all(len(line.removeprefix("::stop-commands::")) >= 32 for (line,) in openings)


@pytest.mark.parametrize("hostile", HOSTILE_LINES)
def test_what_a_test_is_called_and_says_makes_no_command_of_ours_another(
    github: FakeGitHub, tmp_path: Path, hostile: str
) -> None:
    """Node ids and messages are a test's to choose.

    They stand in our own commands after the silence.
    """
    publisher = step(github.environ(tmp_path)).publisher
    bad = failing(
        f"test_it[{hostile}]",
        message=f"{hostile}\n{hostile}",
        text=hostile,
        file=f"tests/{hostile}.py",
    )

    lines = publisher.closing(
        report(verdict="infrastructure", message=hostile, remedy=hostile, results=(bad,))
    )

    commands = workflow_commands("\n".join(lines))
    assert [entry.name for entry in commands] == ["notice", "error", "error"]
    assert [set(entry.params) for entry in commands[1:]] == [
        {"title"},
        {"title", "file", "line"},
    ]
    assert (
        commands[2].params["title"]
        == render.plain(f"tests/test_tiles.py::test_it[{hostile}]".replace("\r\n", "\n")).strip()
    )


@given(message=st.text(max_size=60), title=st.text(max_size=60), file=st.text(max_size=30))
def test_a_command_is_read_as_it_was_meant(message: str, title: str, file: str) -> None:
    """Whatever is in the texts: one command, of the name that we gave it, with our values."""
    commands = workflow_commands(command("error", message, file=file, title=title))

    def meant(text: str) -> str:
        return render.plain(text.replace("\r\n", "\n"))

    assert [entry.name for entry in commands] == ["error"]
    assert commands[0].message == meant(message)
    assert commands[0].params.get("title", "") in (
        meant(title),
        meant(title).rstrip(),
    )  # the runner strips the end of the list
    assert commands[0].params.get("file", "") == meant(file)


def test_the_runner_shows_every_command_that_is_sent(github: FakeGitHub, tmp_path: Path) -> None:
    """Ten errors a step: nine tests, and what was not the tests' fault."""
    publisher = step(github.environ(tmp_path)).publisher

    commands = workflow_commands(
        "\n".join(publisher.closing(as_ended("infrastructure", results=failures(3000))))
    )

    assert [entry.name for entry in commands] == ["notice"] + ["error"] * 10
    assert all(entry.shown for entry in commands)
    assert commands[1].message == f"{MACHINES_FAULT}\nremedy: run it again"
    assert "; 2991 more failures have no annotation" in commands[0].message


def test_the_summary_of_a_job_is_added_to_what_is_there(github: FakeGitHub, tmp_path: Path) -> None:
    """Other steps of the job write to it as well."""
    ci_step = step(github.environ(tmp_path))
    (tmp_path / "step_summary.md").write_text("# Build\n\nAll built.\n\n")

    write_files(ci_step.publisher, as_ended("failed"))

    text = job_summary(tmp_path / "step_summary.md")
    assert text.startswith("# Build\n\nAll built.\n\n### ❌ GPU tests")
    assert "E   assert 1 == 2" in text


@pytest.mark.parametrize("size", [0, 900_000, 999_000, 999_950], ids=str)
def test_a_summary_stays_within_a_mebibyte_of_bytes(
    github: FakeGitHub, tmp_path: Path, size: int
) -> None:
    """One byte more and GitHub uploads nothing of the step; a character may be four bytes."""
    ci_step = step(github.environ(tmp_path))
    (tmp_path / "step_summary.md").write_text("x" * size)
    many = tuple(
        failing(f"test_{number}[{'漢字🦀' * 10}]", text="E   漢字🦀\n" * 150)
        for number in range(3000)
    )

    write_files(ci_step.publisher, report(verdict="failed", results=many))

    text = job_summary(tmp_path / "step_summary.md")
    assert size <= len(text.encode()) <= SUMMARY_BYTES
    assert size > 900_000 or "3000 failed" in text


@pytest.mark.timeout(5)
@pytest.mark.parametrize("room", [-60_000, -1, 0, 1, 2, 3, 4, 5, 40])
def test_a_summary_that_is_full_is_left_as_it_is(
    github: FakeGitHub, tmp_path: Path, room: int
) -> None:
    """The last bytes of room are no reason to look for a shorter text for ever."""
    ci_step = step(github.environ(tmp_path))
    size = 1_000_000 - room
    (tmp_path / "step_summary.md").write_text("x" * size)

    write_files(ci_step.publisher, as_ended("failed"))

    assert size <= (tmp_path / "step_summary.md").stat().st_size <= max(size, SUMMARY_BYTES)
