"""Plots of the suite: how time and memory of a step grow with the frames, ours and diffusers'."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.goals import median
from benchmarks.networks import WIDTHS
from pusa.atomic import replacing

# Name of the file -> title, case, detail.
PLOTS = {
    "bench_forward": ("Forward pass, a timestep per frame, eager", "forward", "per frame"),
    "bench_lora_kept": ("LoRA step, blocks kept, eager", "lora", "none"),
    "bench_lora_recomputed": ("LoRA step, blocks recomputed, eager", "lora", "blocks"),
    "bench_full": ("Step of all weights with AdamW, eager", "full", "none"),
    "bench_sampling": ("Guided sampling, eager", "sampling", None),
}
COLORS = {"ours": "C0", "diffusers": "C1"}


def write_plots(folder: Path, rows: Sequence[dict[str, Any]], dtype: str) -> list[str]:
    """Names of the PNGs that were written: of what there are at least two lengths."""
    written = []
    for name, (title, case, detail) in PLOTS.items():
        chosen = [
            row
            for row in rows
            if row["case"] == case and row["mode"] == "eager" and row["dtype"] == dtype
            and detail in (None, row["detail"])
        ]  # fmt: skip
        if len({row["frames"] for row in chosen}) > 1:
            _write(folder / f"{name}.png", f"{title}, {dtype}", chosen)
            written.append(name)
    return written


def write_frontier(folder: Path, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """A PNG for each size: seconds of a step against the most it holds, policy by policy."""
    written = []
    for width, dtype, frames in dict.fromkeys((r["width"], r["dtype"], r["frames"]) for r in rows):
        own = [r for r in rows if (r["width"], r["dtype"], r["frames"]) == (width, dtype, frames)]
        figure = Figure(figsize=(6, 3.6), dpi=110, layout="constrained")
        axes = figure.subplots()
        for who, color in COLORS.items():
            points = sorted((r["most_bytes"] / 1e6, r["job_seconds"], r["detail"])
                            for r in own if r["mode"] == who)  # fmt: skip
            axes.plot([p[0] for p in points], [p[1] for p in points], color=color, marker="o",
                      markersize=4, linewidth=1, label=who)  # fmt: skip
            for megabytes, seconds, policy in points:
                axes.annotate(policy, (megabytes, seconds), xytext=(4, 4), fontsize=7,
                              textcoords="offset points")  # fmt: skip
        axes.set_xlim(left=0)
        axes.margins(x=0.15, y=0.15)
        axes.set_xlabel("peak, MB")
        axes.set_ylabel("seconds a step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        axes.set_title(f"LoRA step, {width}, {dtype}, {frames} latent frames", fontsize=10)
        written.append(folder / f"bench_frontier_{width}_{dtype}_{frames}.png")
        _save(figure, written[-1])
    return written


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        FigureCanvasAgg(figure).print_png(str(partial), metadata={"Software": None})


def _write(path: Path, title: str, rows: Sequence[dict[str, Any]]) -> None:
    widths = list(dict.fromkeys(row["width"] for row in rows))
    figure = Figure(figsize=(2.6 * len(widths) + 1.6, 4.6), dpi=110, layout="constrained")
    grid = figure.subplots(2, len(widths), squeeze=False, sharex=True)
    kinds: tuple[tuple[str, Callable[[dict, str], float]], ...] = (
        ("seconds", median),
        ("peak, MB", lambda row, who: row["bytes"][who] / 1e6),
    )
    for column, width in enumerate(widths):
        own = sorted((row for row in rows if row["width"] == width), key=lambda r: r["frames"])
        for axes, (label, value) in zip(grid[:, column], kinds, strict=True):
            for who, color in COLORS.items():
                axes.plot([r["frames"] for r in own], [value(r, who) for r in own], color=color,
                          marker="o", markersize=4, linewidth=1.4, label=who)  # fmt: skip
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.set_xticks([row["frames"] for row in own])
            if column == 0:
                axes.set_ylabel(label)
        tokens = WIDTHS[width].side ** 2
        above = grid[0, column].secondary_xaxis(
            "top", functions=(lambda f, n=tokens: f * n, lambda t, n=tokens: t / n)
        )
        above.set_xticks([row["frames"] * tokens for row in own if row["frames"] > 1])
        above.tick_params(labelsize=7)
        above.set_xlabel(f"{width}: tokens", fontsize=9)
        grid[1, column].set_xlabel("latent frames")
    grid[0, 0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)
