"""Seeds x clips: closed forms, what always holds, and how often intervals hold the truth."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference
from torch import Tensor

from pusa.evaluation import stats
from pusa.evaluation.crossed import Estimate, best, difference, estimate, holm, trend, verdict
from pusa.rng import generator_for

# Means by row 2, 4, 7 and by column 3, 4, 6; of 223 - 9 (13/3)^2 = 54, rows explain 38, columns 14.
BY_HAND = torch.tensor([[1.0, 2, 3], [2, 4, 6], [6, 6, 9]])
MS_SEEDS, MS_CLIPS, MS_RESIDUAL = 38 / 2, 14 / 2, 2 / 4
DRAWS = 2000  # tell how often an interval holds the truth to within 0.005 or so
HELD = (0.93, 0.995)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def crossed(
    generator: torch.Generator, seeds: int, clips: int, spread: tuple[float, float, float]
) -> Tensor:
    """(R, N) around 0; spread: standard deviations of seeds, of clips and of what is left."""
    seed, clip, residual = spread
    table = seed * normal(generator, seeds, 1) + clip * normal(generator, 1, clips)
    return table + residual * normal(generator, seeds, clips)


def table(index: int, seeds: int = 3, clips: int = 7) -> Tensor:
    return crossed(generator_for(0, "tests/crossed", index), seeds, clips, (0.5, 1.0, 1.0)) + 0.4


def held_without_seeds(values: Tensor) -> float:
    """How often the truth, 0, lies in the intervals of tables (D, R, N) by Student's t over the
    clips' means, as if seeds were mere repetitions."""
    means = values.mean(1).numpy()
    return float((p_over_first(means.T) > 0.05).mean())


def p_over_first(values: np.ndarray, mean: float = 0.0) -> np.ndarray:
    """Two-sided p of Student's t over the first dimension."""
    error = values.std(0, ddof=1) / math.sqrt(len(values))
    return 2 * reference.t.sf(np.abs(values.mean(0) - mean) / error, len(values) - 1)


def same(found: Estimate, wanted: Estimate) -> bool:
    numbers = [(e.mean, e.half_width, e.degrees, e.p_value) for e in (found, wanted)]
    sizes = [(e.seeds, e.clips) for e in (found, wanted)]
    return numbers[0] == pytest.approx(numbers[1]) and sizes[0] == sizes[1]


def test_a_table_worked_by_hand():
    found = estimate(BY_HAND)
    error = math.sqrt((MS_SEEDS + MS_CLIPS - MS_RESIDUAL) / 9)
    squares = MS_SEEDS**2 / 2 + MS_CLIPS**2 / 2 + MS_RESIDUAL**2 / 4
    # Seeds and clips have 2 degrees each here, so that the interval is Student's.
    assert found.mean == pytest.approx(13 / 3)
    assert found.half_width == pytest.approx(4.302653 * error)
    assert found.degrees == pytest.approx((81 * error**4) / squares)
    assert found.p_value == pytest.approx(2 * reference.t.sf(13 / 3 / error, 2))
    assert (found.seeds, found.clips) == (3, 3)
    assert (found.low, found.high) == (
        found.mean - found.half_width,
        found.mean + found.half_width,
    )


def test_seeds_and_clips_are_stretched_by_their_own_quantile():
    values = table(1, seeds=3, clips=7).numpy()
    rows, columns = values.mean(1), values.mean(0)
    left = values - rows[:, None] - columns + values.mean()
    ms = 7 * rows.var(ddof=1), 3 * columns.var(ddof=1), (left**2).sum() / 12
    assert ms[1] > ms[2]
    for level in (0.8, 0.95, 0.995):
        few, many = (reference.t.ppf((1 + level) / 2, degrees) for degrees in (2, 6))
        wanted = math.sqrt((few**2 * ms[0] + many**2 * (ms[1] - ms[2])) / 21)
        assert estimate(torch.from_numpy(values), level).half_width == pytest.approx(wanted)


