"""Every item a dot: subject against rival, and the sorted differences.

Drawn here for the first column; page.js moves the same dots when another is chosen.
"""

from collections.abc import Mapping

from pusa.evaluation.page.drawing import (
    NUM_TICKS,
    STEPS,
    Axis,
    line,
    padded,
    svg,
    ticks_below,
    ticks_left,
)
from pusa.evaluation.page.markup import Markup, tag
from pusa.evaluation.page.view import View
from pusa.evaluation.results import Column

SIZE, WIDE = 400, 760  # of the square one; width of the other
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 46  # margins
FRAME = {
    "size": SIZE, "wide": WIDE, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM,
    "ticks": NUM_TICKS, "steps": STEPS,
}  # fmt: skip


def plots(view: View, column: Column) -> Markup:
    """Both pictures; without a rival the second has the subject's own values."""
    rival = view.rival.name if view.rival else ""
    ours = view.values[view.subject.name, column.name]
    theirs = view.values.get((rival, column.name), {})
    pairs = {i: (theirs[i], ours[i]) for i in ours if i in theirs}
    shared = padded([v for pair in pairs.values() for v in pair], 0, 1)
    across = Axis(shared.low, shared.high, LEFT, SIZE - RIGHT)
    up = Axis(shared.low, shared.high, SIZE - BOTTOM, TOP)
    scatter = svg(
        SIZE, SIZE, "Every item, one system against the other",
        line(LEFT, SIZE - BOTTOM, SIZE - RIGHT, TOP, "diagonal"), *_frame(SIZE),
        ticks_below(across, SIZE - BOTTOM + 16), ticks_left(up, LEFT - 6),
        _name(rival, SIZE / 2 + LEFT / 2, SIZE - 8, "x"), _upright(view.subject.name),
        *_dots(view, {i: (across(x), up(y)) for i, (x, y) in pairs.items()}),
        class_="plot dots",
    )  # fmt: skip
    gaps = view.gaps(column)
    ranks = {index: rank for rank, index in enumerate(sorted(gaps, key=lambda i: gaps[i]))}
    height = padded([*gaps.values(), *([0.0] if view.rival else [])], SIZE - BOTTOM, TOP)
    count = max(len(gaps), 1)
    places = {
        i: (LEFT + (ranks[i] + 0.5) / count * (WIDE - LEFT - RIGHT), height(gaps[i])) for i in gaps
    }
    what = "difference" if view.rival else view.subject.name
    zero = height(0.0)
    strip = svg(
        WIDE, SIZE, "Every item, sorted by the difference",
        line(LEFT, zero, WIDE - RIGHT, zero, "zero"), *_frame(WIDE),
        ticks_left(height, LEFT - 6), _name("items, sorted", (WIDE + LEFT) / 2, SIZE - 8, "x"),
        _upright(what), *_dots(view, places), class_="plot dots",
    )  # fmt: skip
    return tag(
        "div",
        tag("figure", scatter, tag("figcaption", _SCATTER), id="scatter", hidden=not view.rival),
        tag("figure", strip, tag("figcaption", _STRIP), id="strip"),
        class_="itemplots",
    )


_SCATTER = "A dot is an item (the mean of its samples). On the diagonal both systems are equal."
_STRIP = "The same items by difference. Click a dot for its videos; arrow keys walk along the dots."


def _dots(view: View, places: Mapping[int, tuple[float, float]]) -> list[Markup]:
    """A link for every item of the suite, so that the script has one to move; hidden without
    a place."""
    found = []
    for place, item in enumerate(view.result.items):
        spot = places.get(item.index)
        style = f"transform:translate({spot[0]:.2f}px,{spot[1]:.2f}px)" if spot else None
        found.append(
            tag(
                "a", tag("title", item.text), tag("circle", r=4.5),
                href=f"#item-{item.index}", class_="dot" if spot else "dot absent",
                style=style, tabindex="-1", data_item=place,
            )
        )  # fmt: skip
    return found


def _frame(width: float) -> list[Markup]:
    return [
        line(LEFT, SIZE - BOTTOM, width - RIGHT, SIZE - BOTTOM, "axis"),
        line(LEFT, TOP, LEFT, SIZE - BOTTOM, "axis"),
    ]


def _name(text: str, x: float, y: float, class_: str) -> Markup:
    return tag("text", text, x=x, y=y, text_anchor="middle", class_=f"unit name {class_}")


def _upright(text: str) -> Markup:
    y = (SIZE - BOTTOM + TOP) / 2
    return tag(
        "text", text, transform=f"translate(14 {y:g}) rotate(-90)", text_anchor="middle",
        class_="unit name y",
    )  # fmt: skip
