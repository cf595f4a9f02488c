"""Measure the workloads beside what one would write without a cluster.

    python -m tests.benchmarks.workloads [--only NAME ...] [--rounds N] [--check]

Writes bench-workloads.json, and a table and charts in docs/. Each figure is a ratio of one run:
ours, the naive way and a strong way by hand, one after the other in the same round. Simulated
devices and stores are named in its note. A floor that is not reached is `low`. A machine too noisy
to tell is `inconclusive`: its load was high before, or the times of the naive way, which is always
the same work, lie more than a quarter apart.
"""

from __future__ import annotations

import argparse
import importlib
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.benchmarks.bench import with_table
from tests.benchmarks.charts import draw_chart
from tests.benchmarks.ratios import Figure, charted, load, save, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench-workloads.json"
DOCUMENT = ROOT / "docs" / "workloads.md"
CHARTS = ROOT / "docs" / "charts"
BEGIN, END = "<!-- bench-workloads:begin -->", "<!-- bench-workloads:end -->"
LOAD = 1.5  # for each core, before the start
# A module and a function of `measures`, and the figures that it measures.
MEASURES: dict[tuple[str, str], tuple[str, ...]] = {
    ("search", "early_termination"): ("early_termination_epochs_saved",),
    ("inference", "batch_inference"): ("batch_inference_vs_naive", "batch_inference_vs_prefetch"),
    ("stages", "stacked_models"): (
        "stacked_models_vs_sequential",
        "stacked_models_unequal_vs_sequential",
    ),
    ("serving", "decision_latency"): ("decision_latency_vs_sequential",),
    ("ingest", "pipelined_ingest"): (
        "pipelined_ingest_vs_serial",
        "pipelined_ingest_idle_vs_serial",
    ),
    ("ingest", "ray_data_and_petastorm"): (
        "ray_data_vs_petastorm_rows",
        "ray_data_vs_petastorm_batched",
    ),
}
NAMES = [name for names in MEASURES.values() for name in names]


def measure(module: str, function: str, *, rounds: int, busy: bool) -> list[Figure]:
    """Run one measurement in a scratch folder of its own, and print its figures."""
    from tests.benchmarks.measures.lab import Lab  # imports Ray

    scratch, began = Path(tempfile.mkdtemp(prefix="gpu-cluster-bench-")), time.monotonic()
    try:
        run = getattr(importlib.import_module(f"tests.benchmarks.measures.{module}"), function)
        lab = Lab(scratch=scratch, rounds=rounds, ci="CI" in os.environ, busy=busy)
        figures: list[Figure] = run(lab)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for figure in figures:
        print(
            f"{figure.name:<36} {figure.value:>7.3g} {figure.unit:<10} floor {figure.floor}  "
            f"{figure.verdict}  [{time.monotonic() - began:.0f} s]",
            flush=True,
        )
    return figures


def write_document(figures: Mapping[str, Figure]) -> None:
    """Put the table and the charts into docs/."""
    for figure in charted(figures):
        draw_chart(figure, CHARTS)
    text = DOCUMENT.read_text("utf-8")
    DOCUMENT.write_text(with_table(text, table(figures), BEGIN, END), "utf-8")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="measure the workloads of gpu_tests")
    parser.add_argument(
        "--only", action="append", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of every comparison (default 3)"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 when a figure is low")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 1 when a measurement failed, or with --check when a figure is low."""
    arguments = parse_arguments(argv)
    # Ray reads them when it is imported.
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    load_average = os.getloadavg()[0]
    busy = load_average > LOAD * (os.cpu_count() or 1)
    print(
        f"{os.cpu_count()} cores, load {load_average:.1f}{': too busy to judge' if busy else ''}",
        flush=True,
    )
    figures, failed = load(RESULTS), 0
    for (module, function), names in MEASURES.items():
        if not set(names) & set(arguments.only or NAMES):
            continue
        try:
            measured = measure(module, function, rounds=arguments.rounds, busy=busy)
        except Exception as problem:  # noqa: BLE001
            # A failure does not cost the other measurements.
            failed += 1
            print(f"{function}: {type(problem).__name__}: {problem}", flush=True)
            continue
        figures |= {figure.name: figure for figure in measured}
        figures = {name: figures[name] for name in NAMES if name in figures}
        save(RESULTS, figures)
    write_document(figures)
    low = [figure.name for figure in figures.values() if figure.verdict == "low"]
    print(f"low: {', '.join(low) or 'none'}; not measured: {failed}")
    return 1 if failed or (low and arguments.check) else 0


if __name__ == "__main__":
    sys.exit(main())
