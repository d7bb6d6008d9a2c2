"""Comparisons of systems: in words, in numbers and as a forest plot; and what was retained."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from pusa.evaluation.page.drawing import Axis, line, padded, svg, ticks_below
from pusa.evaluation.page.markup import Markup, join, tag
from pusa.evaluation.page.view import DASH, View, ends, number, words
from pusa.evaluation.results import Comparison
from pusa.evaluation.stats import Interval
from pusa.evaluation.summary import verdict
from pusa.evaluation.tables import ARROWS, digits_of, retained, scaled, shown_p

WIDTH, LEFT, RIGHT, ROW = 640, 190, 20, 26
PERCENT, POINTS = 100.0, "percentage points"
FAR = 4  # times the median: what needs an axis of its own
LOOKS = {"better": "yes", "worse": "lost", "gained": "yes", "lost": "lost"}


@dataclass(frozen=True)
class Row:
    """A comparison, in the unit that is shown. scale: of its column."""

    comparison: Comparison
    scale: float
    digits: int

    @property
    def difference(self) -> Interval:
        return scaled(self.comparison.contrast.difference, self.scale)

    @property
    def detectable(self) -> float | None:
        found = self.comparison.detectable
        return None if found is None else found * self.scale

    @property
    def reach(self) -> float:
        """How far from zero its part of the plot goes; infinite ends are cut off."""
        span = self.difference
        ends = (span.low, span.mean, span.high, self.detectable or 0.0)
        return max(abs(end) for end in ends if math.isfinite(end))

    @property
    def label(self) -> str:
        contrast = self.comparison.contrast
        return f"{words(contrast.metric)}\N{NO-BREAK SPACE}{ARROWS[contrast.better]}"

    @property
    def look(self) -> str:
        return LOOKS.get(verdict(self.comparison), "open")


def headline(view: View) -> Markup | None:
    """The contender against the baseline, in a sentence; None if they were not compared."""
    if view.rival is None:
        return None
    pair = view.subject.name, view.rival.name
    rows = [_row(view, c) for c in view.result.comparisons if (c.first, c.second) == pair]
    if not rows:
        return None
    names = join(tag("b", pair[0]), " against ", tag("b", pair[1]), ". ")
    return tag("p", names, _summary(rows), class_="headline")


def comparisons(view: View) -> Markup:
    """A block for every pair: a sentence, the forest plot and the table; those of controls closed,
    since nobody asks how far a model is from noise before how far it is from its rival."""
    controls = {system.name for system in view.result.systems if system.role == "control"}
    blocks = []
    for (first, second), items in groupby(
        sorted(view.result.comparisons, key=lambda c: _pair_place(view, c)),
        key=lambda c: (c.first, c.second),
    ):
        rows = [_row(view, item) for item in items]
        names = join(tag("b", first), " against ", tag("b", second))
        body = [_forests(rows), _table(rows)]
        if second in controls:
            told = tag("summary", names, ". ", _summary(rows))
            blocks.append(tag("details", told, tag("div", *body, class_="pair")))
        else:
            lead = tag("p", _summary(rows), class_="lead")
            blocks.append(tag("div", tag("h3", names), lead, *body, class_="pair"))
    return join(*blocks)


def retention(view: View) -> Markup:
    """What the contender must not lose, measured elsewhere."""
    titles = ["", "baseline", "contender", "difference", "95% interval", "paired verdict"]
    rows = []
    for item in view.result.retention:
        digits, difference = digits_of(item.first, item.second), item.difference
        name = f"{words(item.metric)}\N{NO-BREAK SPACE}{ARROWS[item.better]}"
        word = retained(item)
        rows.append(
            tag(
                "tr",
                tag("th", name, scope="row"),
                *(
                    tag("td", number(side.mean, digits), tag("small", ends(side, digits)))
                    for side in (item.second, item.first)
                ),
                tag("td", number(difference.mean, digits, True)),
                tag("td", ends(difference, digits, True)),
                tag("td", word, class_=LOOKS.get(word, "open")),
            )
        )
    return _scroll("Retention", titles, rows)


def _row(view: View, item: Comparison) -> Row:
    scales = {column.name: column.scale for column in view.result.columns}
    name = item.contrast.metric
    return Row(item, scales.get(name, 1.0), view.digits.get(name, 3))


def _pair_place(view: View, item: Comparison) -> tuple[int, int, int]:
    """Pairs in the order they come in, their columns as in the table above."""
    pairs = list(dict.fromkeys((c.first, c.second) for c in view.result.comparisons))
    names = [column.name for column in view.columns]
    metric = item.contrast.metric
    place = names.index(metric) if metric in names else len(names)
    return pairs.index((item.first, item.second)), place, 0


def _summary(rows: Sequence[Row]) -> str:
    found = [verdict(row.comparison) for row in rows]
    outcomes = ("better", "worse", "no difference shown")
    parts = ", ".join(f"{word} in {found.count(word)}" for word in outcomes)
    untested = sum(row.comparison.p is None for row in rows)
    note = f" (of these, {untested} with too few prompts to test)" if untested else ""
    return f"Of {len(rows)} columns: {parts}{note}; each tested at 5% on its own."


def _table(rows: Sequence[Row]) -> Markup:
    titles = ["", "difference", "95% interval", "p", "detectable", "the first is"]
    lines = []
    for row in rows:
        difference, detectable = row.difference, row.detectable
        found = DASH if detectable is None else number(detectable, row.digits)
        lines.append(
            tag(
                "tr",
                tag("th", row.label, scope="row"),
                tag("td", number(difference.mean, row.digits, True)),
                tag("td", ends(difference, row.digits, True)),
                tag("td", shown_p(row.comparison.p).removeprefix("p = ").removeprefix("p ")),
                tag("td", found),
                tag("td", verdict(row.comparison), class_=row.look),
            )
        )
    return _scroll("Differences", titles, lines)


def _scroll(label: str, titles: Sequence[str], rows: Sequence[Markup]) -> Markup:
    head = tag("thead", tag("tr", *(tag("th", title, scope="col") for title in titles)))
    table = tag("table", head, tag("tbody", *rows), class_="plain")
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def _forests(rows: Sequence[Row]) -> Markup:
    plots = [_forest(panel, unit) for panel, unit in _panels(rows)]
    return tag("figure", *plots, tag("figcaption", _FOREST_NOTE), class_="forest")


def _panels(rows: Sequence[Row]) -> list[tuple[list[Row], str]]:
    """Rows that share an axis, and its unit: percentages, but those that would make the others
    too small to read share another; any other column has its own."""
    percent = [row for row in rows if row.scale == PERCENT]
    usual = statistics.median(row.reach for row in percent) if percent else 0.0
    wide = [row for row in percent if row.reach > FAR * usual]
    panels = [([row for row in percent if row not in wide], POINTS), (wide, POINTS)]
    panels += [([row], "in its own unit") for row in rows if row.scale != PERCENT]
    return [(panel, unit) for panel, unit in panels if panel]


_FOREST_NOTE = (
    "Difference first \N{MINUS SIGN} second with its 95% interval; for \N{DOWNWARDS ARROW} "
    "columns less is better. Green: the first is better, red: it is worse, at 5%. Shaded: true "
    "differences that a suite of this size would miss in more than 1 of 5 cases."
)


def _forest(rows: Sequence[Row], unit: str) -> Markup:
    reach = [0.0]
    for row in rows:
        span, width = row.difference, row.detectable or 0.0
        reach += [span.low, span.high, span.mean, -width, width]
    axis, bottom = padded(reach, LEFT, WIDTH - RIGHT), ROW * len(rows) + 6
    marks = [_mark(row, axis, ROW * (i + 0.5) + 4) for i, row in enumerate(rows)]
    pair = f"{rows[0].comparison.first} against {rows[0].comparison.second}"
    return svg(
        WIDTH, bottom + 36, f"Differences of {pair}, {unit}",
        line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis"),
        line(axis(0), 0, axis(0), bottom, "zero"),
        *marks, ticks_below(axis, bottom + 15),
        tag("text", unit, x=(LEFT + WIDTH - RIGHT) / 2, y=bottom + 31, class_="unit",
            text_anchor="middle"),
        class_="plot",
    )  # fmt: skip


def _mark(row: Row, axis: Axis, y: float) -> Markup:
    """A line of the plot. An interval without ends has arrows instead."""
    span, width = row.difference, row.detectable
    low, mean, high = axis(span.low), axis(span.mean), axis(span.high)
    band = None
    if width is not None:
        left = axis(-width)
        band = tag("rect", x=left, y=y - 10, width=axis(width) - left, height=20, class_="blind")
    arrows = [
        tag("path", d=f"M{x - 7 * way:g} {y - 5:g}L{x:g} {y:g}L{x - 7 * way:g} {y + 5:g}")
        for x, end, way in ((low, span.low, -1), (high, span.high, 1))
        if math.isinf(end)
    ]
    text = f"{row.label}: {number(span.mean, row.digits, True)} {ends(span, row.digits, True)}"
    return tag(
        "g", tag("title", text), band,
        tag("text", row.label, x=LEFT - 10, y=y + 4, text_anchor="end", class_="label"),
        line(low, y, high, y, "whisker"), *arrows,
        tag("rect", x=mean - 4.5, y=y - 4.5, width=9, height=9, class_="mean"),
        class_=f"mark {row.look}",
    )  # fmt: skip
