"""`pusa track`: runs beside a known good curve, and the making of such a curve."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pusa.training.track import Curve, Run

log = logging.getLogger(__name__)


def add_commands(commands) -> None:
    track = commands.add_parser(
        "track",
        help="is a run on track? its curves beside those of known good runs",
        description="Says whether the held-out losses of runs, also of running ones, are where "
        "known good runs had them, and draws both. Without a run it prints the known good curve. "
        "How to read the picture: docs/on_track.md.",
    )
    track.add_argument(
        "runs", nargs="*", metavar="RUN", help="a run's folder, such as outputs/NAME"
    )
    track.add_argument(
        "--curve", metavar="FILE", help="the known good curve (the one of experiment=tiny_vta)"
    )
    track.add_argument(
        "--out", metavar="FILE.png",
        help="draw all runs in one picture (each in its own folder, as on_track.png)",
    )  # fmt: skip
    track.add_argument(
        "--make", metavar="FILE",
        help="write a curve of these runs: one recipe, two seeds at least, better three",
    )  # fmt: skip
    track.set_defaults(run=_track)


def _track(options: argparse.Namespace) -> None:
    from pusa.training.track import read_curve, read_run, verdict, write_curve

    folders = [Path(folder) for folder in options.runs]
    if options.make is not None:
        if options.curve is not None or options.out is not None:
            raise ValueError("--make writes a curve of the runs; leave --curve and --out away.")
        write_curve(options.make, folders)
        log.info("wrote %s", options.make)
        return
    out = None if options.out is None else Path(options.out)
    if out is not None and (out.suffix != ".png" or not folders):
        raise ValueError(f"--out {out}: name a .png, and the runs to draw.")
    curve = read_curve(options.curve or shipped_curve())
    if not folders:
        log.info("%s", "\n".join(table_of(curve)))
        return
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        log.info("%s: %s", run.name, verdict(curve, run))
        log.info("%s\n", "\n".join(table_of(curve, run)))
    from pusa.training.track_plot import draw

    pictures = [(f / "on_track.png", [run]) for f, run in zip(folders, runs, strict=True)]
    for path, drawn in pictures if out is None else [(out, runs)]:
        draw(path, curve, drawn)
        log.info("wrote %s", path)


def shipped_curve() -> str:
    """The curve that experiment=tiny_vta is compared with."""
    from pusa.cli import compose_config

    return compose_config("train", ["experiment=tiny_vta", "name=track"]).callbacks.track.curve


def table_of(curve: "Curve", run: "Run | None" = None) -> list[str]:
    """Smallest to largest known good value after the steps that have held-out losses, by name. Of a
    run its own values stand in front, and what is noise from step to step is left out."""
    from pusa.evaluation.tables import aligned
    from pusa.training.track import JUDGED

    left_out = ("@", "by_sigma") if run is None else ("@", "train/")
    names = [name for name in curve.points if not any(part in name for part in left_out)]
    known = {name: {point.step: point for point in curve.points[name]} for name in names}
    cells = [["step", *names]]
    steps = {step for name in JUDGED for step in known.get(name, ())}
    if run is not None:
        steps |= {step for name in JUDGED for step, _ in run.series.get(name, ())}
    for step in sorted(steps):
        row = [str(step)]
        for name in names:
            point = known[name].get(step)
            band = "" if point is None else f"{point.low:.4g} to {point.high:.4g}"
            own = None if run is None else dict(run.series.get(name, ())).get(step)
            row.append(band if own is None else f"{own:.4g} ({band or 'not known'})")
        cells.append(row)
    return aligned(cells)
