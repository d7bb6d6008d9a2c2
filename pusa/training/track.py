"""Is a run on track? Its held-out losses beside a known good curve, in words and in pictures.

The curve is a file that runs of the same recipe and other seeds have made; the picture is drawn in
track_plot.
"""

import csv
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from pusa.atomic import write_text
from pusa.training.health import publish
from pusa.training.loggers import Metrics, read_metrics
from pusa.training.run import CONFIG

log = logging.getLogger(__name__)
COLUMNS = ("step", "name", "low", "mean", "high", "runs")
JUDGED = ("heldout/first_clean", "heldout/shared")  # smaller is better
# What a curve holds of its runs: all names that begin so.
NAMES = ("heldout/", "samples/psnr_", "train/loss", "train/grad_norm")
# What makes two runs comparable value by value, as keys of a run's config.json.
SETTINGS = (
    "model.name", "model.flow", "module._target_", "module.caption_dropout", "module.schedule",
    "module.optimizer.lr", "lora.rank", "timesteps", "batch_size",
    "trainer.max_steps", "data.num_clips", "data.train.manifest", "data.heldout.name",
)  # fmt: skip
# |a further run - mean of n runs| <= this * (their largest - their smallest) in 95% of cases, for
# normal values: three runs alone are outside each other's range half of the time. Simulated, 4e6
# draws each; tests/training/test_track.py draws some again.
REACH = {2: 11.05, 3: 2.61, 4: 1.60, 5: 1.24, 6: 1.05, 7: 0.94, 8: 0.86}
METRICS = "metrics/metrics.csv"  # in a run's folder
Series = dict[str, list[tuple[int, float]]]  # by name: (steps done, value)


@dataclass(frozen=True)
class Point:
    """A quantity of the known good runs after some step."""

    step: int
    low: float
    mean: float
    high: float
    runs: int

    def expected(self) -> tuple[float, float]:
        """Where a further run of the recipe with another seed is in 95% of cases."""
        reach = REACH[min(self.runs, max(REACH))] * (self.high - self.low)
        return self.mean - reach, self.mean + reach


@dataclass(frozen=True)
class Curve:
    """Known good runs: points by name and step, and the settings they have in common."""

    points: Mapping[str, Sequence[Point]]
    settings: Mapping[str, Any]

    def at(self, name: str, step: float) -> Point | None:
        """The point between the two beside `step`, in a straight line; None outside of all."""
        points = self.points.get(name, ())
        if not points or not points[0].step <= step <= points[-1].step:
            return None
        steps = [point.step for point in points]
        low, mean, high = (
            float(np.interp(step, steps, [getattr(point, part) for point in points]))
            for part in ("low", "mean", "high")
        )
        return Point(round(step), low, mean, high, min(point.runs for point in points))

    def difference(self, settings: Mapping[str, Any]) -> str | None:
        """What a run of these settings has otherwise, in words; None if nothing."""
        different = [
            f"of {key} {_word(self.settings.get(key))}, this run has {_word(settings.get(key))}"
            for key in sorted(self.settings.keys() | settings.keys())
            if self.settings.get(key) != settings.get(key)
        ]
        if not different:
            return None
        return f"the known good curve is {'; '.join(different)}: compare shapes, not values"


def _word(value: Any) -> str:
    return "none" if value is None else str(value)


@dataclass(frozen=True)
class Run:
    """What a run has logged so far, and the settings that decide whether it can be compared."""

    name: str
    series: Series
    settings: Mapping[str, Any]


def read_run(folder: str | Path) -> Run:
    """A run's metrics and settings, running or finished; ValueError if the folder holds none."""
    folder = Path(folder)
    metrics = folder / METRICS
    if not metrics.is_file():
        raise ValueError(
            f"{folder}: holds no {METRICS}; name a run's folder, such as outputs/NAME."
        )
    config = _read_config(folder)
    return Run(config["name"], series_of(read_metrics(metrics)), settings_of(config))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder}: holds no {CONFIG}; name a run's folder, such as outputs/NAME.")
    return json.loads(path.read_text())


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """SETTINGS of a run's configuration by dotted keys, what is nested in them spread out; what is
    null or not there, as lora.rank with lora=none, is left out."""
    found = {}
    for key in SETTINGS:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        inner = value if isinstance(value, dict) else {"": value}
        found |= {f"{key}.{name}".rstrip("."): v for name, v in inner.items() if v is not None}
    return found


