"""The threat model: a line is held by a test that exists, or says why it cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.test_architecture import code_words, rows

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"
HELD_BY = [
    cells[-1]
    for section in PAGE.read_text("utf-8").split("\n## ")[1:]
    for cells in rows(section)
    if len(cells) == 3
]


def names_of_all_tests() -> set[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    return {
        name
        for file in files
        for name in re.findall(r"^ *(?:async )?def (test_\w+)\(", file.read_text("utf-8"), re.M)
    }


def test_every_test_that_the_page_names_exists() -> None:
    """A test that was renamed would leave a promise that nobody keeps."""
    names = {name for cell in HELD_BY for name in code_words(cell) if name.startswith("test_")}

    assert len(names) > 20
    assert names - names_of_all_tests() == set()


@pytest.mark.parametrize("cell", sorted(set(HELD_BY)), ids=lambda cell: cell[:40])
def test_every_line_is_held_or_says_why_it_is_not(cell: str) -> None:
    """A threat without an answer is no model; `inherent` alone is no answer."""
    names = code_words(cell)
    inherent = re.match(r"\*inherent\*.{8,}\. .+", cell)

    assert inherent or names or cell == "the first table"
    assert not inherent or not any(name.startswith("test_") for name in names)
    for name in names:
        assert inherent or name.startswith("test_") or (ROOT / name).exists(), name


def test_the_readme_and_the_reporting_page_lead_there() -> None:
    """Whoever asks who may write to a store looks into the README first."""
    assert "docs/security.md" in (ROOT / "README.md").read_text("utf-8")
    assert "docs/security.md" in (ROOT / "SECURITY.md").read_text("utf-8")
