"""The rows of rows.toml."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROWS = Path(__file__).resolve().parent / "rows.toml"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A small project that uses one plugin; the keys are explained in rows.toml."""

    name: str  # the plugin, and a number where it has several rows
    plugin: str
    test: str
    args: str = ""
    also: tuple[str, ...] = ()
    shows: str = ""
    before: str | None = None  # None: there is no earlier run
    note: str = ""
    git: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def contents(self) -> dict[str, str]:
        """Return the project's files by name, with a configuration that makes it the rootdir."""
        return {"pytest.ini": "[pytest]\n", "test_it.py": self.test, **self.files}


def read_rows() -> list[Row]:
    """Return all rows in their order. Raises TypeError for a key that is none."""
    seen: Counter[str] = Counter()
    rows = []
    for row in tomllib.loads(ROWS.read_text())["row"]:
        seen[row["plugin"]] += 1
        number = seen[row["plugin"]]
        name = row["plugin"] if number == 1 else f"{row['plugin']} {number}"
        rows.append(Row(**{**row, "name": name, "also": tuple(row.get("also", ()))}))
    return rows
