"""The page that the comparison of plugins makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.plugins.rows import Row

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "plugins.md"
HEAD = """\
# Plugins

Made by `make plugins`. Each row is a small project with tests that pass and fail and use the
plugin. It is run with `pytest` and with `pytest --gpu-cluster`, and nothing but this plugin is
loaded. Compared are the exit code, the outcome of every JUnit case, the summary line, the files
that were written, and where a plugin is there to print something, that it does. The projects are in
[tests/plugins/rows.toml](../tests/plugins/rows.toml).

- **same**: nothing of it differs.
- **same, files home**: the same, and the files that plain pytest writes are here after the run.
- **same, files stay on the cluster**: the same results; the named files are written there.
- **refused**: the run ends before anything is started, with the reason.
- **differs**: the row says how, and what to do.
"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a row."""

    row: Row
    verdict: str
    how: str  # the difference, the files, or the reason of a refusal; "" for the same


def page(results: Sequence[Result], versions: Mapping[str, str]) -> str:
    """Return the page in Markdown, with the rows in the order of their names."""
    counts = Counter(result.verdict for result in results)
    plugins = len({result.row.plugin for result in results})
    counted = ", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items()))
    lines = [
        HEAD,
        f"{plugins} plugins in {len(results)} rows: {counted}.",
        "",
        "| plugin | version | arguments | verdict | |",
        "|---|---|---|---|---|",
    ]
    ordered = sorted(results, key=lambda result: result.row.plugin)
    lines += [line(result, versions[result.row.plugin]) for result in ordered]
    return "\n".join(lines) + "\n"


def line(result: Result, version: str) -> str:
    row = result.row
    arguments = f"`{row.args}`" if row.args else ""
    remark = ". ".join(part.rstrip(".") for part in (result.how, row.note) if part)
    cells = (row.plugin, version, arguments, result.verdict, remark)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
