"""How small a difference a suite of some size can show: to plan one, or to read a null result."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize
from scipy import stats as distributions

from pusa.evaluation.contributions import Contributions, Stratum

ALPHA, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Variance:
    """Of a stratum: of prompts' true values, of samples of one prompt, and how many prompts it has.

    In units of the whole number: the stratum adds the mean over its prompts of their true values.
    """

    between: float
    within: float
    num_prompts: int


def variances(parts: Contributions) -> tuple[Variance, ...]:
    """Per stratum, estimated by analysis of variance (unequal samples too; never below 0).

    `within` is 0 where every prompt has one sample: it is then part of `between`.
    ValueError for a stratum of one prompt.
    """
    return tuple(_variance(stratum) for stratum in parts.strata)


def standard_error(strata: Sequence[Variance], num_prompts: int, num_samples: int) -> float:
    """Of the number on `num_prompts` prompts, shared out over the strata as they are now, and
    `num_samples` samples of each."""
    if num_prompts < 2 or num_samples < 1:
        raise ValueError(
            f"{num_prompts} prompts of {num_samples} samples; plan at least 2 and 1 of each."
        )
    scale = num_prompts / sum(stratum.num_prompts for stratum in strata)
    return math.sqrt(
        sum((s.between + s.within / num_samples) / (scale * s.num_prompts) for s in strata)
    )


def power_of(difference: float, error: float, freedom: int, alpha: float = ALPHA) -> float:
    """Chance that a two-sided t test at `alpha` finds a true difference of this size.

    difference >= 0. error: standard error of its estimate; freedom: degrees, prompts - strata.
    """
    critical, shift = distributions.t.isf(alpha / 2, freedom), difference / error
    found = distributions.nct.sf(critical, freedom, shift)
    # The chance of the wrong sign; scipy may give NaN for it where it is below 1e-30.
    wrong = np.nan_to_num(distributions.nct.cdf(-critical, freedom, shift))
    return float(found + wrong)


def detectable_difference(
    strata: Sequence[Variance], num_prompts: int, num_samples: int,
    alpha: float = ALPHA, power: float = POWER,
) -> float:  # fmt: skip
    """The smallest true difference that a paired comparison finds with this power.

    strata: `variances` of a difference of two runs. Of one run alone, for a rival that is yet to be
    made: that the prompts are hard for both alike makes `between` 0 and doubles `within`, which is
    the least there can be. ValueError for a suite too small to test.
    """
    if not (0 < alpha < power < 1):
        raise ValueError(f"alpha={alpha}, power={power}; expected 0 < alpha < power < 1.")
    error = standard_error(strata, num_prompts, num_samples)
    freedom = num_prompts - len(strata)
    if freedom < 1:
        raise ValueError(f"{num_prompts} prompts in {len(strata)} strata; plan more prompts.")
    if error == 0:
        return 0.0
    normal = distributions.norm.isf(alpha / 2) + distributions.norm.ppf(power)
    # Student's t needs more than the normal law, by far with one or two degrees of freedom.
    limit = 4 * normal * max(1.0, distributions.t.isf(alpha / 2, freedom))
    found = optimize.root_scalar(
        lambda shift: power_of(shift, 1.0, freedom, alpha) - power, bracket=(0.0, limit)
    )
    return float(found.root) * error


def _variance(stratum: Stratum) -> Variance:
    count = len(stratum.prompts)
    if count < 2:
        raise ValueError(
            f"{', '.join(stratum.dimensions)}: one prompt has no spread; score at least 2."
        )
    counts = stratum.counts[:, None]
    there = np.arange(stratum.parts.shape[1]) < counts
    values = stratum.parts * stratum.counts.sum()  # the mean over its videos is what it adds
    means = values.sum(axis=1) / stratum.counts
    squares = (np.where(there, values - means[:, None], 0) ** 2).sum()
    within = squares / max(1, (stratum.counts - 1).sum())
    between = means.var(ddof=1) - within * (1 / stratum.counts).mean()
    return Variance(max(0.0, float(between)), float(within), count)
