"""Everything reported is the sum of what each video adds to it."""

import numpy as np
import pytest

from pusa.evaluation.contributions import contributions, difference
from pusa.evaluation.resampling import numpy_generator
from pusa.evaluation.scoring import (
    QUANTITIES,
    SCALES,
    VideoScore,
    coefficients,
    dimension_score,
    dimension_scores,
    totals,
)
from tests.evaluation.simulated import one_dimension, whole_suite

SIZES = {"subject": 5, "background": 3, "camera": 7}


def run(index: int, num_samples: int = 2) -> list[VideoScore]:
    return whole_suite(numpy_generator(0, "tests/contributions", index), SIZES, num_samples)


def total(parts) -> float:
    return sum(stratum.parts.sum() for stratum in parts.strata)


@pytest.mark.parametrize("quantity", [*QUANTITIES, *SCALES])
def test_the_parts_add_up_to_the_number(quantity: str):
    scores = run(0)
    parts = contributions(scores, quantity)
    means = dimension_scores(scores)
    if quantity in QUANTITIES:
        constant = totals(means)[quantity] - sum(
            slope * means[name] for name, slope in coefficients(quantity).items()
        )
        assert parts.estimate + constant == pytest.approx(totals(means)[quantity])
        assert constant < 0
    else:
        assert parts.estimate == pytest.approx(means[quantity])
    assert total(parts) == pytest.approx(parts.estimate)


def test_prompts_of_a_kind_are_a_stratum_in_every_quantity():
    sizes = {
        name: sorted(len(s.prompts) for s in contributions(run(0), name).strata)
        for name in ("Total", "Quality", "aesthetic_quality", "i2v_subject", "camera_motion")
    }
    assert sizes == {
        "Total": [3, 5, 7],
        "Quality": [3, 5],
        "aesthetic_quality": [3, 5],
        "i2v_subject": [5],
        "camera_motion": [7],
    }


def test_a_difference_of_totals_is_the_sum_of_its_pairs():
    first, second = run(0), run(1)
    parts = difference(first, second, "Total")
    expected = totals(dimension_scores(first))["Total"] - totals(dimension_scores(second))["Total"]
    assert parts.estimate == pytest.approx(expected)
    assert total(parts) == pytest.approx(expected)
    assert sorted(s.parts.shape for s in parts.strata) == [(3, 2), (5, 2), (7, 2)]


def test_runs_with_other_numbers_of_samples_are_paired_by_prompt():
    first, second = run(0), run(1, num_samples=1)
    parts = difference(first, second, "Total")
    assert {s.parts.shape[1] for s in parts.strata} == {1}
    assert total(parts) == pytest.approx(parts.estimate)


@pytest.mark.parametrize("name", ["subject_consistency", "imaging_quality"])
def test_longer_videos_and_missing_samples_move_the_mean_as_they_should(name: str):
    scores = [
        VideoScore(name, f"p{i}", k, 0.1 * i + 0.01 * k, 5 + 9 * i)
        for i in range(4)
        for k in range(1 + i % 2)
    ]
    parts = contributions(scores, name)
    assert parts.estimate == pytest.approx(dimension_score(scores))
    assert total(parts) == pytest.approx(parts.estimate)
    assert parts.strata[0].counts.tolist() == [1, 2, 1, 2]
    moved = [VideoScore(name, s.prompt, s.sample, s.value + 1, s.num_frames) for s in scores]
    shifted = contributions(moved, name).strata[0].parts - parts.strata[0].parts
    assert shifted[shifted != 0] == pytest.approx(np.full(len(scores), 1 / len(scores)))


def test_what_cannot_be_reported_is_named():
    scores = run(0)
    with pytest.raises(ValueError, match="Total needs camera_motion, of which there is no score"):
        contributions([s for s in scores if s.dimension != "camera_motion"], "Total")
    with pytest.raises(ValueError, match="a video is scored twice"):
        contributions([*scores, scores[0]], "Total")
    with pytest.raises(ValueError, match=r"'subject0': .* were scored on other samples of it"):
        contributions(scores[1:], "Total")
    values = np.ones((3, 1))
    with pytest.raises(ValueError, match="1 prompts only in the first, 0 only in the second"):
        difference(one_dimension(values), one_dimension(values[:2]), "motion_smoothness")
