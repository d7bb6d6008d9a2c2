"""The public code's roundings, against published figures and a step written out as it does it."""

import pytest
import torch

from pusa.diffusion.flow import FlowMatching
from pusa.diffusion.upstream import UpstreamFlow, UpstreamTimesteps, training_grid


def test_the_training_grid_has_its_published_values():
    grid = training_grid(5.0)
    assert float(grid[0]) == 1000
    assert float(grid[-1]) == pytest.approx(4.980, abs=1e-3)
    assert float(grid.mean()) / 1000 == pytest.approx(0.7476, abs=1e-4)
    assert int((grid >= 875).sum()) == 417
    assert len(grid.bfloat16().unique()) == 294


@pytest.mark.parametrize(
    ("t", "weight"),
    [(1000, 0), (900, 0.631), (750, 1.456), (500, 2.076), (250, 1.464), (100, 0.638), (5, 0.032)],
)
def test_the_bell_has_its_published_values(t, weight):
    found = UpstreamFlow(5.0).weight(torch.tensor([[t / 1000]]))
    assert float(found) == pytest.approx(weight, abs=6e-4)


def test_a_four_step_grid_is_rounded_as_published():
    timesteps = 1000 * FlowMatching(5.0).sigmas(4)[:-1]
    assert timesteps.bfloat16().tolist() == [1000, 936, 832, 624]


def test_the_step_is_the_one_that_the_public_code_takes():
    """Written out sample by sample, with argmin over the grid, in the order of the public code."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(1, 4, 21, 2, 2, generator=generator).bfloat16() for _ in "ab")
    flow, timesteps = UpstreamFlow(5.0), UpstreamTimesteps(5.0)
    sigma = timesteps.sample(1, 21, generator)
    grid = training_grid(5.0)
    t = (1000 * sigma).bfloat16()
    noisy, weights = clean.float().clone(), []
    bell = torch.exp(-2 * ((grid - 500) / 1000) ** 2)
    bell = (bell - bell.min()) * 1000 / (bell - bell.min()).sum()
    for frame in range(21):
        index = int((grid - t[0, frame].float()).abs().argmin())
        s = grid[index] / 1000
        noisy[:, :, frame] = (1 - s) * clean[:, :, frame].float() + s * noise[:, :, frame].float()
        weights.append(bell[index])
    prediction = torch.randn(clean.shape, generator=generator)
    target = noise - clean
    loss = (prediction - target.float()).square().mean() * torch.stack(weights).mean()
    torch.testing.assert_close(flow.add_noise(clean.float(), noise.float(), sigma), noisy)
    found = flow.loss(prediction, clean.float(), noise.float(), sigma)
    torch.testing.assert_close(found, loss)


def test_its_loss_jitters_as_published():
    """Weights of 21 frames average to 1 within a standard deviation of 0.148: no weighting."""
    flow, draws = UpstreamFlow(5.0), UpstreamTimesteps(5.0)
    sigma = draws.sample(20_000, 21, torch.Generator().manual_seed(1))
    means = flow.weight(sigma).mean(1)
    assert float(means.mean()) == pytest.approx(1, abs=0.01)
    assert float(means.std()) == pytest.approx(0.148, abs=0.004)


def test_half_of_mochis_levels_are_nearly_noise():
    draws = UpstreamTimesteps(grid="linear_quadratic", skip_last=2)
    sigma = draws.sample(5000, 10, torch.Generator().manual_seed(0))
    assert float((sigma >= 0.975).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(sigma.min()) > 0


def test_a_range_is_refused():
    with pytest.raises(ValueError, match="no sigma_range"):
        UpstreamTimesteps(sigma_range=(0.875, 1.0))
