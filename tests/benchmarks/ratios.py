"""The ratios of the workloads' benchmark: one is judged, stored, put into a table and drawn."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# Of a chart, in the words of somebody who looks at it.
TITLES = {
    "early_termination_epochs_saved": "Epochs that a search of 48 configurations trains",
    "batch_inference_vs_naive": "Seconds to infer 1,024 tiles; ours includes Ray's start",
    "stacked_models_vs_sequential": "Frames a second through five equal models",
    "stacked_models_unequal_vs_sequential": "Frames a second through five unequal models",
    "decision_latency_vs_sequential": "Seconds to a decision of eight models",
    "pipelined_ingest_vs_serial": "Seconds for two shuffled epochs of a million rows",
    "pipelined_ingest_idle_vs_serial": "Share of the time in which the trainer waits for rows",
    "ray_data_vs_petastorm_rows": "Rows a second out of Parquet, beside Petastorm",
}
SPREAD = 0.25  # of the naive way's times, over their median


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One ratio, the median over the rounds.

    `ways`: the medians of the ways that were compared, in `ways_unit`.
    """

    name: str
    value: float
    unit: str
    baseline: str
    floor: float | None
    samples: tuple[float, ...]
    verdict: str
    ways: Mapping[str, float]
    ways_unit: str
    note: str


def spread(samples: Sequence[float]) -> float:
    """Return the widest distance between two samples, over their median."""
    return (max(samples) - min(samples)) / statistics.median(samples)


def verdict(value: float, floor: float | None, *, noisy: bool) -> str:
    """Return `ok`, `low` or `inconclusive`; a noisy machine is not judged."""
    if noisy:
        return "inconclusive"
    return "ok" if floor is None or value >= floor else "low"


@dataclass(frozen=True)
class Ways:
    """The samples of each way that was compared, in `unit`.

    `busy`: the machine was, before the start. The way called `steady` is always the same work: its
    spread tells a noisy machine. With None the machine does not matter.
    """

    samples: Mapping[str, Sequence[float]]
    unit: str
    busy: bool
    steady: str | None = "naive"

    def noisy(self) -> bool:
        """Return True when the machine is too noisy to judge a ratio."""
        return self.busy or (self.steady is not None and spread(self.samples[self.steady]) > SPREAD)

    def ratios(self, above: str, below: str) -> list[float]:
        """Return the ratio of two ways in each round."""
        pairs = zip(self.samples[above], self.samples[below], strict=True)
        return [numerator / denominator for numerator, denominator in pairs]


def make_figure(
    name: str,
    samples: Sequence[float],
    ways: Ways,
    *,
    baseline: str,
    note: str,
    floor: float | None = None,
    unit: str = "×",
) -> Figure:
    """Judge the samples of a ratio; the ways are shown beside it."""
    value = statistics.median(samples)
    return Figure(
        name=name,
        value=round(value, 4),
        unit=unit,
        baseline=baseline,
        floor=floor,
        samples=tuple(round(sample, 4) for sample in samples),
        verdict=verdict(value, floor, noisy=ways.noisy()),
        ways={way: round(statistics.median(values), 4) for way, values in ways.samples.items()},
        ways_unit=ways.unit,
        note=note,
    )


def load(path: Path) -> dict[str, Figure]:
    """Read the figures of a file, by name; none when there is no file."""
    if not path.exists():
        return {}
    return {
        name: Figure(name=name, **{**row, "samples": tuple(row["samples"])})
        for name, row in json.loads(path.read_text()).items()
    }


def save(path: Path, figures: Mapping[str, Figure]) -> None:
    """Write the figures to a file, by name."""
    rows = {
        name: {key: value for key, value in asdict(figure).items() if key != "name"}
        for name, figure in figures.items()
    }
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")


def format_value(value: float) -> str:
    """Format with three significant figures: 0.0329, 56.3, 1,536."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def charted(figures: Mapping[str, Figure]) -> list[Figure]:
    """Return a figure of each comparison, the first: the others would be the same picture."""
    return list({str(figure.ways): figure for figure in list(figures.values())[::-1]}.values())[
        ::-1
    ]


def table(figures: Mapping[str, Figure]) -> str:
    """Return a row for each figure, and the charts; a verdict that is not `ok` is bold.

    Figures of one comparison share a chart.
    """
    lines = ["| figure | measured | floor | against | verdict | |", "|---|--:|--:|---|---|---|"]
    for figure in figures.values():
        verdict = figure.verdict if figure.verdict == "ok" else f"**{figure.verdict}**"
        ways = ", ".join(f"{way} {format_value(value)}" for way, value in figure.ways.items())
        floor = "–" if figure.floor is None else f"{figure.floor:g}"
        lines.append(
            f"| `{figure.name}` | {figure.value:.3g} {figure.unit} | {floor} | {figure.baseline} "
            f"| {verdict} | {ways} ({figure.ways_unit}). {figure.note} |"
        )
    charts = [f"![{TITLES.get(f.name, f.name)}](charts/{f.name}.svg)" for f in charted(figures)]
    return "\n".join([*lines, "", *charts])
