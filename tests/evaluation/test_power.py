"""Variance components and the smallest difference that can be found, against simulated runs."""

import math

import numpy as np
import pytest
from scipy import stats as reference

from pusa.evaluation.contributions import contributions, difference
from pusa.evaluation.power import (
    Variance,
    detectable_difference,
    power_of,
    standard_error,
    variances,
)
from pusa.evaluation.resampling import bootstrap, numpy_generator
from tests.evaluation.simulated import nested, one_dimension, whole_suite

NAME = "motion_smoothness"


def test_variances_are_those_of_the_analysis_of_variance():
    values = nested(numpy_generator(0, "tests/anova"), (30, 4), 1, 2)
    (found,) = variances(contributions(one_dimension(values), NAME))
    within = values.var(axis=1, ddof=1).mean()
    between = values.mean(axis=1).var(ddof=1) - within / 4
    assert (found.within, found.between) == pytest.approx((within, between))
    assert found.num_prompts == 30


def test_variances_are_found_without_bias_from_uneven_samples():
    found = []
    for index in range(200):
        values = nested(numpy_generator(index, "tests/uneven"), (40, 3), 1, 2)
        values[::3, 1:] = np.nan
        (one,) = variances(contributions(one_dimension(values), NAME))
        found.append((one.between, one.within))
    between, within = np.mean(found, axis=0)
    assert within == pytest.approx(4, rel=0.03)
    assert between == pytest.approx(1, abs=0.2)


def test_the_error_on_the_suite_at_hand_is_the_bootstraps():
    rng = numpy_generator(0, "tests/error")
    parts = contributions(
        whole_suite(rng, {"subject": 30, "background": 20, "camera": 40}, 3), "Total"
    )
    planned = standard_error(variances(parts), 90, 3)
    assert bootstrap(parts, rng, 8000).standard_error == pytest.approx(planned, rel=0.04)
    assert standard_error(variances(parts), 360, 3) == pytest.approx(planned / 2)


@pytest.mark.parametrize(("num_prompts", "num_samples"), [(8, 5), (40, 1)])
def test_the_detectable_difference_is_found_four_times_of_five(num_prompts, num_samples):
    between, within, num_runs = 0.5, 1.0, 2000
    truth = [Variance(between**2, within**2, num_prompts)]
    shift = detectable_difference(truth, num_prompts, num_samples)
    rng = numpy_generator(0, "tests/power")
    means = np.stack(
        [
            nested(rng, (num_prompts, num_samples), between, within).mean(axis=1)
            for _ in range(num_runs)
        ]
    )
    found = reference.ttest_1samp(means + shift, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=3 * math.sqrt(0.16 / num_runs))
    missed = reference.ttest_1samp(means, 0, axis=1).pvalue < 0.05
    assert missed.mean() == pytest.approx(0.05, abs=3 * math.sqrt(0.0475 / num_runs))


def test_many_prompts_need_what_the_normal_law_says():
    found = detectable_difference([Variance(1.0, 0.0, 10)], 10**6, 1)
    assert found == pytest.approx((1.959964 + 0.841621) / 1000, rel=1e-4)


def test_dynamic_degree_of_250_videos_is_known_to_three_points():
    """Binomial, 5 samples of 50 prompts that do not differ: sqrt(0.6 * 0.4 / 250)."""
    strata = [Variance(0.0, 0.6 * 0.4, 50)]
    assert 100 * standard_error(strata, 50, 5) == pytest.approx(3.098, abs=0.001)


def test_samples_cannot_replace_prompts():
    strata = [Variance(1.0, 1.0, 20)]
    assert detectable_difference(strata, 20, 10**6) > 0.9 * detectable_difference(
        [Variance(1.0, 0.0, 20)], 20, 1
    )
    assert detectable_difference(strata, 80, 1) < detectable_difference(strata, 20, 4)


def test_power_grows_from_alpha_to_one():
    assert power_of(0, 1, 20) == pytest.approx(0.05)
    assert power_of(1, 1, 20) < power_of(2, 1, 20) < power_of(3, 1, 20)
    assert power_of(9, 1, 20) == pytest.approx(1)


def test_runs_without_a_spread_show_any_difference():
    same = one_dimension(np.ones((5, 2)))
    assert detectable_difference(variances(difference(same, same, NAME)), 5, 2) == 0


@pytest.mark.parametrize(("num_prompts", "num_samples"), [(1, 5), (5, 0)])
def test_no_suite_is_planned_of_nothing(num_prompts, num_samples):
    with pytest.raises(ValueError, match="plan at least 2 and 1"):
        detectable_difference([Variance(1, 1, 5)], num_prompts, num_samples)


def test_what_cannot_be_planned_is_named():
    with pytest.raises(ValueError, match=r"alpha=0\.9, power=0\.8; expected 0 < alpha < power"):
        detectable_difference([Variance(1, 1, 5)], 5, 1, alpha=0.9)
    with pytest.raises(ValueError, match="2 prompts in 2 strata; plan more prompts"):
        detectable_difference([Variance(1, 1, 5)] * 2, 2, 1)
    with pytest.raises(ValueError, match="one prompt has no spread"):
        variances(contributions(one_dimension(np.ones((1, 3))), NAME))
