"""VBench-I2V's arithmetic against every figure that was published of it."""

import math

import pytest

from pusa.evaluation.naming import BackboneRecord, Basis, file_stem, title
from pusa.evaluation.published import Published, find, published
from pusa.evaluation.scoring import (
    FLICKERING,
    QUANTITIES,
    SCALES,
    VideoScore,
    coefficients,
    dimension_score,
    dimension_scores,
    totals,
)

# The paper prints I2V 93.87 for rank 512, strength 2.0; the row's own dimensions give 92.87, and so
# does its Total: (79.10 + 92.87) / 2 = 85.98.
MISPRINT = ("4a", "r512 a2.0", "I2V")
COMPLETE = [row for row in published() if "camera_motion" in row.percent]


def recomputed(row: Published) -> dict[str, float]:
    return {name: 100 * value for name, value in totals(row.fractions()).items()}


def test_every_published_row_is_there():
    assert len(published()) == 96
    assert len(COMPLETE) == 90
    assert {row.table for row in published()} == {"1", "2", "3", "4a", "4b", "4c", "5a", "5b"}


@pytest.mark.parametrize("row", COMPLETE, ids=lambda row: f"{row.table} {row.row}")
def test_a_published_row_is_reproduced(row: Published):
    ours = recomputed(row)
    for name in QUANTITIES:
        if (row.table, row.row, name) != MISPRINT:
            assert ours[name] == pytest.approx(row.percent[name], abs=0.02)


def test_the_one_misprint_is_a_digit_of_i2v():
    row = find(*MISPRINT[:2])
    ours = recomputed(row)
    assert row.percent["I2V"] == 93.87
    assert ours["I2V"] == pytest.approx(92.87, abs=0.005)
    assert (ours["I2V"] + ours["Quality"]) / 2 == pytest.approx(row.percent["Total"], abs=0.005)
    assert "misprinted" in row.note


@pytest.mark.parametrize("name", ["SVD-XT-1.0", "SVD-XT-1.1"])
def test_a_model_without_text_has_no_total(name: str):
    row = find("1", name)
    ours = totals(row.fractions(), camera=False)
    assert ours.keys() == {"Quality"} == row.percent.keys() & set(QUANTITIES)
    assert 100 * ours["Quality"] == pytest.approx(row.percent["Quality"], abs=0.02)
    with pytest.raises(ValueError, match=r"missing: camera_motion\."):
        totals(row.fractions())


# Worked with VBench's own script: normalised dimensions and totals of two rows of Table 1.
@pytest.mark.parametrize(
    ("name", "normalised", "expected"),
    [
        (
            "Pusa",
            (0.909464, 0.946107, 0.956775, 0.5260, 0.6315, 0.6827, 0.972359, 0.989709, 0.2946),
            (79.810, 94.835, 87.322),
        ),
        (
            "Wan-I2V",
            (0.939799, 0.960325, 0.936535, 0.5138, 0.6475, 0.7044, 0.964277, 0.951794, 0.3476),
            (80.827, 92.897, 86.862),
        ),
    ],
)
def test_the_worked_examples(name: str, normalised: tuple, expected: tuple):
    row = find("1", name)
    order = (*[n for n, d in SCALES.items() if d.group == "Quality"], *list(SCALES)[:3])
    found = [SCALES[n].normalise(score) for n in order for score in [row.fractions()[n]]]
    assert found == pytest.approx(normalised, abs=6e-7)
    assert list(recomputed(row).values()) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(
    ("aesthetic", "imaging", "expected"),
    [
        (0.6315, 0.6827, (78.44, 95.92, 87.18)),
        (0.6475, 0.7044, (79.13, 95.92, 87.52)),
        (0.6712, 0.7209, (79.86, 95.92, 87.89)),
    ],
)
def test_doing_nothing_beats_or_ties_published_models(aesthetic, imaging, expected):
    """A still copy of the image: every similarity is 1, and one camera prompt of seven is kept."""
    still = dict.fromkeys(SCALES, 1.0) | {
        "motion_smoothness": 0.9975, "dynamic_degree": 0.0, "camera_motion": 1 / 7,
        "aesthetic_quality": aesthetic, "imaging_quality": imaging,
    }  # fmt: skip
    found = [100 * value for value in totals(still).values()]
    assert found == pytest.approx(expected, abs=0.01)
    assert found[2] > find("1", "Wan-I2V").percent["Total"]


def test_what_a_point_of_each_dimension_is_worth():
    """Published points of Total per raw point; they are what a unit step really changes."""
    expected = {
        "i2v_background": 0.322, "motion_smoothness": 0.312, "i2v_subject": 0.279,
        "background_consistency": 0.123, "subject_consistency": 0.107, "aesthetic_quality": 0.091,
        "imaging_quality": 0.091, "dynamic_degree": 0.0455, "camera_motion": 0.0238,
    }  # fmt: skip
    scores = find("1", "Pusa").fractions()
    assert coefficients("Total") == pytest.approx(expected, abs=6e-4)
    for name, slope in coefficients("Total").items():
        moved = totals(scores | {name: scores[name] + 0.001})["Total"]
        assert moved - totals(scores)["Total"] == pytest.approx(slope * 0.001)
    assert coefficients("camera_motion") == {"camera_motion": 1.0}
    with pytest.raises(ValueError, match="'total' is none of Quality, I2V, Total, i2v_subject"):
        coefficients("total")


