"""What each video adds to a reported number: the common ground of intervals, tests and planning.

Everything VBench-I2V reports, Total included, is linear in the means of its dimensions, and so a
sum over videos. A video's part in a number gathers all its dimensions, so resampling prompts
resamples them jointly. Prompts that are scored in the same dimensions form a stratum (subject,
background and camera in VBench), because how many there are of each kind is not left to chance.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pusa.evaluation.scoring import QUANTITIES, VideoScore, coefficients, weights_of


@dataclass(frozen=True)
class Stratum:
    """Prompts of one kind. parts: (n, k) float64, a row per prompt and a column per sample, zero
    where there is none; counts: (n,), samples of each prompt, from the left."""

    dimensions: tuple[str, ...]
    prompts: tuple[str, ...]
    parts: np.ndarray
    counts: np.ndarray

    def prompt_sums(self) -> np.ndarray:
        """(n,)."""
        return self.parts.sum(axis=1)


@dataclass(frozen=True)
class Contributions:
    """A number and what it is made of: the parts of all strata add up to `estimate`.

    estimate: without the constant of a total's normalisation, which no interval or test needs.
    """

    quantity: str
    estimate: float
    strata: tuple[Stratum, ...]

    @property
    def num_prompts(self) -> int:
        return sum(len(stratum.prompts) for stratum in self.strata)


def contributions(scores: Sequence[VideoScore], quantity: str) -> Contributions:
    """Of one run, to "Quality", "I2V", "Total", or any other number of videos by its name.

    Where videos weigh differently (lengths, samples), the parts are linearised about each
    dimension's mean, as is usual for ratios; else they are exact. Strata go by all dimensions in
    `scores`, whichever the quantity needs. ValueError for a dimension without scores, a video
    scored twice, and a prompt whose dimensions were not scored on the same samples.
    """
    means, table = {}, _table(scores, quantity)
    parts: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    slopes = slopes_of(quantity)
    for name, slope in slopes.items():
        videos = table[name]
        weights = np.array(weights_of(videos))
        values = np.array([score.value for score in videos])
        means[name] = float(weights @ values / weights.sum())
        # Equal weights leave `values / n`; the rest vanishes in the sum over all videos.
        adds = slope * (
            weights * (values - means[name]) / weights.sum() + means[name] / len(values)
        )
        for score, add in zip(videos, adds, strict=True):
            parts[score.prompt][score.sample] += float(add)
    estimate = sum(slope * means[name] for name, slope in slopes.items())
    return Contributions(quantity, estimate, _strata(scores, table, parts))


def difference(
    first: Sequence[VideoScore], second: Sequence[VideoScore], quantity: str
) -> Contributions:
    """Of first - second, paired by prompt, and by sample where both have the same samples.

    ValueError if the prompts are not the same.
    """
    ours, theirs = contributions(first, quantity), contributions(second, quantity)
    strata = []
    for one, other in _matched(ours, theirs):
        if np.array_equal(one.counts, other.counts):
            parts, counts = one.parts - other.parts, one.counts
        else:
            parts = (one.prompt_sums() - other.prompt_sums())[:, None]
            counts = np.ones(len(parts), int)
        strata.append(Stratum(one.dimensions, one.prompts, parts, counts))
    return Contributions(quantity, ours.estimate - theirs.estimate, tuple(strata))


def slopes_of(quantity: str) -> dict[str, float]:
    """How much a number moves per unit of the means that it is made of; of a plain mean, 1."""
    return coefficients(quantity) if quantity in QUANTITIES else {quantity: 1.0}


def _table(scores: Sequence[VideoScore], quantity: str) -> dict[str, list[VideoScore]]:
    """Scores by dimension, checked."""
    table: dict[str, list[VideoScore]] = {name: [] for name in slopes_of(quantity)}
    for score in scores:
        if score.dimension in table:
            table[score.dimension].append(score)
    empty = [name for name, videos in table.items() if not videos]
    if empty:
        raise ValueError(f"{quantity} needs {', '.join(empty)}, of which there is no score.")
    for name, videos in table.items():
        keys = {(score.prompt, score.sample) for score in videos}
        if len(keys) < len(videos):
            raise ValueError(f"{name}: a video is scored twice; keep one score of each.")
    return table


def _strata(
    scores: Sequence[VideoScore],
    table: dict[str, list[VideoScore]],
    parts: dict[str, dict[int, float]],
) -> tuple[Stratum, ...]:
    _check_samples(table)
    dimensions: dict[str, set[str]] = defaultdict(set)
    for score in scores:
        dimensions[score.prompt].add(score.dimension)
    kinds: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for prompt in parts:
        kinds[tuple(sorted(dimensions[prompt]))].append(prompt)
    return tuple(_stratum(kind, sorted(prompts), parts) for kind, prompts in sorted(kinds.items()))


def _check_samples(table: dict[str, list[VideoScore]]) -> None:
    samples: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for name, videos in table.items():
        for score in videos:
            samples[score.prompt][name].add(score.sample)
    for prompt, by_dimension in samples.items():
        if len(set(map(frozenset, by_dimension.values()))) > 1:
            raise ValueError(
                f"{prompt!r}: {' and '.join(by_dimension)} were scored on other samples of it; "
                "score the same videos in all of a prompt's dimensions."
            )


def _stratum(
    kind: tuple[str, ...], prompts: list[str], parts: dict[str, dict[int, float]]
) -> Stratum:
    counts = np.array([len(parts[prompt]) for prompt in prompts])
    values = np.zeros((len(prompts), counts.max()))
    for row, prompt in enumerate(prompts):
        values[row, : counts[row]] = [parts[prompt][k] for k in sorted(parts[prompt])]
    return Stratum(kind, tuple(prompts), values, counts)


def _matched(ours: Contributions, theirs: Contributions) -> list[tuple[Stratum, Stratum]]:
    kinds = [[(s.dimensions, s.prompts) for s in run.strata] for run in (ours, theirs)]
    if kinds[0] != kinds[1]:
        sets = [{p for s in run.strata for p in s.prompts} for run in (ours, theirs)]
        raise ValueError(
            f"{ours.quantity}: the runs differ in their prompts or what these were scored in ("
            f"{len(sets[0] - sets[1])} prompts only in the first, {len(sets[1] - sets[0])} only in "
            "the second); compare them on one suite and the same dimensions."
        )
    return list(zip(ours.strata, theirs.strata, strict=True))