def test_the_variance_is_never_below_what_the_residual_alone_gives():
    # Rows and columns of equal means: all there is, is residual.
    values = torch.tensor([[1.0, -1, 0], [-1, 0, 1], [0, 1, -1]])
    residual = 6 / 4
    found = estimate(values)
    assert found.half_width == pytest.approx(reference.t.ppf(0.975, 4) * math.sqrt(residual / 9))
    assert found.degrees == pytest.approx(4)
    assert found.p_value == 1


# Spread of seeds, of clips, of the residual; the fourth is about the worst case of Satterthwaite's
# approximation, which is right in 92% there.
SPREADS = [(0, 0, 1), (0, 1, 1), (0.3, 0.3, 1), (2, 3, 1), (1, 1, 1), (3, 0.3, 1)]


@pytest.mark.parametrize("spread", SPREADS, ids=str)
def test_intervals_of_three_seeds_hold_the_truth(spread: tuple[float, float, float]):
    generator = generator_for(0, "tests/crossed/coverage", SPREADS.index(spread))
    tables = torch.stack([crossed(generator, 3, 48, spread) for _ in range(DRAWS)])
    found = [estimate(values) for values in tables]
    held = sum(each.low <= 0 <= each.high for each in found) / DRAWS
    assert HELD[0] <= held <= HELD[1]
    # Where comparisons are many, small p have to be right; Satterthwaite's alarm in up to 2.5%.
    assert sum(each.p_value < 0.005 for each in found) / DRAWS <= 0.01
    if spread[0]:
        assert held_without_seeds(tables) < 0.8
    else:
        assert held_without_seeds(tables) == pytest.approx(0.95, abs=0.02)


# Seeds of ours and of theirs, whether they are paired; theirs of one row was not trained.
SIDES = [(3, 3, True), (3, 3, False), (3, 5, False), (3, 1, False)]


@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_intervals_of_differences_hold_the_truth(sides: tuple[int, int, bool]):
    ours, theirs, paired = sides
    generator = generator_for(1, "tests/crossed/coverage")
    held, differences = 0, []
    for _ in range(DRAWS):
        # What both share drops out: the clips, and the luck of seeds that are paired.
        shared = 3 * normal(generator, 1, 48) + (2 * normal(generator, 3, 1) if paired else 0)
        first = shared + crossed(generator, ours, 48, (0.7, 1, 1))
        second = shared + crossed(generator, theirs, 48, (0.7 if theirs > 1 else 0, 0.5, 1))
        found = difference(first, second, paired_seeds=paired)
        held += found.low <= 0 <= found.high
        differences.append(first.mean(0, keepdim=True) - second.mean(0))
    assert HELD[0] <= held / DRAWS <= HELD[1]
    assert held_without_seeds(torch.stack(differences)) < 0.8


def test_one_seed_says_that_only_clips_are_random():
    values = table(1, seeds=1)
    found = estimate(values)
    wanted = stats.mean_interval({clip: [value] for clip, value in enumerate(values[0].tolist())})
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert found.degrees == pytest.approx(6)
    assert found.p_value == pytest.approx(p_over_first(values[0].numpy()))
    assert found.seeds == 1
    assert estimate(table(1)).seeds == 3


def test_one_clip_shows_nothing():
    found = estimate(torch.tensor([[5.0], [5.1], [5.2]]))
    assert (found.mean, found.half_width, found.p_value) == (pytest.approx(5.1), math.inf, 1)
    assert verdict(found) == "no difference shown"


def test_a_paired_difference_is_the_estimate_of_the_differences():
    ours, theirs = table(2), table(3)
    assert same(difference(ours, theirs, paired_seeds=True), estimate(ours - theirs))


def test_a_model_that_was_not_trained_adds_no_variance_of_seeds():
    ours, base = table(4), table(5, seeds=1)
    assert same(difference(ours, base), estimate(ours - base))
    assert difference(ours[:1], base).seeds == 1


