"""Plots of a study's panels: means with their intervals, a line for each row."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pusa.atomic import replacing
from pusa.evaluation.crossed import Estimate
from pusa.evaluation.study_measure import CODEC
from pusa.evaluation.study_pages import Panel


def write_plot(path: Path, panel: Panel, rows: Mapping[str, Mapping[str, Estimate]]) -> None:
    """A PNG: lines over the columns; a row of one value is a dashed line across. The codec, far
    above all, is left to the table."""
    figure = Figure(figsize=(7.2, 3.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    offset = 0.0
    for number, (row, entries) in enumerate(rows.items()):
        if row == CODEC:
            continue
        color = f"C{number % 10}"
        if "" in entries:
            axes.axhline(entries[""].mean, color=color, linestyle="--", linewidth=1, label=row)
            continue
        x = [float(column) for column in entries]
        means = [one.mean for one in entries.values()]
        widths = [one.half_width for one in entries.values()]
        spread = (max(x) - min(x)) * 0.006
        shifted = [
            value * (1 + 0.02 * offset) if panel.log else value + spread * offset for value in x
        ]
        axes.errorbar(shifted, means, widths, color=color, marker="o", markersize=4, linewidth=1.4,
                      elinewidth=0.8, capsize=2, label=row)  # fmt: skip
        offset += 1
    if panel.log:
        axes.set_xscale("log", base=2)
        choices = sorted({float(c) for entries in rows.values() for c in entries if c})
        axes.set_xticks(choices, [f"{choice:g}" for choice in choices])
    axes.set_xlabel((panel.columns or "").replace("_", " "))
    axes.set_title(panel.title, fontsize=10)
    axes.grid(alpha=0.3)
    title = None if panel.rows == "variant" else panel.rows.replace("_", " ")
    axes.legend(
        fontsize=8, title=title, title_fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        FigureCanvasAgg(figure).print_png(str(partial), metadata={"Software": None})
