"""Statistics of crossed measurements: R trained seeds, each measured on the same N clips.

A conclusion is to hold for new trainings and for new clips, so both are random effects: the
two-way analysis of variance without replication. Scores that know no training are in `stats.py`.

The variance of a mean adds mean squares of few and of many degrees of freedom. Satterthwaite's
approximation is too bold for that: of three seeds, where seeds and clips matter alike, its 95%
intervals hold the truth in 92 of 100 cases and its 99.5% intervals, which corrections for several
comparisons need, in 97.5. Here every part is stretched by its own quantile of Student's t instead
(Banerjee 1961, Sankhya A 23: never too narrow for independent mean squares).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from scipy.optimize import brentq
from scipy.special import stdtrit
from torch import Tensor

from pusa.evaluation.stats import CONFIDENCE

Verdict = Literal["higher", "lower", "equal within margin", "no difference shown"]
_SMALLEST_P = 1e-30  # what is below is told as 0


@dataclass(frozen=True)
class Estimate:
    """A mean with the half width of its interval, for new seeds and new clips.

    half_width: infinite where there is nothing to tell it from (one clip).
    degrees: Satterthwaite's degrees of freedom, for the reader: near seeds - 1 where trainings
    decide, near clips - 1 where clips do. The interval is somewhat wider than Student's t of them.
    p_value: two-sided, of a mean of 0; below 0.05 just where the 95% interval leaves out 0.
    seeds: with 1, only clips are random: it says nothing of another training.
    """

    mean: float
    half_width: float
    degrees: float
    p_value: float
    seeds: int
    clips: int

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width


@dataclass(frozen=True)
class Optimum:
    """Where along a grid a metric is best.

    place: the estimate, in the keys of the grid, or in their log2 where the scale is "log". Its
    half width is infinite where an optimum is at an edge: the grid ends before the curve turns.
    by_seed: (R,) each training's own optimum.
    per_clip: (R, N) jackknife pseudo-values, of mean by_seed. Hand them to `trend` or `difference`
    to compare optima.
    at_edge: the rows whose optimum is the first or last key; widen the grid to mend it.
    """

    place: Estimate
    by_seed: Tensor
    per_clip: Tensor
    at_edge: tuple[int, ...]


def estimate(values: Tensor, level: float = CONFIDENCE) -> Estimate:
    """The mean of values (R, N): R seeds x N clips, with its interval at `level`.

    A clip with NaN for any seed is dropped for all. One seed: Student's t over clips alone.
    ValueError for another shape, infinite values or no clip left.
    """
    (kept,) = _complete(values)
    return _combine([kept], kept.mean(0), level)


def difference(
    ours: Tensor, theirs: Tensor, level: float = CONFIDENCE, *, paired_seeds: bool = False
) -> Estimate:
    """ours (R, N) less theirs (R', N), paired by clip.

    paired_seeds: row r of both was trained with the same seed (order of data, and as far as what
    is compared allows, noise); needs R = R'. Else the trainings are independent. theirs (1, N) is a
    model that was not trained: it adds no variance of seeds. (If it was trained, the result holds
    for that training only.)
    A clip with NaN anywhere is dropped. ValueError as `estimate`, and where seeds do not pair.
    """
    ours, theirs = _complete(ours, theirs)
    if paired_seeds:
        if len(ours) != len(theirs):
            raise ValueError(
                f"{len(ours)} and {len(theirs)} seeds cannot be paired; keep the seeds that both "
                "were trained with, or compare with paired_seeds=False."
            )
        return _combine([ours - theirs], (ours - theirs).mean(0), level)
    if len(ours) == 1 < len(theirs):
        raise ValueError(
            f"ours has 1 seed and theirs {len(theirs)}; train ours with more seeds or, if ours is "
            "a model that was not trained, hand it in as theirs."
        )
    return _combine([ours, theirs], ours.mean(0) - theirs.mean(0), level)


def trend(values: Mapping[float, Tensor], level: float = CONFIDENCE) -> Estimate:
    """The least-squares slope over log2(key), of values {key: (R, N)}, for each seed and clip.

    Per doubling of the key. Row r of every entry makes one line: give rows of the same seed.
    ValueError for fewer than two keys, a key that is not positive, or unequal shapes.
    """
    if len(values) < 2 or min(values) <= 0:
        raise ValueError(
            f"a slope over log2 needs 2 or more positive keys, found {sorted(values)}."
        )
    x = torch.tensor([math.log2(key) for key in values], dtype=torch.float64)
    x -= x.mean()
    (stacked,) = _complete(_stack(values))
    return estimate(torch.einsum("k,krn->rn", x / x.square().sum(), stacked), level)


def best(
    values: Mapping[float, Tensor], scale: Literal["log", "linear"], level: float = CONFIDENCE
) -> Optimum:
    """The key with the highest value of {key: (R, N)}, between the keys of the grid.

    For each seed, a parabola through its three means around the highest. How far the place moves
    with other clips is told by leaving out each clip in turn (jackknife), so that the interval
    holds for new seeds and new clips; one over the R optima alone takes the clips as given.
    Where lower is better, hand in the negated values. ValueError for fewer than three keys.
    """
    if len(values) < 3 or (scale == "log" and min(values) <= 0):
        raise ValueError(
            f"an optimum needs 3 or more keys, positive ones on a log scale, found "
            f"{sorted(values)}; measure more of the grid."
        )
    grid = dict(sorted(values.items()))
    x = torch.tensor([math.log2(k) if scale == "log" else k for k in grid], dtype=torch.float64)
    (stacked,) = _complete(_stack(grid))
    means, clips = stacked.mean(2), stacked.shape[2]
    top = means.argmax(0)  # (R,)
    middle = top.clamp(1, len(x) - 2)
    on_edge = top != middle
    by_seed = torch.where(on_edge, x[top], _vertices(x, means, middle))
    # The same three points without each clip: a hop to others would be counted N times over.
    without = (stacked.sum(2, keepdim=True) - stacked) / max(clips - 1, 1)
    moved = _vertices(x, without, middle[:, None].expand(-1, clips))
    moved = torch.where(on_edge[:, None], 0.0, moved.mean(1, keepdim=True) - moved)
    per_clip = by_seed[:, None] + (clips - 1) * moved
    place = estimate(per_clip, level)
    at_edge = tuple(on_edge.nonzero().flatten().tolist())
    if at_edge:
        place = Estimate(place.mean, math.inf, 0.0, 1.0, place.seeds, place.clips)
    return Optimum(place, by_seed, per_clip, at_edge)


def verdict(found: Estimate, margin: float = 0.0) -> Verdict:
    """What an interval shows. Inside ±margin it is equal for all purposes, even without 0 in it."""
    if -margin < found.low and found.high < margin:
        return "equal within margin"
    if found.low > 0:
        return "higher"
    return "lower" if found.high < 0 else "no difference shown"


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p (1979), in the given order: compare each with 0.05, and the chance of any
    false finding among all of them is at most 0.05. ValueError for what is no probability."""
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p values lie in 0 to 1, found {list(p_values)}; leave out what is NaN.")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


@dataclass(frozen=True)
class _Variance:
    """Of a mean: (variance, degrees) by the mean squares of each side's seeds, of clips and of the
    residual, each over R N. seeds and clips hold a residual each; one of them goes."""

    seeds: list[tuple[float, int]]
    clips: tuple[float, int]
    residual: tuple[float, int]

    def reach(self, tail: float) -> float:
        """How far from the truth the mean is with probability `tail` on each side."""
        clips = max(self.clips[0] - self.residual[0], 0.0), self.clips[1]
        total = sum(_stretched(part, tail) for part in [*self.seeds, clips])
        return math.sqrt(max(total, _stretched(self.residual, tail)))

    def degrees(self) -> float:
        """Satterthwaite's; 0 where nothing varies."""
        squares = [*self.seeds, self.clips, self.residual]
        spread = sum(variance**2 / degrees for variance, degrees in squares)
        total = sum(variance for variance, _ in [*self.seeds, self.clips]) - self.residual[0]
        return max(total, self.residual[0]) ** 2 / spread if spread else 0.0

    def p_value(self, mean: float) -> float:
        """Two-sided p of a mean of 0: one less the level whose interval just reaches it."""
        if mean == 0:
            return 1.0
        if self.reach(_SMALLEST_P / 2) <= abs(mean):
            return 0.0
        lowest = math.log(_SMALLEST_P)
        root = brentq(lambda log_p: self.reach(math.exp(log_p) / 2) - abs(mean), lowest, 0.0)
        return math.exp(cast(float, root))


def _stretched(part: tuple[float, int], tail: float) -> float:
    return part[0] * float(stdtrit(part[1], tail)) ** 2


def _combine(sides: Sequence[Tensor], per_clip: Tensor, level: float) -> Estimate:
    """The mean of per_clip (N,), the mean over seeds of one side (R, N) or the difference of two.

    var(mean) = (MS_seeds + MS_clips - MS_residual) / RN, at least MS_residual / RN; of two sides,
    the seeds' parts of both and the clips' part of the difference.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level} is no confidence; use one between 0 and 1, as 0.95.")
    clips, mean = len(per_clip), float(per_clip.mean())
    trained = [side for side in sides if len(side) > 1]
    seeds = min((len(side) for side in trained), default=1)
    if clips == 1:
        return Estimate(mean, math.inf, 0.0, 1.0, seeds, 1)
    by_seed, residual, freedom = [], 0.0, 0
    for side in trained:
        effects, degrees = side.mean(1, keepdim=True), (len(side) - 1) * (clips - 1)
        noise = side - effects - side.mean(0) + side.mean()
        by_seed.append((float(effects.var()) / len(side), len(side) - 1))
        residual += float(noise.square().sum()) / degrees / side.numel()
        freedom = min(freedom or degrees, degrees)
    by_clip = (float(per_clip.var()) / clips, clips - 1)
    variance = _Variance(by_seed, by_clip, (residual, max(freedom, 1)))
    half_width = variance.reach((1 - level) / 2)
    return Estimate(mean, half_width, variance.degrees(), variance.p_value(mean), seeds, clips)


def _complete(*sides: Tensor) -> list[Tensor]:
    """(..., R, N) float64, without the clips that are NaN anywhere."""
    clips = {side.shape[-1] if side.dim() > 1 and side.numel() else 0 for side in sides}
    if len(clips) > 1 or 0 in clips:
        shapes = " and ".join(str(tuple(side.shape)) for side in sides)
        raise ValueError(
            f"values of shape {shapes}; hand in (seeds, clips), all of the same clips."
        )
    doubles = [side.double() for side in sides]
    if any(side.isinf().any() for side in doubles):
        raise ValueError("there are infinite values; mark what has no value by NaN, or mend it.")
    missing = torch.stack([side.isnan().flatten(0, -2).any(0) for side in doubles]).any(0)
    if missing.all():
        raise ValueError(
            f"every one of the {len(missing)} clips has a NaN; leave out the seed or the system "
            "that the metric does not apply to, or measure it on clips that it applies to."
        )
    return [side[..., ~missing] for side in doubles]


def _stack(values: Mapping[float, Tensor]) -> Tensor:
    """(K, R, N) float64 in the order of the mapping."""
    if len({tuple(entry.shape) for entry in values.values()}) > 1:
        shapes = {key: tuple(entry.shape) for key, entry in values.items()}
        raise ValueError(f"unequal shapes {shapes}; keep the seeds and clips that all keys have.")
    return torch.stack([entry.double() for entry in values.values()])


def _vertices(x: Tensor, curves: Tensor, middle: Tensor) -> Tensor:
    """Where parabolas through the points middle - 1, middle, middle + 1 of curves (K, ...) turn.

    x: (K,) ascending. On a straight or upturned line, the middle point.
    """
    left, at, right = x[middle - 1], x[middle], x[middle + 1]
    y = [curves.gather(0, (middle + step)[None])[0] for step in (-1, 0, 1)]
    rise, fall = (y[1] - y[0]) / (at - left), (y[1] - y[2]) / (right - at)
    # The slope falls from `rise` to -`fall` between the middles of the two intervals.
    turn = (left + at) / 2 + rise / (rise + fall) * (right - left) / 2
    return torch.where(rise + fall > 0, turn, at)
