"""A result as the page looks at it: columns in their places, items ordered, numbers as text."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pusa.evaluation.results import Column, Item, Result, Shot, System
from pusa.evaluation.stats import Interval
from pusa.evaluation.tables import digits_of, scaled

STILLNESS = "dynamic_degree"  # what a still picture gives up for its high Total
MINUS, INFINITY, DASH = "\N{MINUS SIGN}", "\N{INFINITY}", "\N{EN DASH}"


@dataclass(frozen=True)
class View:
    """subject: what items are ordered by, the contender if there is one. rival: the baseline.

    columns: in the order shown. values: (system, column) -> item's index -> mean over its samples,
    scaled; of single videos, so that totals have none.
    """

    result: Result
    columns: tuple[Column, ...]
    subject: System
    rival: System | None
    values: Mapping[tuple[str, str], Mapping[int, float]]

    @cached_property
    def scored(self) -> tuple[Column, ...]:
        """Columns that single videos of the subject have values in; in the result's order."""
        return tuple(c for c in self.result.columns if self.values.get((self.subject.name, c.name)))

    @cached_property
    def shots(self) -> Mapping[tuple[int, str], Sequence[Shot]]:
        """(item's index, system) -> its samples in order."""
        found: dict[tuple[int, str], list[Shot]] = {}
        for shot in sorted(self.result.shots, key=lambda shot: shot.sample):
            found.setdefault((shot.index, shot.system), []).append(shot)
        return found

    @cached_property
    def positions(self) -> Mapping[int, int]:
        """Item's index -> its place in the suite."""
        return {item.index: place for place, item in enumerate(self.result.items)}

    @cached_property
    def digits(self) -> Mapping[str, int]:
        """Decimals of every column."""
        return {c.name: self._digits(c) for c in self.result.columns}

    def place(self, system: str) -> int:
        """A system's number, by which it has its colour."""
        return [s.name for s in self.result.systems].index(system)

    def gaps(self, column: Column) -> dict[int, float]:
        """Item's index -> subject - rival, or the subject's own value if there is no rival."""
        ours = self.values.get((self.subject.name, column.name), {})
        if self.rival is None:
            return dict(ours)
        theirs = self.values.get((self.rival.name, column.name), {})
        return {index: ours[index] - theirs[index] for index in ours if index in theirs}

    def worst_first(self, column: Column | None) -> list[Item]:
        """All items by how little the subject gains over its rival; those without a value last."""
        if column is None:
            return list(self.result.items)
        gains = {i: gap * sign(column) for i, gap in self.gaps(column).items()}
        return sorted(self.result.items, key=lambda item: gains.get(item.index, math.inf))

    def number(self, value: float, column: str, signed: bool = False) -> str:
        return number(value, self.digits.get(column, 3), signed)

    def _digits(self, column: Column) -> int:
        cells = [cell for (_, name), cell in self.result.cells.items() if name == column.name]
        return digits_of(*(scaled(cell, column.scale) for cell in cells))


def make_view(result: Result) -> View:
    """ValueError for a result without systems or columns."""
    if not (result.systems and result.columns):
        raise ValueError("a page needs a system and a column at least; score something first.")
    subject = next(
        found
        for role in ("contender", "baseline", "other", "control")
        if (found := result.system(role)) is not None
    )
    rival = result.system("baseline")
    lists: dict[tuple[str, str], dict[int, list[float]]] = {}
    scales = {column.name: column.scale for column in result.columns}
    for shot in result.shots:
        for name, value in shot.values.items():
            if name in scales and math.isfinite(value):
                items = lists.setdefault((shot.system, name), {})
                items.setdefault(shot.index, []).append(value * scales[name])
    values = {
        key: {index: statistics.fmean(found) for index, found in items.items()}
        for key, items in lists.items()
    }
    return View(
        result, placed(result.columns), subject, None if rival == subject else rival, values
    )


def placed(columns: Sequence[Column]) -> tuple[Column, ...]:
    """Motion stands beside the Total: the one must not be read without the other."""
    names = [column.name for column in columns]
    if "Total" not in names or STILLNESS not in names:
        return tuple(columns)
    rest = [column for column in columns if column.name != STILLNESS]
    rest.insert(
        next(i for i, c in enumerate(rest) if c.name == "Total") + 1,
        columns[names.index(STILLNESS)],
    )
    return tuple(rest)


def sign(column: Column) -> int:
    return 1 if column.better == "higher" else -1


def words(name: str) -> str:
    """A column's name that a narrow heading can break."""
    return name.replace("_", " ")


def number(value: float, digits: int, signed: bool = False) -> str:
    """With a real minus and infinity's sign."""
    if not math.isfinite(value):
        return f"{MINUS if value < 0 else '+' * signed}{INFINITY}"
    text = f"{value:{'+' * signed}.{digits}f}"
    return text.replace("-", MINUS)


def ends(interval: Interval, digits: int, signed: bool = False) -> str:
    """Of an interval: "[79.12, 83.40]", "[−∞, ∞]" for one prompt alone."""
    low, high = (number(end, digits, signed) for end in (interval.low, interval.high))
    return f"[{low}, {high}]"
