"""Intervals and differences against scipy's closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from pusa.evaluation.stats import Interval, contrast, mean_interval
from pusa.rng import generator_for


def scores(index: int, clips: int = 12, seeds: int = 3) -> dict[int, list[float]]:
    values = torch.randn(clips, seeds, generator=generator_for(0, "tests/scores", index))
    return {clip: values[clip].double().tolist() for clip in range(clips)}


def test_the_interval_is_students_over_the_means_of_the_clips():
    values = scores(0)
    means = np.array([np.mean(v) for v in values.values()])
    low, high = reference.t.interval(0.95, 11, means.mean(), reference.sem(means))
    found = mean_interval(values)
    assert (found.mean, found.low, found.high) == pytest.approx((means.mean(), low, high))
    assert found.num_clips == 12
    assert found.half_width == pytest.approx((high - low) / 2)


def test_repeating_the_same_seed_adds_no_certainty():
    once = scores(1, seeds=1)
    thrice = {clip: v * 3 for clip, v in once.items()}
    assert mean_interval(thrice) == mean_interval(once)


def test_the_difference_is_the_paired_t_interval():
    first, second = scores(2), scores(3)
    ours = np.array([np.mean(first[clip]) for clip in first])
    theirs = np.array([np.mean(second[clip]) for clip in second])
    expected = reference.ttest_rel(ours, theirs).confidence_interval(0.95)
    found = contrast("psnr", first, second).difference
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_an_unseeded_system_is_paired_with_a_seeded_one_on_shared_clips():
    first, second = scores(4), scores(5, clips=8, seeds=1)
    found = contrast("psnr", first, second)
    assert found.difference.num_clips == 8
    assert found.first.num_clips == 12


def test_one_clip_says_nothing_about_the_mean_of_others():
    assert mean_interval({7: [3.0, 5.0]}) == Interval(4.0, -math.inf, math.inf, 1)


def test_clips_without_values_do_not_count_and_nothing_at_all_is_an_error():
    assert mean_interval({0: [1.0], 1: [], 2: [1.0]}).num_clips == 2
    with pytest.raises(ValueError, match="no scores to average"):
        mean_interval({0: []})
    with pytest.raises(ValueError, match="psnr: the systems share no clip"):
        contrast("psnr", {0: [1.0]}, {1: [1.0]})


def test_to_beat_is_to_leave_both_intervals_behind():
    high = {clip: [10 + clip % 2 / 10] for clip in range(10)}
    low = {clip: [9 + clip % 2 / 10] for clip in range(10)}
    touching = {clip: [9 + clip % 2 * 2.0] for clip in range(10)}
    assert contrast("m", high, low).first_beats
    assert contrast("m", low, high).first_loses
    assert not contrast("m", high, touching).first_beats
    assert not contrast("m", high, high).first_loses
    assert contrast("loss", low, high, better="lower").first_beats
    assert contrast("loss", high, low, better="lower").first_loses


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8),
    st.floats(-50, 50),
    st.floats(0.1, 10),
)
def test_intervals_move_and_stretch_with_the_values(values, offset, factor):
    plain = mean_interval({i: [v] for i, v in enumerate(values)})
    moved = mean_interval({i: [factor * v + offset] for i, v in enumerate(values)})
    assert plain.low <= plain.mean <= plain.high
    expected = (factor * plain.low + offset, factor * plain.high + offset)
    assert (moved.low, moved.high) == pytest.approx(expected, abs=1e-6)
