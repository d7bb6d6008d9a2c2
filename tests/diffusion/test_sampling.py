"""Conditioning -> plan -> Euler: the laws that every task relies on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pusa.diffusion.conditioning import Conditioning
from pusa.diffusion.flow import FlowMatching
from pusa.diffusion.sampler import euler, guided

SHAPE = (2, 4, 6, 4, 4)


def test_plan_is_upstreams_conditioning_trace():
    """Upstream's model timesteps of n=30, m={0: .2, 20: .5}, before its integer truncation."""
    zero = torch.zeros(4, 2, 2)
    conditioning = Conditioning.free((1, 4, 21, 2, 2)).given({0: (zero, 0.2), 20: (zero, 0.5)})
    timesteps = 1000 * conditioning.plan(FlowMatching(5.0).sigmas(30))[:, 0, [0, 1, 20]]
    assert timesteps[0].tolist() == pytest.approx([200, 1000, 500])
    for step, published in ((1, (198, 992, 496)), (2, (197, 984, 492)), (29, (29, 147, 73))):
        # bfloat16 holds 992 for 993.1 and 984 for 985.9, hence the width.
        assert timesteps[step].tolist() == pytest.approx(published, abs=2.5)
    assert timesteps[30].tolist() == [0, 0, 0]


@settings(max_examples=40, deadline=None)
@given(
    multipliers=st.dictionaries(st.integers(0, 5), st.floats(0, 1), max_size=6),
    steps=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_an_exact_velocity_returns_the_exact_clip_for_any_conditioning(multipliers, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    truth, noise = torch.randn(2, *SHAPE, generator=generator)
    given_frames = {index: (truth[:, :, index], m) for index, m in multipliers.items()}
    conditioning = Conditioning.free(SHAPE).given(given_frames)
    flow = FlowMatching()
    sigmas = flow.sigmas(steps)
    result = euler(
        lambda x, sigma, step: noise - truth,
        noise, conditioning.latents, sigmas, conditioning.plan(sigmas), flow,
    )  # fmt: skip
    torch.testing.assert_close(result, truth, atol=1e-5, rtol=0)


def test_a_clean_frame_comes_back_bit_for_bit_even_from_a_wrong_model():
    truth, noise = torch.randn(2, *SHAPE)
    conditioning = Conditioning.free(SHAPE).given(
        {0: (truth[:, :, 0], 0.0), -1: (truth[:, :, 5], 0.0)}
    )
    flow = FlowMatching()
    sigmas = flow.sigmas(5)
    result = euler(
        lambda x, sigma, step: torch.randn_like(x),
        noise, conditioning.latents, sigmas, conditioning.plan(sigmas), flow,
    )  # fmt: skip
    assert torch.equal(result[:, :, 0], truth[:, :, 0])
    assert torch.equal(result[:, :, 5], truth[:, :, 5])
    assert not torch.allclose(result[:, :, 1], truth[:, :, 1])


def test_the_model_sees_every_step_and_each_frames_own_sigma():
    conditioning = Conditioning.free(SHAPE).given({1: (torch.zeros(4, 4, 4), 0.5)})
    flow, seen = FlowMatching(), []
    sigmas = flow.sigmas(4)

    def velocity(x, sigma, step):
        seen.append((step.item(), sigma[0, 0].item(), sigma[0, 1].item()))
        return torch.zeros_like(x)

    euler(
        velocity, torch.randn(SHAPE), conditioning.latents, sigmas, conditioning.plan(sigmas), flow
    )
    assert seen == [(s, s, s * 0.5) for s in sigmas[:-1].tolist()]


def test_guidance_extrapolates_and_scale_one_is_one_pass():
    calls = []

    def make(value):
        def velocity(x, sigma, step):
            calls.append(value)
            return torch.full_like(x, value)

        return velocity

    x, step = torch.zeros(SHAPE), torch.tensor(0.5)
    assert guided(make(3.0), make(1.0), 2.0)(x, x, step).unique().item() == 5.0
    calls.clear()
    assert guided(make(3.0), make(1.0), 1.0)(x, x, step).unique().item() == 3.0
    assert calls == [3.0]


def test_rows_of_a_batch_are_given_apart():
    one = Conditioning.free((2, 4, 6, 4, 4)).given({0: (torch.ones(4, 4, 4), 0.2)}, row=1)
    assert one.multiplier.tolist() == [[1.0] * 6, [pytest.approx(0.2), *[1.0] * 5]]
    assert one.latents[0].eq(0).all()
    both = one.given({0: (torch.ones(4, 4, 4), 0.0)}, row=0)
    assert both.multiplier[:, 0].tolist() == pytest.approx([0.0, 0.2])
    with pytest.raises(ValueError, match="latent frame 0 is given twice"):
        one.given({0: (torch.ones(4, 4, 4), 0.0)}, row=1)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ({6: (torch.zeros(4, 4, 4), 0.2)}, r"latent frame 6 is outside .* use 0..5 or -6..-1"),
        ({-7: (torch.zeros(4, 4, 4), 0.2)}, "latent frame -7"),
        ({0: (torch.zeros(4, 4, 4), 1.2)}, r"must be in \[0, 1\]"),
        ({0: (torch.zeros(4, 4, 4), 0.2), -6: (torch.zeros(4, 4, 4), 0.2)}, "given twice"),
        ({0: (torch.zeros(3, 4, 4), 0.2)}, r"needs \(4, 4, 4\)"),
    ],
)
def test_bad_conditions_are_named(frames, message):
    with pytest.raises(ValueError, match=message):
        Conditioning.free(SHAPE).given(frames)