def test_nothing_is_clipped():
    smooth = dict.fromkeys(SCALES, 0.9) | {"motion_smoothness": 0.9990}
    edge = smooth | {"motion_smoothness": 0.9975}
    step = 0.0015 * coefficients("Quality")["motion_smoothness"]
    assert totals(smooth)["Quality"] - totals(edge)["Quality"] == pytest.approx(step)


def test_flickering_is_known_and_counts_for_nothing():
    scores = dict.fromkeys(SCALES, 0.5)
    assert totals(scores | {FLICKERING: 0.97}) == totals(scores)


def test_dimensions_that_are_missing_or_unknown_are_named():
    scores = dict.fromkeys(SCALES, 0.5)
    del scores["dynamic_degree"], scores["i2v_subject"]
    with pytest.raises(ValueError, match="unknown: color; missing: i2v_subject, dynamic_degree"):
        totals(scores | {"color": 1.0})
    with pytest.raises(ValueError, match=r"dynamic_degree=52\.6 is no fraction"):
        totals(dict.fromkeys(SCALES, 0.5) | {"dynamic_degree": 52.6})
    with pytest.raises(ValueError, match="imaging_quality=nan is no fraction"):
        totals(dict.fromkeys(SCALES, 0.5) | {"imaging_quality": math.nan})
    with pytest.raises(ValueError, match="camera_motion was measured, so it counts"):
        totals(dict.fromkeys(SCALES, 0.5), camera=False)


def test_consistency_is_averaged_over_pairs_of_frames_and_the_rest_over_videos():
    def scores(name: str) -> list[VideoScore]:
        return [VideoScore(name, "a", 0, 0.5, 3), VideoScore(name, "b", 0, 0.9, 9)]

    for name, scale in SCALES.items():
        expected = (2 * 0.5 + 8 * 0.9) / 10 if scale.by_frames else 0.7
        assert dimension_score(scores(name)) == pytest.approx(expected)
    both = dimension_scores(scores("imaging_quality") + scores("subject_consistency"))
    assert both == pytest.approx({"subject_consistency": 0.82, "imaging_quality": 0.7})
    assert list(both) == ["subject_consistency", "imaging_quality"]


def test_lengths_are_known_of_all_videos_or_of_none():
    known, unknown = (VideoScore("subject_consistency", "a", k, 0.5 + k, 5 * k) for k in (1, 0))
    assert dimension_score([unknown]) == 0.5
    with pytest.raises(ValueError, match="'a', sample 0, has num_frames=0; the mean is over pairs"):
        dimension_score([known, unknown])
    with pytest.raises(ValueError, match="not of: none"):
        dimension_score([])
    with pytest.raises(ValueError, match="unknown: color"):
        dimension_scores([VideoScore("color", "a", 0, 1.0)])


OWN = {name: BackboneRecord("own", "0" * 64, comparable=True) for name in SCALES}


def test_only_the_benchmarks_own_backbones_on_its_whole_suite_are_vbench():
    assert title(Basis(OWN, public=True, complete=True)) == "VBench-I2V"
    assert file_stem(Basis(OWN, public=True, complete=True)) == "vbench_i2v"


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("stand_in", [True, False])
def test_one_other_backbone_makes_it_a_stand_in(name: str, stand_in: bool):
    others = {n: b for n, b in OWN.items() if n != name}
    if stand_in:
        others[name] = BackboneRecord("efficientnet-lite0", "1" * 64, comparable=False)
    basis = Basis(others, public=True, complete=True)
    assert basis.stand_ins == (name,)
    assert title(basis) == "stand-in, not VBench (1 of 9 backbones are not the benchmark's)"
    assert file_stem(basis) == "standin"


def test_another_suite_and_missing_videos_are_part_of_the_name():
    assert (
        title(Basis(OWN, public=False, complete=True)) == "VBench-I2V's measures on another suite"
    )
    assert title(Basis(OWN, public=True, complete=False)) == "VBench-I2V, incomplete"
    names = {
        file_stem(Basis(backbones, public, complete))
        for backbones in (OWN, {})
        for public in (True, False)
        for complete in (True, False)
    }
    assert len(names) == 6
    assert {name for name in names if name.startswith("vbench_i2v")} == {
        "vbench_i2v",
        "vbench_i2v_incomplete",
    }


def test_a_published_row_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="'Pusa 2' is no row of Table 1; it has Gen-4-I2V, STIV"):
        find("1", "Pusa 2")
    with pytest.raises(ValueError, match="Table '9' is none of 1, 2, 3, 4a, 4b"):
        find("9", "Pusa")
    assert find("3", "Wan2.1 alpha 1.4").source == "arXiv 2507.16116 v2, Table 3"
