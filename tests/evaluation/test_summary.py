"""Cells and comparisons are what the bootstrap, the totals and the test say of the same scores."""

import math
from dataclasses import replace

import numpy as np
import pytest

from pusa.evaluation.contributions import contributions, difference
from pusa.evaluation.power import detectable_difference, variances
from pusa.evaluation.resampling import bootstrap, numpy_generator, permutation_p
from pusa.evaluation.results import Column, Comparison
from pusa.evaluation.scoring import QUANTITIES, SCALES, VideoScore, dimension_scores, totals
from pusa.evaluation.stats import Contrast, Interval
from pusa.evaluation.summary import SEED, cells_of, compare_systems, verdict
from pusa.metrics.registry import Better
from tests.evaluation.simulated import nested, one_dimension, whole_suite

SMOOTH = Column("motion_smoothness", "Quality", "higher")
SIZES = {"subject": 6, "background": 5, "camera": 4}


def column(name: str, better: Better = "higher") -> Column:
    return Column(name, "group", better)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_a_cell_is_the_mean_and_the_interval_of_the_bootstrap(rng):
    scores = one_dimension(0.5 + nested(rng, (9, 3), 0.1, 0.05))
    cell = cells_of({"a": scores}, [SMOOTH])["a", "motion_smoothness"]
    parts = contributions(scores, "motion_smoothness")
    expected = bootstrap(parts, numpy_generator(SEED, "evaluation/bootstrap")).interval()
    assert cell.mean == pytest.approx(np.mean([s.value for s in scores]), abs=1e-12)
    assert (cell.low, cell.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert cell.num_clips == 9


def test_totals_are_vbenchs_and_only_where_all_dimensions_are(rng):
    scores = whole_suite(rng, SIZES, 2)
    columns = [column(name) for name in (*QUANTITIES, *SCALES)]
    cells = cells_of({"a": scores}, columns)
    expected = totals(dimension_scores(scores))
    for name in QUANTITIES:
        cell = cells["a", name]
        assert cell.mean == pytest.approx(expected[name], abs=1e-12)
        assert cell.low < cell.mean < cell.high
    fewer = [s for s in scores if s.dimension != "camera_motion"]
    cells = cells_of({"a": fewer}, columns)
    assert {name for _, name in cells} == SCALES.keys() - {"camera_motion"}


def test_a_comparison_is_paired_and_tested_as_the_parts_say(rng):
    hard = nested(rng, (8, 2), 0.2, 0.0)
    ours = one_dimension(0.5 + hard + nested(rng, (8, 2), 0.0, 0.02))
    theirs = one_dimension(0.4 + hard + nested(rng, (8, 2), 0.0, 0.02))
    scores = {"ours": ours, "theirs": theirs}
    cells = cells_of(scores, [SMOOTH])
    (found,) = compare_systems(scores, [SMOOTH], [("ours", "theirs")], cells)
    parts = difference(ours, theirs, "motion_smoothness")
    generator = numpy_generator(SEED, "evaluation/permutation")
    assert found.p == permutation_p(parts, generator) == pytest.approx(2 / 2**8)
    assert found.detectable == detectable_difference(variances(parts), 8, 2)
    gap = found.contrast.difference
    assert gap.mean == pytest.approx(0.1, abs=0.02)
    assert gap.high - gap.low < found.contrast.first.high - found.contrast.first.low
    assert verdict(found) == "better"
    (back,) = compare_systems(scores, [SMOOTH], [("theirs", "ours")], cells)
    assert (verdict(back), back.p) == ("worse", found.p)
    assert back.contrast.difference.mean == pytest.approx(-gap.mean)


@pytest.mark.parametrize(
    ("better", "gap", "p", "said"),
    [
        ("higher", 0.1, 0.01, "better"),
        ("higher", -0.1, 0.01, "worse"),
        ("lower", 0.1, 0.01, "worse"),
        ("lower", -0.1, 0.05, "better"),
        ("lower", -0.1, 0.051, "no difference shown"),
        ("higher", 0.1, None, "no difference shown"),
    ],
)
def test_a_verdict_knows_which_way_is_better(better, gap, p, said):
    side = Interval(0.5, 0.4, 0.6, 9)
    contrast = Contrast("x", better, side, side, Interval(gap, gap - 0.01, gap + 0.01, 9))
    assert verdict(Comparison("a", "b", contrast, p, None)) == said


def test_one_prompt_says_nothing_of_others():
    ours, theirs = (one_dimension(np.array([[value, value]])) for value in (0.9, 0.1))
    scores = {"ours": ours, "theirs": theirs}
    cells = cells_of(scores, [SMOOTH])
    cell = cells["ours", "motion_smoothness"]
    assert (cell.mean, cell.low, cell.high) == (0.9, -math.inf, math.inf)
    (found,) = compare_systems(scores, [SMOOTH], [("ours", "theirs")], cells)
    assert (found.p, found.detectable) == (None, None)
    assert verdict(found) == "no difference shown"


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_fewer_than_five_prompts_have_no_interval(rng, count):
    cells = cells_of({"a": one_dimension(nested(rng, (count, 2), 0.1, 0.05))}, [SMOOTH])
    cell = cells["a", "motion_smoothness"]
    assert math.isfinite(cell.low) == math.isfinite(cell.high) == (count == 5)


def test_a_stratum_of_one_prompt_leaves_the_totals_open(rng):
    scores = whole_suite(rng, SIZES | {"camera": 1}, 2)
    cells = cells_of({"a": scores}, [column("Total"), column("i2v_subject")])
    assert math.isinf(cells["a", "Total"].high)
    assert math.isfinite(cells["a", "i2v_subject"].high)


def test_what_is_not_shared_is_not_compared(rng):
    values = nested(rng, (6, 2), 0.1, 0.1)
    scores = {"all": one_dimension(values), "some": one_dimension(values[:3] - 1)}
    other = [replace(score, prompt=f"q{score.prompt}") for score in scores["all"]]
    scores["other"] = other
    cells = cells_of(scores, [SMOOTH])
    pairs = [("all", "some"), ("all", "other")]
    (found,) = compare_systems(scores, [SMOOTH], pairs, cells)
    assert found.second == "some"
    assert found.contrast.difference.mean == pytest.approx(1)
    assert found.contrast.difference.num_clips == 3


def test_a_control_of_one_sample_is_paired_with_the_mean_of_several(rng):
    ours, still = np.array([[1.0, 3.0], [2.0, 4.0], [5.0, 5.0]]), np.array([[1.0], [2.0], [3.0]])
    scores = {"ours": one_dimension(ours), "still": one_dimension(still)}
    cells = cells_of(scores, [SMOOTH])
    (found,) = compare_systems(scores, [SMOOTH], [("ours", "still")], cells)
    assert found.contrast.difference.mean == pytest.approx((1 + 1 + 2) / 3)


def test_a_column_of_another_suite_is_averaged_as_it_is():
    scores = [VideoScore("psnr", f"{i}", k, 20.0 + i + k) for i in range(3) for k in range(2)]
    cell = cells_of({"a": scores}, [column("psnr")])["a", "psnr"]
    assert cell.mean == pytest.approx(21.5)
    assert cell.low < 21.5 < cell.high
