"""The ratios of the workloads' benchmark: one is judged, stored, put into a table and drawn."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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


def table(figures: Mapping[str, Figure]) -> str:
    """Return a row for each figure, and the charts; a verdict that is not `ok` is bold."""
    lines = ["| figure | measured | floor | against | verdict | |", "|---|--:|--:|---|---|---|"]
    for figure in figures.values():
        verdict = figure.verdict if figure.verdict == "ok" else f"**{figure.verdict}**"
        ways = ", ".join(f"{way} {format_value(value)}" for way, value in figure.ways.items())
        floor = "–" if figure.floor is None else f"{figure.floor:g}"
        lines.append(
            f"| `{figure.name}` | {figure.value:.3g} {figure.unit} | {floor} | {figure.baseline} "
            f"| {verdict} | {ways} ({figure.ways_unit}). {figure.note} |"
        )
    charts = [f"![{name}](charts/{name}.svg)" for name in figures]
    return "\n".join([*lines, "", *charts])


def draw_chart(figure: Figure, folder: Path) -> None:
    """Draw a bar for each way that was compared, ours in colour, with its value at its end."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = figure.name  # the same picture from the same figures
    ways = dict(reversed(list(figure.ways.items())))
    chart, axes = pyplot.subplots(figsize=(7, 0.9 + 0.38 * len(ways)), layout="constrained")
    bars = axes.barh(
        list(ways),
        list(ways.values()),
        color=["#2a7f62" if way.startswith("ours") else "#b8bcc2" for way in ways],
    )
    axes.bar_label(bars, labels=[format_value(value) for value in ways.values()], padding=4)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.set_xlabel(figure.ways_unit)
    axes.set_xlim(0, 1.2 * max(ways.values()))
    axes.spines[["top", "right"]].set_visible(False)
    floor = "" if figure.floor is None else f", floor {figure.floor:g}"
    axes.set_title(
        f"{figure.name}: {figure.value:.3g} {figure.unit}{floor}, {figure.verdict}",
        loc="left",
        fontsize=10,
    )
    folder.mkdir(parents=True, exist_ok=True)
    chart.savefig(folder / f"{figure.name}.svg", metadata={"Date": None})
    pyplot.close(chart)