def series_of(rows: Iterable[Mapping[str, Any]]) -> Series:
    """Values of all quantities by steps done; rows count steps from 0. The last value of a step
    counts, and what is not finite does not."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for name in row.keys() - {"step", "epoch"}:
            found.setdefault(name, {})[int(float(row["step"])) + 1] = float(row[name])
    return {
        name: [(step, value) for step, value in sorted(values.items()) if np.isfinite(value)]
        for name, values in found.items()
    }


def write_curve(path: str | Path, runs: Sequence[Path], names: Sequence[str] = NAMES) -> None:
    """Write the band of several runs: mean, smallest and largest value of every quantity whose name
    begins with one of `names`, after the steps that all runs have of it.

    ValueError for fewer than two runs, for runs of different settings, or if no quantity is common.
    """
    read = [read_run(run) for run in runs]
    if len(read) < 2:
        raise ValueError("a curve needs two runs at least, better three: their spread is the band.")
    for folder, run in zip(runs, read, strict=True):
        for key in sorted(run.settings.keys() | read[0].settings.keys()):
            if run.settings.get(key) != read[0].settings.get(key):
                raise ValueError(
                    f"{folder} has {key} {_word(run.settings.get(key))}, {runs[0]} has "
                    f"{_word(read[0].settings.get(key))}; a curve is of one recipe."
                )
    text = io.StringIO()
    for key, value in read[0].settings.items():
        text.write(f"# {key}: {json.dumps(value)}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    common = set.intersection(*(set(run.series) for run in read))
    wanted = sorted(name for name in common if name.startswith(tuple(names)))
    rows = [row for name in wanted for row in _band(name, [dict(run.series[name]) for run in read])]
    if not rows:
        raise ValueError(f"these runs have no step of {', '.join(names)} in common.")
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _band(name: str, values: Sequence[Mapping[int, float]]) -> Iterable[tuple]:
    for step in sorted(set.intersection(*(set(one) for one in values))):
        here = [one[step] for one in values]
        numbers = (min(here), sum(here) / len(here), max(here))
        yield (step, name, *(f"{number:.6g}" for number in numbers), len(here))


def read_curve(path: str | Path) -> Curve:
    """A file of `write_curve`; ValueError that names it if it is none."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such curve; `pusa track --make {path} RUN RUN RUN` makes it.")
    lines = path.read_text(encoding="utf-8").splitlines()
    settings, points = {}, {}
    try:
        for line in (line for line in lines if line.startswith("#")):
            key, _, value = line[1:].partition(":")
            settings[key.strip()] = json.loads(value)
        rows = csv.DictReader(line for line in lines if not line.startswith("#"))
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise ValueError(f"its columns are not {','.join(COLUMNS)}")
        for row in rows:
            low, mean, high = (float(row[part]) for part in ("low", "mean", "high"))
            runs = int(row["runs"])
            if not low <= mean <= high or runs < min(REACH):
                raise ValueError(f"{row} is no band of {min(REACH)} runs or more")
            point = Point(int(row["step"]), low, mean, high, runs)
            points.setdefault(row["name"], []).append(point)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a known good curve: {error}.") from error
    return Curve({n: sorted(p, key=lambda point: point.step) for n, p in points.items()}, settings)


def verdict(curve: Curve, run: Run) -> str:
    """One line: whether the run's latest held-out losses are where a further known good run would
    be in 95% of cases (`Point.expected`), above it (behind) or below it (ahead)."""
    if (difference := curve.difference(run.settings)) is not None:
        return difference
    latest = {name: run.series[name][-1] for name in JUDGED if run.series.get(name)}
    if not latest:
        return "no verdict yet: no held-out loss has been logged"
    words, parts = set(), []
    for name, (step, value) in latest.items():
        if (point := curve.at(name, step)) is None:
            continue
        low, high = point.expected()
        words.add("behind" if value > high else "ahead" if value < low else "on track")
        parts.append(f"{name} {value:.4g}, known good {low:.4g} to {high:.4g}")
    step = max(step for step, _ in latest.values())
    if not parts:
        return f"no verdict: the known good curve says nothing about step {step}"
    word = next(word for word in ("behind", "ahead", "on track") if word in words)
    return f"{word}: {'; '.join(parts)} at step {step}"


class Track(L.Callback):
    """After every validation and at the end, says in one line whether the run is on track, draws
    `on_track.png` in its folder, and logs the known good means as known_good/NAME.

    folder: the run's own, whose config.json tells its recipe: a run of another one is told so,
    once, and not judged. curve: a file of `write_curve`; with None, or one that is not there,
    nothing is done.
    """

    def __init__(self, folder: str | Path, curve: str | Path | None = None):
        self.folder, self.path = Path(folder), None if curve is None else Path(curve)
        self._curve: Curve | None = None
        self._done = -1  # the step of the latest comparison

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """ValueError, before the first step, for a file that is no curve."""
        if self.path is None:
            return
        if not self.path.is_file():
            if trainer.is_global_zero:
                log.info("no known good curve at %s; python train.py -m experiment=replica/demo "
                         "trains its runs, pusa track --make writes it", self.path)  # fmt: skip
            return
        self._curve = read_curve(self.path)
        if trainer.is_global_zero:
            difference = self._curve.difference(settings_of(_read_config(self.folder)))
            if difference is not None:
                log.info("%s", difference)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self._curve is not None and trainer.is_global_zero and not trainer.sanity_checking:
            means = {f"known_good/{name}": self._curve.at(name, trainer.global_step)
                     for name in self._curve.points}  # fmt: skip
            publish(trainer, {name: point.mean for name, point in means.items() if point})
            self._compare(trainer, self._curve)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self._curve is not None and trainer.is_global_zero:
            self._compare(trainer, self._curve)

    def _compare(self, trainer: L.Trainer, curve: Curve) -> None:
        metrics = next((one for one in trainer.loggers if isinstance(one, Metrics)), None)
        if metrics is None or self._done == trainer.global_step:
            return
        from pusa.training.track_plot import draw  # matplotlib, which other runs do not need

        self._done = trainer.global_step
        metrics.save()
        if not (self.folder / METRICS).is_file():  # too few steps: nothing was logged
            return
        run = read_run(self.folder)
        if curve.difference(run.settings) is None:
            log.info("%s", verdict(curve, run))
        draw(self.folder / "on_track.png", curve, [run])
