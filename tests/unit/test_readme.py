"""The README holds: its commands, its settings with their defaults, its links, its figures."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from pytest_gpu_cluster import cli, options
from pytest_gpu_cluster.contract.errors import HarnessError
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.providers import REGISTRY, provider_class
from pytest_gpu_cluster.providers.ray import DEFAULTS
from tests.benchmarks.bench import load, table, with_table

README = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


COMMANDS = [
    shlex.split(line, comments=True)
    for text in blocks("bash")
    for line in text.splitlines()
    if line.strip()
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_exists(command: list[str], repository: Path) -> None:
    """The first thing a newcomer does is to paste one of them."""
    tool, *arguments = command
    match tool:
        case "make":
            assert re.search(
                rf"^{arguments[0]}:", (repository / "Makefile").read_text("utf-8"), re.MULTILINE
            )
        case "pip":
            extras = set(re.findall(r"\[(\w+)\]", arguments[-1]))
            project = tomllib.loads((repository / "pyproject.toml").read_text("utf-8"))["project"]
            assert extras <= set(project["optional-dependencies"])
        case "pytest":
            options_shown = {name for name in arguments if name.startswith("--gpu")}
            assert options_shown <= plugin_options()
        case "gpu-cluster":
            with pytest.raises(SystemExit, match=r"^0$"):
                cli.main([arguments[0], "--help"])
        case _:
            pytest.fail(f"the README shows {tool}, which no test here knows")


def plugin_options() -> set[str]:
    parser = pytest.Parser(_ispytest=True)
    options.add_options(parser)
    return {name for group in parser._groups for option in group.options for name in option.names()}


@pytest.mark.parametrize("text", blocks("toml"))
def test_settings_that_are_shown_are_accepted(text: str, tmp_path: Path) -> None:
    """Every profile of a file is checked, asked for or not."""
    (tmp_path / "pyproject.toml").write_text(text)

    options.read_settings(tmp_path / "pyproject.toml", profile=None, environ={})


@pytest.mark.parametrize("text", blocks("python"))
def test_python_that_is_shown_is_python(text: str) -> None:
    """It is pasted into a test file."""
    compile(text, "README.md", "exec")


def rows_below(heading: str) -> list[list[str]]:
    """Return the cells of the table rows of a section, without its two heading rows."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[2:]]


def default_values() -> dict[str, object]:
    """Return the default by field, those of a group in the group's place."""
    values: dict[str, object] = {}
    for field in dataclasses.fields(Settings):
        value = getattr(Settings(), field.name)
        values |= vars(value) if dataclasses.is_dataclass(value) else {field.name: value}
    del values["provider_settings"]
    return values


def test_every_setting_is_in_the_table() -> None:
    """A key that is missing does not exist for a reader.

    One that is only in the table does not exist at all.
    """
    shown = [cells[0].strip("`") for cells in rows_below("Settings")]
    keys = [name.replace("_", "-") for name in default_values()]
    of_providers = [f"{name}.{key}" for name in REGISTRY for key in provider_class(name).keys]

    assert shown == keys + of_providers


def test_defaults_are_those_of_the_code() -> None:
    """Only a value that TOML can write is compared; words stand for one of the machine."""
    values = default_values()
    values |= {f"ray.{key}".replace("-", "_"): value for key, value in DEFAULTS.items()}
    for key, default, _ in rows_below("Settings"):
        if literal := re.match(r"`(.+?)`", default):
            value = values[key.strip("`").replace("-", "_")]
            shown = tomllib.loads(f"value = {literal[1]}")["value"]
            assert (key, shown) == (key, list(value) if isinstance(value, tuple) else value)


def test_every_fixture_is_in_the_table(repository: Path) -> None:
    """The plugin offers each fixture that it imports from the quarantine."""
    plugin = ast.parse(
        (repository / "harness" / "pytest_gpu_cluster" / "plugin.py").read_text("utf-8")
    )
    imports = [
        node
        for node in ast.walk(plugin)
        if isinstance(node, ast.ImportFrom) and node.module == "pytest_gpu_cluster.fixtures"
    ]
    offered = {alias.name for each in imports for alias in each.names if alias.name.islower()}

    assert {
        name
        for cells in rows_below("Marks and fixtures")
        for name in re.findall(r"`(\w+)`", cells[0])
    } == offered


def test_exit_codes_are_those_of_the_errors() -> None:
    """A pipeline branches on them."""
    shown = {cells[0]: int(cells[3]) for cells in rows_below("Failures and exit codes")}
    classes = [error.failure_class for error in HarnessError.__subclasses__()]
    codes = {str(failure_class): failure_class.exit_code for failure_class in classes}

    assert {name: code for name, code in codes.items() if name != "request"} == {
        name: code for name, code in shown.items() if code > 1
    }


def test_links_lead_somewhere(repository: Path) -> None:
    """To a file of the repository or a heading of the README."""
    headings = {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", README, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings
        elif target != "bench.json":  # written by make bench
            assert (repository / target).exists(), target


def test_the_figures_are_those_of_the_last_run(repository: Path) -> None:
    """Nobody edits a measurement by hand."""
    assert with_table(README, table(load(repository / "bench.json"))) == README


def test_the_first_screen_has_what_a_newcomer_needs() -> None:
    """One command and one picture before any reference."""
    first = "\n".join(README.splitlines()[:40])

    assert "make demo" in first
    assert "make test" in first
    assert "──►" in first
    assert "(CONTRIBUTING.md)" in first


def test_every_row_of_the_hosts_table_names_a_test(repository: Path) -> None:
    """A table that nobody holds to account becomes a wish."""
    text = (repository / "docs" / "ci.md").read_text()
    rows = [
        line.split("|")
        for line in text.splitlines()
        if re.match(r"\| (Bitbucket|GitHub|GitLab|any other) ", line)
    ]
    tests = "\n".join(path.read_text() for path in (repository / "tests").rglob("test_*.py"))

    assert len(rows) >= 15
    for *_, cell, _ in rows:
        assert f"def {cell.strip().strip('`')}(" in tests, cell
