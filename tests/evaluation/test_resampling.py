"""Intervals and tests against closed forms, enumeration and simulated runs with known truth."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as reference

from pusa.evaluation.contributions import contributions, difference
from pusa.evaluation.resampling import bootstrap, numpy_generator, permutation_p
from pusa.evaluation.scoring import coefficients
from tests.evaluation.simulated import nested, one_dimension, whole_suite

NAME = "motion_smoothness"


def parts_of(values: np.ndarray):
    return contributions(one_dimension(values), NAME)


def test_one_sample_a_prompt_gives_the_textbooks_standard_error():
    rng = numpy_generator(0, "tests/one")
    values = rng.normal(size=(40, 1))
    found = bootstrap(parts_of(values), rng, 20000)
    expected = reference.sem(values[:, 0])
    assert found.standard_error == pytest.approx(expected, rel=4 / math.sqrt(2 * 20000))
    assert found.estimate == pytest.approx(values.mean())
    low, high = reference.t.interval(0.95, 39, values.mean(), expected)
    interval = found.interval()
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.06 * (high - low))
    assert interval.num_clips == 40


@pytest.mark.parametrize(("between", "within"), [(1.0, 0.3), (0.5, 1.0)])
def test_noise_of_samples_is_counted_once(between: float, within: float):
    """The variance of a mean of prompts is that of their means, however many samples made them."""
    rng = numpy_generator(0, "tests/samples")
    values = nested(rng, (60, 5), between, within)
    found = bootstrap(parts_of(values), rng, 20000)
    expected = reference.sem(values.mean(axis=1))
    assert found.standard_error == pytest.approx(expected, rel=4 / math.sqrt(2 * 20000))


def test_the_same_sample_five_times_adds_no_certainty():
    rng = numpy_generator(0, "tests/copies")
    values = rng.normal(size=(30, 1))
    once = bootstrap(parts_of(values), numpy_generator(1, "x"), 500)
    often = bootstrap(parts_of(values.repeat(5, axis=1)), numpy_generator(1, "x"), 500)
    assert often.standard_error == pytest.approx(once.standard_error, rel=0.15)


@pytest.mark.parametrize(
    ("shape", "between", "within"),
    [((5, 1), 1, 1), ((6, 1), 1, 1), ((30, 5), 1, 2), ((30, 5), 0.1, 1)],
)
def test_intervals_hold_the_truth_as_often_as_they_say(shape, between, within):
    """Of 95% intervals over 600 simulated runs; 2.5 points are 2.8 binomial standard errors."""
    num_runs, hits = 600, 0
    for index in range(num_runs):
        rng = numpy_generator(index, "tests/coverage")
        found = bootstrap(parts_of(nested(rng, shape, between, within)), rng, 600).interval()
        hits += found.low <= 0 <= found.high
    assert hits / num_runs == pytest.approx(0.95, abs=0.025)


def test_intervals_of_totals_hold_the_truth_as_often_as_they_say():
    truth = sum(0.5 * slope for slope in coefficients("Total").values())
    num_runs, hits, sizes = 300, 0, {"subject": 16, "background": 10, "camera": 24}
    for index in range(num_runs):
        rng = numpy_generator(index, "tests/coverage of totals")
        parts = contributions(whole_suite(rng, sizes, 3), "Total")
        found = bootstrap(parts, rng, 600).interval()
        hits += found.low <= truth <= found.high
    assert hits / num_runs == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / num_runs))


def test_uneven_numbers_of_samples_are_resampled_among_those_that_are_there():
    rng = numpy_generator(0, "tests/uneven")
    values = nested(rng, (50, 3), 1, 0.5)
    values[::2, 1:] = np.nan
    found = bootstrap(parts_of(values), rng, 4000)
    counts = np.isfinite(values).sum(axis=1)
    centred = np.nansum(values - np.nanmean(values), axis=1) / counts.sum()
    expected = math.sqrt(50 * centred.var(ddof=1))  # of a ratio of sums, by linearisation
    assert found.estimate == pytest.approx(np.nanmean(values))
    assert found.standard_error == pytest.approx(expected, rel=0.06)


def test_the_generator_alone_decides():
    values = numpy_generator(0, "tests/draws").normal(size=(20, 2))
    runs = [bootstrap(parts_of(values), numpy_generator(5, "b"), 50).values for _ in range(2)]
    assert np.array_equal(*runs)
    other = bootstrap(parts_of(values), numpy_generator(6, "b"), 50).values
    assert not np.array_equal(runs[0], other)


def test_one_prompt_says_nothing_of_others():
    with pytest.raises(ValueError, match="there is one prompt scored in motion_smoothness"):
        bootstrap(parts_of(np.ones((1, 5))), numpy_generator(0, "x"))


def paired(differences: np.ndarray):
    return difference(
        one_dimension(differences[:, None]), one_dimension(0 * differences[:, None]), NAME
    )


def test_few_prompts_are_tested_by_every_pattern_of_signs():
    values = numpy_generator(0, "tests/exact").normal(0.7, 1, size=9)
    signs = np.array(list(itertools.product((1, -1), repeat=9)))
    expected = np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-12)
    assert permutation_p(paired(values), numpy_generator(0, "p")) == pytest.approx(expected)


def test_many_prompts_are_tested_by_random_signs_and_never_with_certainty():
    values = 1 + numpy_generator(0, "tests/many").normal(size=200) / 10
    assert permutation_p(paired(values), numpy_generator(0, "p"), 999) == pytest.approx(2 / 1000)


def test_random_signs_agree_with_the_t_test():
    values = numpy_generator(0, "tests/t").normal(0.15, 1, size=150)
    expected = reference.ttest_1samp(values, 0).pvalue
    found = permutation_p(paired(values), numpy_generator(0, "p"))
    assert found == pytest.approx(expected, abs=0.02)


def test_without_a_difference_p_is_uniform():
    found = []
    for index in range(400):
        rng = numpy_generator(index, "tests/null")
        first, second = (one_dimension(nested(rng, (12, 2), 1, 1)) for _ in range(2))
        found.append(permutation_p(difference(first, second, NAME), rng, 499))
    assert reference.kstest(found, "uniform").pvalue > 0.01
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.033)


def test_equal_runs_do_not_differ():
    assert permutation_p(paired(np.zeros(30)), numpy_generator(0, "p")) == 1.0
