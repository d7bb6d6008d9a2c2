"""The sampler as its config names it: every file builds, what cannot be is refused, and guidance in
one batch gives the numbers of two passes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pusa.diffusion.conditioning import Conditioning
from pusa.diffusion.flow import FlowMatching
from pusa.diffusion.upstream import UpstreamFlow
from pusa.entry import build
from pusa.models.experts import Experts
from pusa.models.variants import VARIANTS
from pusa.pipelines.generate import METHODS, Request, Sampler, integrate, sample_latents
from pusa.pipelines.tiny import random_backbone
from pusa.types import Text
from tests.conftest import REPOSITORY, compose_config

SHAPE = (16, 3, 8, 8)
NAMES = sorted(path.stem for path in (REPOSITORY / "configs" / "sampler").glob("*.yaml"))


def seen(sampler: Sampler, conditioning: Conditioning, flow: FlowMatching) -> list[Tensor]:
    """The sigmas (B, F) that a network is given, call by call."""
    levels: list[Tensor] = []

    def velocity(x: Tensor, sigma: Tensor, step: Tensor) -> Tensor:
        levels.append(sigma)
        return torch.zeros_like(x)

    integrate(sampler, flow, velocity, torch.zeros_like(conditioning.latents), conditioning)
    return levels


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_samples_an_exact_velocity(name, root):
    cfg = compose_config(
        "generate", "model=wan22_tiny", f"sampler={name}", "prompt=a", "output=b"
    )  # fmt: skip
    model = build(cfg.model)
    truth, noise = torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    conditioning = Conditioning.free((1, *SHAPE)).given({0: (truth[:, :, 0], 0.4)})
    sampler = build(cfg.sampler)
    result = integrate(sampler, model.flow, lambda *_: noise - truth, noise, conditioning)
    torch.testing.assert_close(result, truth, atol=1e-5, rtol=0)


def test_lightx2v_has_the_four_timesteps_it_was_made_for(root):
    cfg = compose_config("generate", "sampler=lightx2v", "model=wan22_tiny", "prompt=a", "output=b")
    levels = seen(build(cfg.sampler), Conditioning.free((1, 1, 1, 1, 1)), build(cfg.model.flow))
    timesteps = [1000 * float(sigma) for sigma in levels]
    assert timesteps == pytest.approx([1000, 937.5, 833.3333, 625])


def test_a_plan_is_a_value_of_the_config(root):
    rule = "{_target_: pusa.diffusion.plans.Matrix, rows: [[1, 1], [0.5, 1], [0, 0]]}"
    cfg = compose_config("generate", f"sampler.plan={rule}", "sampler.num_steps=2", "prompt=a",
                         "output=b")  # fmt: skip
    levels = seen(build(cfg.sampler), Conditioning.free((1, 1, 2, 1, 1)), FlowMatching())
    assert torch.cat(levels).tolist() == [[1, 1], [0.5, 1]]


@pytest.mark.parametrize("method", METHODS)
def test_a_flow_that_rounds_in_training_does_not_round_what_is_given(method):
    truth, noise = torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    given = {0: (truth[:, :, 0], 0.0), 1: (truth[:, :, 1], 0.3)}
    conditioning = Conditioning.free((1, *SHAPE)).given(given)
    result = integrate(
        Sampler(4, method=method), UpstreamFlow(5.0), lambda *_: noise - truth, noise, conditioning
    )
    assert torch.equal(result[:, :, 0], truth[:, :, 0])
    torch.testing.assert_close(result, truth, atol=1e-5, rtol=0)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.5, 0.9)])
def test_guidance_in_one_batch_gives_the_numbers_of_two_passes(interval):
    """Texts of different lengths, two requests, two experts."""
    networks = [random_backbone(VARIANTS["wan22_t2v_a14b_tiny"], seed).eval() for seed in (0, 1)]
    experts = Experts([(0.875, networks[0]), (0.0, networks[1])])
    generator = torch.Generator().manual_seed(0)

    def text(length: int) -> Text:
        embedding = torch.randn(1, length, 64, generator=generator)
        return Text(embedding, torch.ones(1, length, dtype=torch.bool))

    requests = [Request(text(5), seed=1), Request(text(3), seed=2)]
    negative, medium = text(9), torch.randn(2, 16, 1, 8, 8, generator=generator)
    given = Conditioning.free((2, *SHAPE)).given({0: (medium[:, :, 0], 0.2)})
    calls = []
    for network in networks:
        network.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    results = []
    for guidance in ("sequential", "batched"):
        sampler = Sampler(4, 3.0, guidance=guidance, guidance_interval=interval)
        results.append(
            sample_latents(experts, FlowMatching(5.0), sampler, given, requests, negative)
        )
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-6)
    guided = 4 if interval == (0.0, 1.0) else 2  # of the steps 1, 0.9375, 0.83, 0.625
    assert calls == [2] * (4 + guided) + [4 if 4 - i <= guided else 2 for i in range(4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "ddim"}, "method='ddim' is unknown; use euler, heun, unipc, upstream"),
        ({"guidance": "twice"}, "guidance='twice' is unknown"),
        ({"guidance_interval": (0.8, 0.2)}, r"\[low, high\]"),
        ({"guidance_interval": (0.8,)}, r"\[low, high\]"),
        ({"num_steps": 0}, "at least 1"),
    ],
)
def test_a_sampler_that_cannot_be_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**arguments)


@given(
    frames=st.lists(st.sampled_from([0.0, 0.005, 0.3, 0.7, 1.0]), min_size=1, max_size=4),
    steps=st.integers(1, 9),
    floor=st.floats(0, 1.2),
    method=st.sampled_from(["euler", "heun", "unipc"]),
)
def test_clean_conditions_in_the_early_steps_keep_the_laws(frames, steps, floor, method):
    """An exact velocity gives the exact clip; a wrong one leaves frames of multiplier 0 alone."""
    shape = (1, 2, len(frames), 2, 2)
    truth, noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    given = {f: (truth[:, :, f], m) for f, m in enumerate(frames)}
    conditioning = Conditioning.free(shape).given(given)
    sampler = Sampler(steps, method=method, clean_above=floor)
    told = []

    def velocity(x: Tensor, sigma: Tensor, step: Tensor) -> Tensor:
        told.append((float(step), sigma[0].tolist()))
        return noise - truth

    flow = FlowMatching(5.0)
    result = integrate(sampler, flow, velocity, noise, conditioning)
    torch.testing.assert_close(result, truth, atol=1e-4, rtol=0)
    # Heun looks ahead: its second call of a step is told the level that the step ends at.
    early = [levels for step, levels in told if step >= floor and method != "heun"]
    for levels in early:
        assert all(level == 0 for level, m in zip(levels, frames, strict=True) if m < 1)
    wrong = integrate(sampler, flow, lambda x, *_: torch.ones_like(x), noise, conditioning)
    for f, m in enumerate(frames):
        assert m or torch.equal(wrong[:, :, f], truth[:, :, f])


def test_upstream_keeps_no_conditions_clean():
    with pytest.raises(ValueError, match=r"clean_above is not upstream's"):
        Sampler(4, method="upstream", clean_above=0.9)
