"""What the plots share: axes, and places on them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pusa.evaluation.page.markup import Markup, join, tag
from pusa.evaluation.page.view import number

NUM_TICKS = 5
STEPS = (1, 2, 2.5, 5, 10, 20)


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, drawn from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """The place of a value; of one outside, the end."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.stop - self.start)

    @property
    def ticks(self) -> list[float]:
        step = (self.high - self.low) / (NUM_TICKS - 1)
        return [self.low + i * step for i in range(NUM_TICKS)]

    def label(self, value: float) -> str:
        """As many decimals as the steps need, which have two digits at most."""
        step = (self.high - self.low) / (NUM_TICKS - 1)
        return number(value, max(0, 1 - math.floor(math.log10(step))))


def padded(values: Iterable[float], start: float, stop: float) -> Axis:
    """An axis that holds all values with a margin, its ticks at round numbers: the smallest step of
    1, 2, 2.5 or 5 times a power of ten that is large enough. page.js has the same rule."""
    found = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(found), max(found)
    margin = 0.03 * (high - low) or 0.03 * abs(high) or 1.0
    low, high = low - margin, high + margin
    power = 10.0 ** math.floor(math.log10((high - low) / (NUM_TICKS - 1)))
    for step in (power * size for size in STEPS):
        first = math.floor(low / step) * step
        if first + (NUM_TICKS - 1) * step >= high:
            break
    return Axis(first, first + (NUM_TICKS - 1) * step, start, stop)


def rounded(values: Sequence[float]) -> tuple[float, float]:
    """A range with ends of one digit that holds all values: 0 to 100, 60 to 70.

    But for a thousandth of its digit: the cosine of two equal pictures is now and then 1.0000001.
    """
    low, high = min(values), max(values)
    step = 10.0 ** math.floor(math.log10(high - low) + 1e-6) if high > low else 1.0
    first = math.floor(round(low / step, 3)) * step
    last = math.ceil(round(high / step, 3)) * step
    return first, last if last > first else first + step


def ticks_below(axis: Axis, y: float) -> Markup:
    return join(
        *(
            tag("text", axis.label(t), x=axis(t), y=y, class_="tick x", text_anchor="middle")
            for t in axis.ticks
        )
    )


def ticks_left(axis: Axis, x: float) -> Markup:
    return join(
        *(
            tag("text", axis.label(t), x=x, y=axis(t) + 4, class_="tick y", text_anchor="end")
            for t in axis.ticks
        )
    )


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def svg(width: float, height: float, title: str, *children: str | None, class_: str) -> Markup:
    """A picture that shrinks with the page; its title is read aloud, not shown."""
    return tag(
        "svg", *children, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=title,
        class_=class_, style=f"max-width:{width:g}px",
    )  # fmt: skip
