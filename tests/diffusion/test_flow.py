"""Grids, path and loss against closed forms and the vectors of upstream's schedule."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pusa.diffusion.flow import FlowMatching, shift_sigma

# Shift 5, published schedules of 4 and 10 steps.
GRID_4 = [1, 0.9375, 0.83333, 0.625, 0]
GRID_10 = [1, 0.97826, 0.95238, 0.92105, 0.88235, 0.83333, 0.76923, 0.68182, 0.55556, 0.35714, 0]


def test_grids_are_the_published_ones():
    flow = FlowMatching(shift=5.0)
    assert flow.sigmas(4).tolist() == pytest.approx(GRID_4, abs=1e-5)
    assert flow.sigmas(10).tolist() == pytest.approx(GRID_10, abs=1e-5)


def test_training_grid_has_the_published_moments():
    grid = FlowMatching(shift=5.0).sigmas(1000)[:-1]
    assert 1000 * grid[-1].item() == pytest.approx(4.980, abs=1e-3)
    assert grid.mean().item() == pytest.approx(0.7476, abs=1e-4)
    assert (grid >= 0.875).sum().item() == 417


@pytest.mark.parametrize(("steps", "high"), [(4, 2), (10, 5), (30, 13), (50, 21)])
def test_steps_in_the_high_noise_phase(steps, high):
    assert (FlowMatching(5.0).sigmas(steps)[:-1] >= 0.875).sum().item() == high


@given(shift=st.floats(0.1, 20), steps=st.integers(1, 200))
def test_a_grid_falls_from_one_to_exactly_zero(shift, steps):
    sigmas = FlowMatching(shift).sigmas(steps)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert (sigmas[1:] < sigmas[:-1]).all()


def test_bell_weights_are_the_published_ones():
    flow = FlowMatching(shift=5.0, weighting="bell")
    expected = {
        1.0: 0.0,
        0.9: 0.631,
        0.75: 1.456,
        0.5: 2.076,
        0.25: 1.464,
        0.1: 0.638,
        0.005: 0.032,
    }
    weights = flow.weight(torch.tensor(list(expected), dtype=torch.float64))
    # The published ones are of the nearest grid point, up to 1.5 timesteps away.
    assert weights.tolist() == pytest.approx(list(expected.values()), abs=0.008)
    assert weights[[0, 1, 2, 3]].tolist() == pytest.approx([0.0, 0.631, 1.456, 2.076], abs=1e-3)
    grid = shift_sigma(torch.linspace(1, 0, 1001, dtype=torch.float64)[:-1], 5.0)
    assert flow.weight(grid).mean().item() == pytest.approx(1.0, abs=1e-9)
    assert flow.weight(grid).std(correction=0).item() == pytest.approx(0.678, abs=1e-3)


def test_noise_path_and_target_are_consistent():
    flow = FlowMatching()
    clean, noise = torch.randn(2, 2, 4, 3, 2, 2)
    sigma = torch.rand(2, 3)
    h = 1e-3
    slope = (flow.add_noise(clean, noise, sigma + h) - flow.add_noise(clean, noise, sigma)) / h
    torch.testing.assert_close(slope, flow.velocity(clean, noise), atol=1e-2, rtol=1e-3)


def test_loss_weights_frames_and_ignores_clean_ones():
    flow = FlowMatching()
    zeros = torch.zeros(1, 4, 2, 2, 2)
    velocity = zeros.clone()
    velocity[:, :, 1] = 2.0
    assert flow.frame_errors(velocity, zeros, zeros).tolist() == [[0.0, 4.0]]
    assert flow.loss(velocity, zeros, zeros, torch.tensor([[0.0, 0.5]])).item() == 4.0
    assert flow.loss(velocity, zeros, zeros, torch.tensor([[0.5, 0.5]])).item() == 2.0


def test_bell_weighting_is_per_frame():
    flow = FlowMatching(shift=5.0, weighting="bell")
    zeros = torch.zeros(1, 4, 2, 2, 2)
    velocity = zeros.clone()
    velocity[:, :, 1] = 1.0
    high = flow.loss(velocity, zeros, zeros, torch.tensor([[0.5, 1.0]]))
    low = flow.loss(velocity, zeros, zeros, torch.tensor([[1.0, 0.5]]))
    assert high.item() == pytest.approx(0.0, abs=1e-6)  # the wrong frame has weight 0
    assert low.item() == pytest.approx(2.076 / 2, abs=1e-3)


def test_a_nan_in_a_clean_frame_does_not_reach_the_loss():
    flow = FlowMatching()
    zeros = torch.zeros(1, 1, 2, 1, 1)
    velocity = zeros.clone()
    velocity[:, :, 0] = float("nan")
    assert flow.loss(velocity, zeros, zeros, torch.tensor([[0.0, 0.5]])).item() == 0.0


@pytest.mark.parametrize(
    ("options", "message"), [({"shift": 0.0}, "positive"), ({"weighting": "bel"}, "none, bell")]
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FlowMatching(**options)


def test_mochis_grid_is_the_published_one():
    """genmo's linear-quadratic schedule of 30 steps (spec: 1, .99833, .99667 ... .124, 0)."""
    sigmas = FlowMatching(shift=1.0, grid="linear_quadratic").sigmas(30)
    expected = {0: 1, 1: 0.99833, 2: 0.99667, 15: 0.975, 16: 0.96911, 17: 0.95478, 18: 0.932,
                28: 0.23978, 29: 0.12411, 30: 0}  # fmt: skip
    for step, value in expected.items():
        assert sigmas[step] == pytest.approx(value, abs=6e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 7, 64, 1000])
def test_mochis_grid_falls_from_one_to_zero_and_bends_smoothly(num_steps):
    sigmas = FlowMatching(shift=1.0, grid="linear_quadratic").sigmas(num_steps)
    assert len(sigmas) == num_steps + 1
    assert (sigmas[0], sigmas[-1]) == (1, 0)
    assert (sigmas.diff() < 0).all()
    assert (sigmas.double().diff().diff() < 1e-6).all()  # steps never become smaller


def test_an_unknown_grid_is_refused():
    with pytest.raises(ValueError, match=r"flow\.grid='cosine' is unknown"):
        FlowMatching(grid="cosine")
