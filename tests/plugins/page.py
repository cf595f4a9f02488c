"""What the comparison of plugins came to: a file of results, and the page that is made of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.plugins.rows import Row

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "plugins.json"
PAGE = ROOT / "docs" / "plugins.md"
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

    row: str  # its name
    version: str  # of the plugin
    verdict: str
    how: str = ""  # the difference, the files, or the reason of a refusal; "" for the same


def load() -> list[Result]:
    """Return the results of the last comparison."""
    return [Result(**each) for each in json.loads(RESULTS.read_text())]


def save(results: Iterable[Result], rows: Sequence[Row]) -> None:
    """Write results and page; rows that were not run now keep theirs, others go."""
    known = {each.row: each for each in (load() if RESULTS.exists() else [])}
    known |= {each.row: each for each in results}
    kept = [known[row.name] for row in rows if row.name in known]
    RESULTS.write_text(json.dumps([asdict(each) for each in kept], indent=1) + "\n")
    PAGE.write_text(page(kept, rows))


def page(results: Sequence[Result], rows: Sequence[Row]) -> str:
    """Return the page in Markdown, with the rows in the order of their plugins' names."""
    named = {row.name: row for row in rows}
    counts = Counter(result.verdict for result in results)
    plugins = len({named[result.row].plugin for result in results})
    counted = ", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items()))
    lines = [
        HEAD,
        f"{plugins} plugins in {len(results)} rows: {counted}.",
        "",
        "| plugin | version | arguments | verdict | |",
        "|---|---|---|---|---|",
    ]
    ordered = sorted(results, key=lambda result: named[result.row].plugin)
    lines += [line(result, named[result.row]) for result in ordered]
    return "\n".join(lines) + "\n"


def line(result: Result, row: Row) -> str:
    arguments = f"`{row.args}`" if row.args else ""
    remark = ". ".join(part.rstrip(".") for part in (result.how, row.note) if part)
    cells = (row.plugin, result.version, arguments, result.verdict, remark)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
