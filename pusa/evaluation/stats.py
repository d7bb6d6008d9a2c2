"""Means with 95% intervals, paired differences, and when one system beats another.

The clip is the independent unit. Several seeds of one clip share its difficulty, so they are first
averaged to one value per clip; the interval is Student's t over the clips. It needs no random
draw. It is too narrow where all clips agree exactly (0 or 1 on every clip gives width 0).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats as distributions

from pusa.metrics.registry import Better

CONFIDENCE = 0.95
Scores = Mapping[int, Sequence[float]]  # clip index -> its values, one per seed


@dataclass(frozen=True)
class Interval:
    """A mean over `num_clips` clips and the ends of its 95% interval (infinite for one clip)."""

    mean: float
    low: float
    high: float
    num_clips: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Contrast:
    """Two systems on one metric, and their difference first - second, paired by clip."""

    metric: str
    better: Better
    first: Interval
    second: Interval
    difference: Interval

    @property
    def first_beats(self) -> bool:
        """True if `first` is better by more than both intervals: they do not even touch."""
        if self.better == "higher":
            return self.first.low > self.second.high
        return self.first.high < self.second.low

    @property
    def first_loses(self) -> bool:
        """True if `second` is better by more than both intervals."""
        if self.better == "higher":
            return self.second.low > self.first.high
        return self.second.high < self.first.low


def mean_interval(scores: Scores) -> Interval:
    """Mean over clips of the mean over each clip's seeds; ValueError if there are no values."""
    values = list(_per_clip(scores).values())
    if not values:
        raise ValueError("no scores to average; score at least one clip (see scores.jsonl).")
    return _student(values)


def contrast(metric: str, first: Scores, second: Scores, better: Better = "higher") -> Contrast:
    """Compare two systems on a metric. The difference is taken on the clips that both have.

    ValueError if they share no clip.
    """
    ours, theirs = _per_clip(first), _per_clip(second)
    shared = [ours[clip] - theirs[clip] for clip in ours if clip in theirs]
    if not shared:
        raise ValueError(f"{metric}: the systems share no clip; score both on the same suite.")
    return Contrast(metric, better, mean_interval(first), mean_interval(second), _student(shared))


def _per_clip(scores: Scores) -> dict[int, float]:
    return {clip: statistics.fmean(values) for clip, values in scores.items() if len(values)}


def _student(values: Sequence[float]) -> Interval:
    """Student's t interval of independent values; the whole line if there is only one."""
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    quantile = float(distributions.t.ppf((1 + CONFIDENCE) / 2, count - 1))
    half = quantile * statistics.stdev(values) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)
