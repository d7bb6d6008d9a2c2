"""Measurements of a study as arrays: seeds x clips of a metric, at a setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pusa.evaluation.study import read_rows

BEST = "best"  # a strength: each run's own best, see `Table.own_best`


class Undecidable(ValueError):
    """What is measured cannot tell: the grid of strengths ends before its best."""


class NotMeasured(ValueError):
    """A table lacks what is asked of it, or has several; the page shows the rest."""


@dataclass(frozen=True)
class Point:
    """What to look up: a variant, a metric, and settings by name, those left out being free as long
    as the table has one value for them."""

    variant: str
    metric: str
    setting: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, variant: str, metric: str, **setting: Any) -> "Point":
        return cls(variant, metric, tuple(sorted(setting.items())))

    def __str__(self) -> str:
        told = [f"{name} {value}" for name, value in self.setting if value is not None]
        return f"{self.metric} of {self.variant}" + (f" ({', '.join(told)})" if told else "")

    def at(self, **setting: Any) -> "Point":
        """The same with other settings."""
        return Point.of(self.variant, self.metric, **(dict(self.setting) | setting))


class Table:
    """The rows of one study. NotMeasured where there is none."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        if not rows:
            raise NotMeasured("nothing is measured")
        self.rows = rows

    @classmethod
    def read(cls, path: str | Path) -> "Table":
        return cls(read_rows(Path(path)))

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(row["variant"] for row in self.rows))

    def choices(self, name: str, **setting: Any) -> list[Any]:
        """The values of a setting, in ascending order."""
        found = {row[name] for row in self.rows if _fits(row, setting)}
        return sorted(value for value in found if value is not None)

    def seeds(self, point: Point) -> set[int]:
        """The trainings that a variant was measured with."""
        return {row["seed"] for row in self.rows if row["variant"] == point.variant}

    def values(self, point: Point) -> Tensor:
        """(seeds, clips) float64; NaN where the metric does not apply to a clip.

        NotMeasured if there is none, or what is asked leaves several of a clip.
        """
        setting = dict(point.setting)
        if setting.get("strength") == BEST:
            return self.own_best(point)
        found: dict[tuple[int, int], float] = {}
        for row in self.rows:
            if row["variant"] != point.variant or not _fits(row, setting):
                continue
            key = row["seed"], row["clip"]
            if key in found:
                raise NotMeasured(f"{point} says too little: there are several such measurements")
            found[key] = row.get(point.metric, float("nan"))
        return _square(found, point)

    def by(self, point: Point, name: str) -> dict[float, Tensor]:
        """The values at each choice of a setting."""
        setting = _without(point, name, BEST)
        choices = self.choices(name, **setting)
        if not choices:
            raise NotMeasured(f"{point} has no {name}")
        return {choice: self.values(point.at(**{name: choice})) for choice in choices}

    def own_best(self, point: Point) -> Tensor:
        """(seeds, clips) at the strength that is best for the variant. It is chosen on the other
        half of the clips and, of several, the other seeds, so that nothing has a say in the choice
        that it is judged with. A run without a LoRA has but one.

        Undecidable if the largest strength is the best."""
        strengths = self.choices("strength", **_without(point, "strength"))
        if not strengths:
            return self.values(point.at(strength=None))
        stacked = torch.stack(list(self.by(point, "strength").values()))  # (strengths, R, N)
        if len(strengths) > 1 and int(stacked.nanmean((1, 2)).argmax()) == len(strengths) - 1:
            raise Undecidable(
                f"{point}: {strengths[-1]:g}, the end of the grid, is the best measured"
            )
        even = torch.arange(stacked.shape[2]) % 2 == 0
        chosen = torch.empty_like(stacked[0])
        for seed in range(len(chosen)):
            others = [s for s in range(len(chosen)) if s != seed] or [seed]
            for half in (even, ~even):
                top = int(stacked[:, others][:, :, ~half].nanmean((1, 2)).argmax())
                chosen[seed, half] = stacked[top, seed, half]
        return chosen


def _without(point: Point, name: str, value: Any = None) -> dict[str, Any]:
    """Where a point is, but for one setting, and for any that has this value."""
    kept = {k: v for k, v in point.setting if k != name and (value is None or v != value)}
    return {"variant": point.variant} | kept


def _fits(row: Mapping[str, Any], setting: Mapping[str, Any]) -> bool:
    return all(row[name] == value for name, value in setting.items())


def _square(found: Mapping[tuple[int, int], float], point: Point) -> Tensor:
    """NotMeasured if there is none, or a seed lacks a clip."""
    seeds = sorted({seed for seed, _ in found})
    clips = sorted({clip for _, clip in found})
    if not found or len(found) != len(seeds) * len(clips):
        raise NotMeasured(f"{point} is not measured")
    table = [[found[seed, clip] for clip in clips] for seed in seeds]
    values = torch.tensor(table, dtype=torch.float64)
    if values.isnan().all():
        raise NotMeasured(f"{point} is not measured")
    return values