def test_independent_seeds_add_the_parts_of_both_sides():
    ours, theirs = table(6, seeds=3).numpy(), table(7, seeds=5).numpy()
    noise = 0.0
    for side in (ours, theirs):
        left = side - side.mean(1, keepdims=True) - side.mean(0) + side.mean()
        noise += (left**2).sum() / ((len(side) - 1) * 6) / side.size
    clips = (ours.mean(0) - theirs.mean(0)).var(ddof=1) / 7 - noise
    parts = [(ours.mean(1).var(ddof=1) / 3, 2), (theirs.mean(1).var(ddof=1) / 5, 4), (clips, 6)]
    wanted = math.sqrt(sum(v * reference.t.ppf(0.975, d) ** 2 for v, d in parts))
    found = difference(torch.from_numpy(ours), torch.from_numpy(theirs))
    assert clips > 0
    assert found.half_width == pytest.approx(wanted)
    assert (found.mean, found.seeds) == (pytest.approx(ours.mean() - theirs.mean()), 3)
    turned = difference(torch.from_numpy(theirs), torch.from_numpy(ours))
    assert (turned.mean, turned.half_width) == pytest.approx((-found.mean, found.half_width))


def test_a_clip_with_nan_is_dropped_for_all():
    ours, theirs = table(8), table(9)
    holed, other = ours.clone(), theirs.clone()
    holed[1, 2], other[0, 5] = math.nan, math.nan
    without = [0, 1, 3, 4, 5, 6]
    assert same(estimate(holed), estimate(ours[:, without]))
    assert estimate(holed).clips == 6
    rest = [0, 1, 3, 4, 6]
    for paired in (True, False):
        found = difference(holed, other, paired_seeds=paired)
        assert same(found, difference(ours[:, rest], theirs[:, rest], paired_seeds=paired))
    found = trend({1.0: holed, 4.0: other})
    assert same(found, trend({1.0: ours[:, rest], 4.0: theirs[:, rest]}))


@given(st.integers(0, 500), st.floats(-3, 3), st.sampled_from([(3, 7), (1, 5), (2, 2), (6, 3)]))
def test_p_is_where_the_interval_just_reaches_nothing(index: int, shift: float, shape: tuple):
    values = table(index, *shape) + shift
    found = estimate(values)
    assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)
    touching = estimate(values, 1 - found.p_value)
    assert touching.half_width == pytest.approx(abs(found.mean), rel=1e-6)


def test_what_never_varies_is_certain():
    found = estimate(torch.full((3, 4), 2.0))
    assert (found.mean, found.half_width, found.p_value, found.degrees) == (2, 0, 0, 0)
    assert estimate(torch.zeros(3, 4)).p_value == 1


def test_a_trend_is_the_slope_per_doubling_of_every_seed_and_clip():
    lengths = [100.0, 400.0, 500.0, 3200.0]
    values = {x: table(20 + k) - 0.3 * math.log2(x) for k, x in enumerate(lengths)}
    lines = torch.stack(list(values.values())).flatten(1).numpy()
    slopes = np.polyfit(np.log2(lengths), lines, 1)[0].reshape(3, 7)
    assert same(trend(values), estimate(torch.from_numpy(slopes)))
    backwards = dict(reversed(values.items()))
    assert same(trend(backwards), trend(values))


def bows(tops: Tensor, grid: list[float]) -> dict[float, Tensor]:
    """Parabolas over the grid with their tops at (R, N)."""
    return {x: 5 - 2 * (x - tops).square() for x in grid}


def test_the_top_of_a_parabola_is_found_between_uneven_keys():
    tops = torch.tensor([[0.9], [1.15], [0.62]]).expand(3, 5)
    found = best(bows(tops, [0.5, 1.6, 0.7, 1.0, 0.4]), "linear")
    assert found.by_seed.tolist() == pytest.approx([0.9, 1.15, 0.62])
    assert found.at_edge == ()
    wanted = estimate(tops)
    assert (found.place.mean, found.place.half_width) == pytest.approx(
        (wanted.mean, wanted.half_width)
    )


def test_on_a_log_scale_places_are_log2_of_the_keys():
    tops = torch.tensor([[1.3], [2.2]]).expand(2, 4)
    curves = {2**x: y for x, y in bows(tops, [0, 1, 2, 3]).items()}
    assert best(curves, "log").by_seed.tolist() == pytest.approx([1.3, 2.2])


