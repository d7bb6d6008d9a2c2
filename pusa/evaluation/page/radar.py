"""All dimensions at a glance: two radar plots, one of a common range and one of each spoke's own.

They have no script: the boxes of the legend hide polygons by the page's style.
"""

import math
from collections.abc import Mapping, Sequence

from pusa.evaluation.page.drawing import line, rounded, svg
from pusa.evaluation.page.markup import Markup, tag
from pusa.evaluation.page.table import system_name
from pusa.evaluation.page.view import View, number, words
from pusa.evaluation.results import Column
from pusa.evaluation.scoring import QUANTITIES

WIDTH, HEIGHT, RADIUS = 600, 400, 150
NUM_RINGS, LABEL_GAP = 4, 18
NUM_HUES = 8  # of page.css
Ranges = Mapping[str, tuple[float, float]]


def spokes(view: View) -> list[Column]:
    """The fractions of which more is better, but for the totals, which are made of them."""
    return [
        column
        for column in view.result.columns
        if column.scale == 100 and column.better == "higher" and column.name not in QUANTITIES
        and any((s.name, column.name) in view.result.cells for s in view.result.systems)
    ]  # fmt: skip


def radar(view: View) -> Markup | None:
    """None for fewer than three spokes, which make no area."""
    columns = spokes(view)
    if len(columns) < 3:
        return None
    means = {
        c.name: [cell.mean * c.scale for (_, name), cell in view.result.cells.items()
                 if name == c.name]
        for c in columns
    }  # fmt: skip
    low, high = rounded([mean for column in means.values() for mean in column])
    common = dict.fromkeys(means, (low, high))
    own = {name: rounded(column) for name, column in means.items()}
    text = f"Every spoke from {low:g} (centre) to {high:g} (rim)."
    legend = [
        tag(
            "label", tag("input", type="checkbox", id=f"radar-{i}", checked=True),
            system_name(view, system),
        )
        for i, system in enumerate(view.result.systems)
    ]  # fmt: skip
    return tag(
        "div",
        tag("fieldset", tag("legend", "systems shown"), *legend, class_="legend"),
        _figure(view, columns, common, text, False),
        _figure(view, columns, own, "Every spoke over its own range, printed at it.", True),
        class_="radars",
    )


def style(view: View) -> str:
    """Each system's colour, and rules by which the legend's boxes hide polygons."""
    return "".join(
        f".s{i} {{ --hue: var(--hue-{i % NUM_HUES}); }}\n"
        f".radars:has(#radar-{i}:not(:checked)) .polygon.s{i} {{ display: none; }}\n"
        for i in range(len(view.result.systems))
    )


def _figure(
    view: View, columns: Sequence[Column], ranges: Ranges, caption: str, labelled: bool
) -> Markup:
    rings = [
        tag("polygon", points=_points([i / NUM_RINGS] * len(columns)), class_="ring")
        for i in range(1, NUM_RINGS + 1)
    ]
    axes = [line(*_place(0, i, len(columns)), *_place(1, i, len(columns)), "spoke")
            for i in range(len(columns))]  # fmt: skip
    labels = [
        _label(column, i, len(columns), ranges[column.name] if labelled else None)
        for i, column in enumerate(columns)
    ]
    low, high = ranges[columns[0].name]
    scale = [
        tag("text", number(low + (high - low) * i / NUM_RINGS, 0),
            x=WIDTH / 2 - 5, y=HEIGHT / 2 - RADIUS * i / NUM_RINGS + 4,
            class_="tick", text_anchor="end")
        for i in range(NUM_RINGS + 1)
    ]  # fmt: skip
    polygons = [_polygon(view, place, columns, ranges) for place in _back_to_front(view)]
    picture = svg(
        WIDTH, HEIGHT, f"Radar plot. {caption}", *rings, *axes, *labels, *polygons,
        *([] if labelled else scale), class_="plot radar",
    )  # fmt: skip
    return tag("figure", picture, tag("figcaption", f"{view.result.title}. {caption}"))


def _back_to_front(view: View) -> list[int]:
    """Controls behind, the contender on top."""
    order = ("control", "other", "baseline", "contender")
    systems = view.result.systems
    return sorted(range(len(systems)), key=lambda i: order.index(systems[i].role))


def _polygon(view: View, place: int, columns: Sequence[Column], ranges: Ranges) -> Markup:
    """Closed and filled if there is a value on every spoke, else its corners and known edges."""
    system = view.result.systems[place]
    corners: list[tuple[float, float] | None] = []
    for i, column in enumerate(columns):
        cell, (low, high) = (
            view.result.cells.get((system.name, column.name)),
            ranges[column.name],
        )
        share = None if cell is None else (cell.mean * column.scale - low) / (high - low)
        corners.append(None if share is None else _place(share, i, len(columns)))
    known = [corner for corner in corners if corner is not None]
    edges = [
        f"M{a[0]:.2f} {a[1]:.2f}L{b[0]:.2f} {b[1]:.2f}"
        for a, b in zip(corners, [*corners[1:], corners[0]], strict=True)
        if a is not None and b is not None
    ]
    whole = len(known) == len(corners)
    closed = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in known) + "Z"
    return tag(
        "g", tag("title", system.name),
        tag("path", d=closed if whole else "".join(edges), class_=None if whole else "part"),
        *(tag("circle", cx=x, cy=y, r=2.5) for x, y in known),
        class_=f"polygon {system.role} s{place}",
    )  # fmt: skip


def _label(column: Column, place: int, count: int, ends: tuple[float, float] | None) -> Markup:
    x, y = _place(1 + LABEL_GAP / RADIUS, place, count)
    away = x - WIDTH / 2
    anchor = "middle" if abs(away) < 8 else "start" if away > 0 else "end"
    below = f"{ends[0]:g} to {ends[1]:g}" if ends else None
    # Above the centre a second line must not reach into the plot.
    lift = -12 if below and y < HEIGHT / 2 - RADIUS / 2 else 0
    return tag(
        "text", tag("tspan", words(column.name), x=x, y=y + 4 + lift),
        tag("tspan", below, x=x, dy=14, class_="tick") if below else None,
        text_anchor=anchor, class_="label",
    )  # fmt: skip


def _points(shares: Sequence[float]) -> str:
    places = (_place(share, i, len(shares)) for i, share in enumerate(shares))
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in places)


def _place(share: float, spoke: int, count: int) -> tuple[float, float]:
    """The first spoke points up, the others follow clockwise."""
    angle = 2 * math.pi * spoke / count
    reach = RADIUS * share
    return WIDTH / 2 + reach * math.sin(angle), HEIGHT / 2 - reach * math.cos(angle)
