"""Measure the figures that the README shows, and write them into bench.json and the README's table.

    python -m tests.benchmarks.bench [--only NAME ...] [--rounds N] [--section plain|ci] [--check]

bench.json: name -> value, unit, baseline, budget, samples, note. Names that end in `_ci` were
measured with CI set. With --only, the other rows stay as they are. A missed budget is red; with
--check it also makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import entry_points
from pathlib import Path

from tests.benchmarks.charts import draw_plugin
from tests.benchmarks.drive import Lab
from tests.benchmarks.figures import FIGURES, WORDS, Row

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
CI = "_ci"
RED, RESET = "\033[31m", "\033[0m"


def environment(outer: Mapping[str, str], *, ci: bool) -> dict[str, str]:
    """The environment of the measured processes: nothing of pytest's, this plugin's or a CI's but
    what is asked for.

    They may write bytecode, as an installed package has it: here, an editable install would be
    compiled at each start.
    """
    dropped = ("PYTEST_", "GPU_CLUSTER_", "COV_", "AWS_", "RAY_")
    kept = {
        k: v
        for k, v in outer.items()
        if k not in ("CI", "BUILD_NUMBER", "PYTHONDONTWRITEBYTECODE") and not k.startswith(dropped)
    }
    # With CI set a cluster would not stay warm, and there would be nothing to compare.
    return {**kept, "CI": "true", "GPU_CLUSTER_IDLE_MINUTES": "5"} if ci else kept


def measure(names: Sequence[str], rounds: int, *, ci: bool) -> tuple[list[Row], list[str]]:
    """The rows of the figures that give one of `names`, and what failed.

    Prints each row as it comes.
    """
    rows, failed = [], []
    for figure, gives in FIGURES.items():
        if not set(gives) & set(names):
            continue
        scratch = Path(tempfile.mkdtemp(prefix="gpu-cluster-bench-"))
        began = time.monotonic()
        try:
            found = figure(Lab(scratch=scratch, env=environment(os.environ, ci=ci)), rounds)
        except Exception as problem:  # noqa: BLE001
            # One figure that cannot be measured does not cost the others.
            failed.append(f"{figure.__name__}: {type(problem).__name__}: {problem}")
            print(f"{RED}{failed[-1]}{RESET}", flush=True)
            continue
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        found = [replace(r, name=r.name + CI) if ci else r for r in found]
        for each in found:
            print(f"{line(each)}  [{time.monotonic() - began:.0f} s]", flush=True)
        rows += found
    return rows, failed


def number(value: float | None) -> str:
    """Three figures that matter: 0.0123, 4.56, 789, 12345; a dash for none."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def line(row: Row) -> str:
    """A row for the terminal, red when it missed its budget."""
    text = f"{row.name:<36} {number(row.value):>9} {row.unit:<6}"
    text += f" budget {number(row.budget):>5}  baseline {number(row.baseline):>7}"
    return f"{RED}{text}  MISSED{RESET}" if row.missed else text


def cell(row: Row | None) -> str:
    """A value of the table, bold when it missed its budget."""
    if row is None:
        return "–"
    return f"**{number(row.value)}**" if row.missed else number(row.value)


def table(rows: Mapping[str, Row]) -> str:
    """The README's table: a figure a line, measured without and with CI set; a missed budget is
    bold.
    """
    lines = [
        "| what (lower is better) | figure | measured | with `CI` | budget | baseline | |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for name, plain in rows.items():
        if name.endswith(CI):
            continue
        ci = rows.get(name + CI)
        cells = [
            WORDS.get(name, ""),
            f"`{name}`",
            f"{cell(plain)} {plain.unit}",
            cell(ci),
            number(plain.budget),
            number(plain.baseline),
        ]
        lines.append(f"| {' | '.join(cells)} | {plain.note} |")
    return "\n".join(lines)


def with_table(document: str, text: str, first: str = BEGIN, last: str = END) -> str:
    """The document with `text` between these markers. Raises ValueError when they are not there."""
    before, begin, rest = document.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"no {first} … {last} to write between")
    return f"{before}{first}\n{text}\n{last}{after}"


def load(path: Path) -> dict[str, Row]:
    """The rows of bench.json, in their order; none when there is no file."""
    if not path.exists():
        return {}
    raw = json.loads(path.read_text("utf-8"))
    return {
        name: Row(name=name, **{**fields, "samples": tuple(fields["samples"])})
        for name, fields in raw.items()
    }


def save(path: Path, rows: Mapping[str, Row]) -> None:
    document = {
        name: {k: v for k, v in asdict(r).items() if k != "name"} for name, r in rows.items()
    }
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")


def ordered(rows: Mapping[str, Row]) -> dict[str, Row]:
    """In the order of FIGURES, those with CI last; a figure that no longer exists is dropped."""
    names = [name for gives in FIGURES.values() for name in gives]
    return {name: rows[name] for name in (*names, *(n + CI for n in names)) if name in rows}


def main(argv: Sequence[str] | None = None) -> int:
    names = [name for gives in FIGURES.values() for name in gives]
    parser = argparse.ArgumentParser(description="measure the figures of the README")
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds of every comparison (default 5)"
    )
    parser.add_argument(
        "--section",
        choices=("plain", "ci"),
        help="only without, or only with CI set (default both)",
    )
    parser.add_argument("--check", action="store_true", help="exit 1 when a budget is missed")
    chosen = parser.parse_args(argv)
    if not entry_points(group="pytest11", name="gpu_cluster"):
        parser.error("pytest-gpu-cluster is not installed in this environment; run: make setup")
    rows, failed = load(ROOT / "bench.json"), []
    for ci in {"plain": (False,), "ci": (True,), None: (False, True)}[chosen.section]:
        load_1m, ci_text = os.getloadavg()[0], "CI set" if ci else "CI not set"
        print(f"{os.cpu_count()} cores, load {load_1m:.1f}, {ci_text}", flush=True)
        found, problems = measure(chosen.only or names, chosen.rounds, ci=ci)
        failed += problems
        rows = ordered({**rows, **{r.name: r for r in found}})
        save(ROOT / "bench.json", rows)
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text("utf-8"), table(rows)), "utf-8")
    draw_plugin(rows, ROOT / "docs" / "charts")
    print("\n" + "\n".join(line(r) for r in rows.values()))
    missed = [r.name for r in rows.values() if r.missed]
    if missed or failed:
        print(f"{RED}missed: {', '.join(missed) or 'none'}; not measured: {len(failed)}{RESET}")
    return 1 if failed or (missed and chosen.check) else 0


if __name__ == "__main__":
    sys.exit(main())