def test_clips_with_tops_of_their_own_spread_the_optimum_as_they_should():
    # The top of a mean of equal bows is the mean of the tops, so that every clip has its say.
    tops = 1 + 0.05 * table(30)
    found = best(bows(tops, [0.6, 0.8, 1.0, 1.2, 1.4]), "linear")
    assert same(found.place, estimate(tops))
    torch.testing.assert_close(found.per_clip, tops)


def test_an_optimum_at_the_edge_is_told_and_has_no_interval():
    tops = torch.tensor([[0.2], [0.9], [1.9]]).expand(3, 5)
    found = best(bows(tops, [0.5, 0.8, 1.0, 1.2]), "linear")
    assert found.at_edge == (0, 2)
    assert found.by_seed.tolist() == pytest.approx([0.5, 0.9, 1.2])
    assert (found.place.half_width, found.place.p_value) == (math.inf, 1)


def test_optima_hold_for_other_clips_and_not_only_for_other_seeds():
    generator = generator_for(2, "tests/crossed/coverage")
    held, optima = 0, []
    for _ in range(500):
        tops = 1.03 + crossed(generator, 3, 48, (0.03, 0.3, 0))
        curves = bows(tops, [0.4, 0.7, 1.0, 1.3, 1.6])
        found = best({x: y + 0.1 * normal(generator, 3, 48) for x, y in curves.items()}, "linear")
        held += found.place.low <= 1.03 <= found.place.high
        optima.append(found.by_seed.numpy())
    assert HELD[0] <= held / 500 <= HELD[1]
    assert (p_over_first(np.stack(optima, 1), 1.03) > 0.05).mean() < 0.9


def told(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, (high - low) / 2, 5.0, 0.5, 3, 48)


@pytest.mark.parametrize(
    ("low", "high", "margin", "wanted"),
    [
        (0.1, 0.5, 0, "higher"),
        (-0.5, -0.1, 0, "lower"),
        (-0.1, 0.5, 0, "no difference shown"),
        (-0.1, 0.15, 0.2, "equal within margin"),
        (0.1, 0.15, 0.2, "equal within margin"),
        (-0.1, 0.25, 0.2, "no difference shown"),
        (0.1, 0.25, 0.2, "higher"),
        (-0.25, -0.1, 0.2, "lower"),
        (0, 0, 0, "no difference shown"),
    ],
)
def test_verdicts(low: float, high: float, margin: float, wanted: str):
    assert verdict(told(low, high), margin) == wanted


def test_holm_as_in_the_textbooks():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1, 1]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


WRONG = [
    (lambda: estimate(torch.ones(4)), r"shape \(4,\); hand in \(seeds, clips\)"),
    (lambda: estimate(torch.ones(0, 4)), r"shape \(0, 4\)"),
    (lambda: estimate(torch.full((2, 3), math.nan)), "3 clips has a NaN; leave out"),
    (lambda: estimate(torch.full((2, 3), math.inf)), "mark what has no value by NaN"),
    (lambda: estimate(BY_HAND, 95), "level=95 .* between 0 and 1"),
    (lambda: difference(table(0), table(0, clips=6)), r"\(3, 7\) and \(3, 6\); .* same clips"),
    (lambda: difference(table(0), table(0, 5), paired_seeds=True), "3 and 5 seeds .* keep"),
    (lambda: difference(table(0, 1), table(0)), "train ours with more seeds"),
    (lambda: trend({4: BY_HAND}), "2 or more positive keys"),
    (lambda: trend({0: BY_HAND, 4: BY_HAND}), "2 or more positive keys"),
    (lambda: trend({1: BY_HAND, 4: BY_HAND[:2]}), "keep the seeds and clips that all keys have"),
    (lambda: best({1: BY_HAND, 2: BY_HAND}, "linear"), "3 or more keys.* measure more"),
    (lambda: best({0: BY_HAND, 1: BY_HAND, 2: BY_HAND}, "log"), "positive ones on a log scale"),
    (lambda: holm([0.1, math.nan]), "leave out what is NaN"),
]


@pytest.mark.parametrize(("call", "remedy"), WRONG, ids=[remedy for _, remedy in WRONG])
def test_errors_name_the_remedy(call, remedy: str):
    with pytest.raises(ValueError, match=remedy):
        call()
