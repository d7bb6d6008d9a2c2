"""The public code's roundings, against published figures and steps written out as it does them."""

import pytest
import torch

from pusa.diffusion import upstream
from pusa.diffusion.conditioning import Conditioning
from pusa.diffusion.flow import FlowMatching
from pusa.diffusion.plans import NoisyFirst
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


SHAPE = (1, 4, 21, 2, 2)


def sample_upstream(multipliers: dict[int, float], steps: int, seed: int = 0):
    """Sampling from an exact velocity: (result, truth, the t (F,) that the network was given)."""
    truth, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed))
    given = {index: (truth[:, :, index], m) for index, m in multipliers.items()}
    conditioning, flow = Conditioning.free(SHAPE).given(given), FlowMatching(5.0)
    sigmas, seen = flow.sigmas(steps), []

    def velocity(x, sigma, step):
        seen.append((1000 * sigma[0]).round(decimals=3))
        return noise - truth

    result = upstream.euler(
        velocity, noise, conditioning.latents, sigmas, conditioning.plan(sigmas), flow
    )
    return result, truth, torch.stack(seen)


def test_the_network_is_given_the_published_timesteps():
    """n=30, m={0: .2, 20: .5}; columns: frame 0, a free one, frame 20."""
    result, truth, seen = sample_upstream({0: 0.2, 20: 0.5}, 30)
    assert seen[:3, [0, 1, 20]].tolist() == [[200, 1000, 500], [198, 992, 496], [197, 984, 492]]
    assert seen[-3:, [0, 1, 20]].tolist() == [[71, 358, 179], [52, 264, 132], [29, 147, 73]]
    torch.testing.assert_close(
        result, truth, atol=1e-5, rtol=0
    )  # the solver's sigma is not rounded


def test_a_multiplier_of_half_a_percent_is_never_cleaned():
    """Its t is cut to 0 before the noise is gone: the published residual is 3e-3."""
    result, truth, seen = sample_upstream({0: 0.005}, 30)
    left = (result - truth).abs().amax(dim=(0, 1, 3, 4))
    assert 1e-3 < float(left[0]) < 2e-2
    assert float(left[1:].max()) < 1e-5
    assert not seen[-1, 0]


def test_a_clip_with_all_frames_given_does_not_come_out_clean():
    result, truth, _ = sample_upstream(dict.fromkeys(range(21), 0.4), 30)
    assert float((result - truth).abs().max()) > 0.5


@pytest.mark.parametrize(
    ("shift", "steps", "wrong"),
    [(5, 30, 0), (5, 50, 0), (5, 60, 1), (5, 80, 4), (5, 100, 11), (5, 200, 63),
     (12, 30, 1), (12, 40, 3), (12, 50, 7)],
)  # fmt: skip
def test_dense_steps_are_taken_twice_or_left_out_as_published(shift, steps, wrong):
    sigmas = FlowMatching(shift).sigmas(steps)
    found = [upstream.step_index((1000 * s).bfloat16()[None], sigmas) for s in sigmas[:-1]]
    assert sum(i != index for i, index in enumerate(found)) == wrong


def test_other_plans_are_refused():
    flow, x = FlowMatching(), torch.zeros(SHAPE)
    plan = NoisyFirst(2)(flow.sigmas(4), torch.tensor([[0.5] + [1.0] * 20]))
    with pytest.raises(ValueError, match="constant noise multipliers only"):
        upstream.euler(lambda *_: x, x, x, plan.steps, plan.levels, flow)
