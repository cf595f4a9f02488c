"""The charts: a bar for each way that was compared, ours in colour; the same picture each time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.benchmarks.figures import Row
from tests.benchmarks.ratios import TITLES, Figure, format_value

OURS, OTHERS = "#2a7f62", "#b8bcc2"


def draw_chart(figure: Figure, folder: Path) -> None:
    """Draw the ways of a workload's figure."""
    better = "higher" if figure.ways_unit.endswith("/s") else "lower"
    title = f"{TITLES.get(figure.name, figure.name)} ({better} is better)"
    draw({title: figure.ways}, folder / f"{figure.name}.svg")


def draw_plugin(rows: Mapping[str, Row], folder: Path) -> None:
    """Draw the plugin beside its peers, as far as it was measured."""
    panels: dict[str, dict[str, float]] = {}
    for name, title, peer, ours in (
        (
            "torch_warm_vs_plain",
            "Seconds for a test that imports torch",
            "plain pytest",
            "warm cluster",
        ),
        (
            "warm_first_result_over_plain_s",
            "Seconds to the first result",
            "plain pytest",
            "warm cluster",
        ),
        (
            "cold_first_result_over_ray_s",
            "Seconds to the first result",
            "Ray's own start",
            "cold cluster",
        ),
        (
            "trivial_1000_vs_xdist",
            "Seconds for 1,000 trivial tests",
            "pytest-xdist -n 2",
            "warm cluster",
        ),
    ):
        row = rows.get(name)
        if row is not None and row.baseline is not None:
            ratio = row.unit == "ratio"
            value = row.value * row.baseline if ratio else row.value + row.baseline
            panel = panels.setdefault(f"{title} (lower is better)", {})
            panel |= {peer: row.baseline, f"ours, {ours}": value}
    draw(panels, folder / "plugin.svg")


def draw(panels: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw a panel for each title below the other, each a bar for every way."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = path.stem  # the same picture from the same figures
    heights = [0.9 + 0.38 * len(ways) for ways in panels.values()]
    chart, grid = pyplot.subplots(
        len(panels),
        figsize=(7, sum(heights)),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for axes, (title, ways) in zip(grid[:, 0], panels.items(), strict=True):
        names = list(ways)[::-1]
        values = [ways[name] for name in names]
        colours = [OURS if name.startswith("ours") else OTHERS for name in names]
        bars = axes.barh(names, values, color=colours)
        axes.bar_label(bars, labels=[short(value) for value in values], padding=4)
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
        axes.set_xlim(0, 1.2 * max(values))
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, loc="left", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, metadata={"Date": None})
    pyplot.close(chart)


def short(value: float) -> str:
    """Return a number for a chart: 1.5M, 120,000, 56.3."""
    return f"{value / 1e6:.3g}M" if value >= 1e6 else format_value(value)
