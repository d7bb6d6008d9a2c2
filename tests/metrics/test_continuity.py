"""Step ratios on videos whose seam and flicker are known by construction."""

import pytest
import torch

from pusa.data import toy
from pusa.metrics.continuity import (
    STILL,
    largest_step_ratio,
    mean_step_ratio,
    roughness,
    steps,
)


def of_levels(*levels: int) -> torch.Tensor:
    """Flat grey frames of these levels: uint8 (T, 3, 2, 2)."""
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)


def test_steps_are_mean_differences_into_each_later_frame_in_grey_levels():
    assert steps(of_levels(10, 12, 9)).tolist() == [2, 3]
    half = of_levels(0, 8).clone()
    half[1, :, 0] = 0
    assert steps(half).tolist() == [4]


def test_a_jump_of_five_times_the_usual_step_has_the_ratio_five_at_its_frame_alone():
    jump = of_levels(0, 2, 4, 14, 16, 18)
    assert mean_step_ratio(jump, [3]) == 5
    assert mean_step_ratio(jump, [2]) == 1
    assert mean_step_ratio(jump, [2, 3]) == 3
    assert largest_step_ratio(jump, [2, 3, 4]) == 5
    assert roughness(jump) == 5


def test_steps_that_are_apart_count_on_neither_side():
    jumps = of_levels(0, 2, 12, 22, 32, 34)
    assert mean_step_ratio(jumps, [2]) == 10 / 6  # the median of 2, 10, 10, 2
    assert mean_step_ratio(jumps, [2], apart=[2, 3, 4]) == 5


def test_even_change_is_seamless_wherever_one_looks():
    even = of_levels(*range(0, 30, 3))
    assert [mean_step_ratio(even, [t]) for t in range(1, 10)] == [1] * 9
    assert roughness(even) == 1


def test_where_nothing_moves_there_is_no_ratio():
    cut = of_levels(5, 5, 5, 90, 90)
    assert mean_step_ratio(cut, [3]) is None
    assert largest_step_ratio(cut, [3]) is None
    assert roughness(cut) is None


def test_moving_toy_clips_are_not_taken_for_still():
    clips = [toy.render(toy.make_scene(3, "heldout", index)).frames for index in range(24)]
    assert min(float(steps(clip).quantile(0.5)) for clip in clips) > STILL


@pytest.mark.parametrize("into", [[], [1, 2]])
def test_no_step_or_all_of_them_is_an_error(into):
    with pytest.raises(ValueError, match="choose some and leave some"):
        mean_step_ratio(of_levels(1, 2, 3), into)
