"""Draws of per-frame noise levels."""

import pytest
import torch

from pusa.diffusion.flow import FlowMatching
from pusa.diffusion.timesteps import VectorTimesteps
from pusa.rng import generator_for


def draw(batch: int = 4000, frames: int = 5, **options) -> torch.Tensor:
    return VectorTimesteps(**options).sample(batch, frames, generator_for(0, "test"))


def test_p_async_is_the_share_of_independent_samples():
    for share in (0.0, 0.2, 1.0):
        sigma = draw(p_async=share)
        independent = (sigma != sigma[:, :1]).any(dim=1).float().mean().item()
        assert independent == pytest.approx(share, abs=0.03)


def test_frames_are_uncorrelated_when_independent():
    correlation = torch.corrcoef(draw(20000).T) - torch.eye(5)
    assert correlation.abs().max() < 0.03


def test_levels_follow_the_training_grid():
    """u ~ U(0, 1] with shift 5 has the moments of upstream's 1000-step grid."""
    sigma = draw(40000, 1, shift=5.0)
    assert sigma.mean().item() == pytest.approx(0.7476, abs=0.005)
    assert (sigma >= 0.875).float().mean().item() == pytest.approx(0.417, abs=0.01)
    assert sigma.min() > 0
    assert sigma.max() <= 1


def test_an_experts_range_is_kept_and_is_uniform_on_its_slice_of_the_grid():
    sigma = draw(20000, 1, sigma_range=(0.875, 1.0))
    assert sigma.min() >= 0.875
    assert sigma.max() <= 1
    grid = FlowMatching(5.0).sigmas(100000)[:-1]
    assert sigma.mean().item() == pytest.approx(grid[grid >= 0.875].mean().item(), abs=1e-3)


def test_first_frame_clean_leaves_the_other_frames_alone():
    sigma = draw(p_async=0.0, first_frame_clean=1.0)
    assert (sigma[:, 0] == 0).all()
    assert (sigma[:, 1:] > 0).all()
    assert (sigma[:, 1:] == sigma[:, 1:2]).all()
    assert (draw(frames=1, first_frame_clean=1.0) > 0).all()  # an image is never all clean


def test_planned_samples_look_as_sampling_does():
    """Free frames share a level; the given ones have it times one multiplier, half of them 0."""
    sigma = draw(planned=1.0)
    top = sigma.max(dim=1, keepdim=True).values
    given = sigma < top
    assert (top > 0).all()
    ratio = sigma / top
    lowest = ratio.min(dim=1, keepdim=True).values
    torch.testing.assert_close(ratio[given], lowest.expand_as(ratio)[given])
    assert given.sum(1).bincount(minlength=5).tolist() == pytest.approx([800] * 5, abs=100)
    assert given.float().mean(0).tolist() == pytest.approx([0.4] * 5, abs=0.03)  # at any place
    some = given.any(1)
    assert (lowest[some] == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert top.mean().item() == pytest.approx(draw(p_async=0.0).mean().item(), abs=0.02)


def test_a_share_of_planned_samples_leaves_the_others_as_they_were():
    plain, mixed = draw(), draw(planned=0.5)
    alike = (mixed == plain).all(1).float().mean().item()
    assert alike == pytest.approx(0.5, abs=0.03)
    low = draw(planned=1.0, sigma_range=(0.875, 1.0)).max(dim=1).values
    assert low.min() >= 0.875
    assert torch.equal(draw(frames=1, planned=1.0), draw(frames=1))


def test_clean_share_never_cleans_a_whole_clip():
    sigma = draw(frames=3, clean_share=0.9)
    assert (sigma == 0).float().mean().item() == pytest.approx(0.66, abs=0.06)
    assert (sigma > 0).any(dim=1).all()
    assert (draw(frames=3, clean_share=1.0) > 0).sum(dim=1).eq(1).all()
    both = draw(clean_share=1.0, first_frame_clean=1.0)
    assert (both > 0).sum(dim=1).eq(1).all()
    assert (both[:, 0] == 0).all()


def test_draws_depend_on_the_generator_alone():
    torch.manual_seed(1)
    first = draw(4)
    torch.manual_seed(2)
    assert torch.equal(first, draw(4))


@pytest.mark.parametrize(
    "options",
    [{"p_async": 1.2}, {"shift": 0}, {"sigma_range": (0.5, 0.5)}, {"first_frame_clean": -0.1}],
)
def test_bad_settings_are_named(options):
    with pytest.raises(ValueError, match=f"timesteps.{next(iter(options))}"):
        VectorTimesteps(**options)
