"""The picture of a run beside a known good curve: on_track.png."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pusa.atomic import replacing
from pusa.training.track import Curve, Run

COLOURS = ("#261448", "#345e8d", "#21918c", "#5ab03c", "#e09b00")
STYLES = ("-", "--", ":", "-.")  # of several runs in one picture


@dataclass(frozen=True)
class Panel:
    """One picture of several: the quantity `names`, or all that begin so if it ends in @, _ or /.

    relative: drawn in percent above the known good end, since losses of different noise levels lie
    far apart and move little.
    """

    title: str
    names: str
    relative: bool

    def holds(self, name: str) -> bool:
        return name == self.names or (self.names[-1] in "@_/" and name.startswith(self.names))


PANELS = (
    Panel("held-out loss, one noise level for all frames", "heldout/shared@", True),
    Panel("held-out loss, frame 0 clean (image to video)", "heldout/first_clean@", True),
    Panel("samples of held-out clips against the truth, dB", "samples/psnr_", False),
    Panel("training loss by a frame's noise level", "train/loss_by_sigma/", True),
    Panel("training loss of single steps", "train/loss", False),
    Panel("norm of the gradients, before clipping", "train/grad_norm", False),
)


def draw(path: str | Path, curve: Curve, runs: Sequence[Run]) -> None:
    """Draw runs over the band of the curve; written whole or not at all.

    Filled: between the smallest and largest known good value. A run of other settings is scaled in
    relative panels so that its first value lies on the curve: shapes can be compared, not values.
    """
    figure = Figure(figsize=(15, 8))
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        _draw_panel(axes, panel, curve, runs)
    scaled = any(curve.difference(run.settings) for run in runs)
    names = ", ".join(f"{run.name} ({_style(i)})" for i, run in enumerate(runs))
    title = f"filled: known good runs; line: {names}"
    figure.suptitle(title + "; other settings: scaled to begin on the curve" * scaled, fontsize=11)
    figure.subplots_adjust(0.05, 0.07, 0.99, 0.91, wspace=0.16, hspace=0.3)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=80, format="png")


def _style(number: int) -> str:
    return STYLES[number % len(STYLES)]


def _draw_panel(axes: Axes, panel: Panel, curve: Curve, runs: Sequence[Run]) -> None:
    every = {*curve.points, *(name for run in runs for name in run.series)}
    names = sorted(name for name in every if panel.holds(name))
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        points = curve.points.get(name, ())
        end = points[-1].mean if points else 0.0
        relative = panel.relative and end > 0
        if panel.relative and not relative:
            continue  # the curve does not know it: there is nothing it could be relative to

        def shown(value: float, end: float = end, relative: bool = relative) -> float:
            return 100 * (value / end - 1) if relative else value

        steps = [point.step for point in points]
        low, high = ([shown(getattr(p, part)) for p in points] for part in ("low", "high"))
        axes.fill_between(steps, low, high, color=colour, alpha=0.25, linewidth=0)
        label = name.removeprefix(panel.names) or name.rpartition("/")[2]
        for i, run in enumerate(runs):
            values = run.series.get(name)
            if not values:
                continue
            factor = _factor(curve, run, name) if relative else 1.0
            axes.plot(
                [step for step, _ in values], [shown(factor * value) for _, value in values],
                _style(i), color=colour, linewidth=1.4, marker="." if len(values) < 20 else "",
                label=label,
            )  # fmt: skip
            label = None  # one entry of the legend for all runs
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("steps", fontsize=9)
    if panel.relative:
        axes.set_ylabel("% above the known good end", fontsize=9)
    if axes.get_lines():
        axes.legend(fontsize=8)
    else:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center")


def _factor(curve: Curve, run: Run, name: str) -> float:
    """What brings a run of other settings onto the curve at its first value there."""
    if curve.difference(run.settings) is None:
        return 1.0
    pairs = ((curve.at(name, step), value) for step, value in run.series.get(name, []))
    return next((point.mean / value for point, value in pairs if point and value > 0), 1.0)
