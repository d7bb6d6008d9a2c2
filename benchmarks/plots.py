"""Plots of the suite: how time and memory of a step grow with the frames, ours and diffusers'."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.goals import median
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
            if column == 0:
                axes.set_ylabel(label)
        grid[0, column].set_title(width, fontsize=9)
        grid[1, column].set_xlabel("latent frames")
    grid[0, 0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        FigureCanvasAgg(figure).print_png(str(partial), metadata={"Software": None})
