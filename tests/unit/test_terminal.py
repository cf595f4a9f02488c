"""The lines of this package's own between those of pytest's reporter."""

from __future__ import annotations

import io

import pytest
from _pytest.terminal import TerminalReporter

from pytest_gpu_cluster.contract.events import Notice, PhaseFinished, Retry
from pytest_gpu_cluster.host.progress import Progress
from pytest_gpu_cluster.host.terminal import Terminal


class Screen(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> tuple[Terminal, Screen]:
    """A terminal of a pytest whose reporter writes to a screen."""
    monkeypatch.setenv("COLUMNS", "40")
    config, screen = pytester.parseconfig(), Screen()
    config.pluginmanager.register(TerminalReporter(config, screen), "terminalreporter")
    return Terminal(config), screen


def test_a_start_is_counted_in_one_line_that_goes_away(screen: tuple[Terminal, Screen]) -> None:
    """Ten seconds without a sign of life look like a hang."""
    terminal, output = screen

    for seconds in (0.4, 1.1, 1.2, 2.0):
        terminal.show_wait(seconds)
    terminal.end_wait()
    terminal.write("collected\n")

    lines = [part.rstrip() for part in output.getvalue().split("\r") if part.strip()]
    assert lines == ["gpu-cluster: starting     1 s", "gpu-cluster: starting     2 s", "collected"]


def test_a_line_that_pytest_has_begun_is_left_alone(screen: tuple[Terminal, Screen]) -> None:
    """`collecting ...` is finished by whoever began it."""
    terminal, output = screen

    terminal.write("collecting ... ")
    terminal.show_wait(3.0)

    assert output.getvalue() == "collecting ... "


@pytest.mark.parametrize(("quiet", "shown"), [(False, 3), (True, 1)])
def test_quiet_shows_only_what_went_wrong_with_a_machine(quiet: bool, shown: int) -> None:
    """`-q` is what people pipe."""
    lines: list[str] = []
    progress = Progress(lines.append, quiet=quiet)

    progress.event(PhaseFinished(name="tree", detail="1 file", seconds=0.1))
    progress.event(Notice(name="order", text="as collected"))
    progress.event(Retry(nodeid="t.py::a", attempt=1, message="its node was lost"))

    assert len(lines) == shown
    assert lines[-1].startswith("retry")
