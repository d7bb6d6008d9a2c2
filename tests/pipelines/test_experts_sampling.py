"""Sampling with two networks: the same numbers as a loop written by hand."""

import pytest
import torch
from torch import Tensor, nn

from pusa.diffusion.conditioning import Conditioning
from pusa.diffusion.flow import FlowMatching
from pusa.models.experts import Experts
from pusa.models.variants import VARIANTS
from pusa.pipelines.generate import Request, Sampler, sample_latents
from pusa.pipelines.tiny import random_backbone
from pusa.rng import generator_for
from pusa.types import Text
from pusa.weights.lora import load_lora
from tests.weights.conftest import make_adapter

TWIN = VARIANTS["wan22_t2v_a14b_tiny"]
SHAPE = (16, 3, 8, 8)
FLOW = FlowMatching(5.0)


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module]:
    high, low = (random_backbone(TWIN, seed).eval() for seed in (0, 1))
    return high, low


def text(seed: int) -> Text:
    generator = torch.Generator().manual_seed(seed)
    return Text(torch.randn(1, 5, 64, generator=generator), torch.ones(1, 5, dtype=torch.bool))


def medium() -> Tensor:
    return torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(9))


def sample(backbone, sampler: Sampler, multiplier: float = 0.2) -> Tensor:
    conditioning = Conditioning.free((1, *SHAPE)).given({0: (medium()[:, :, 0], multiplier)})
    request = Request(text(1), seed=7)
    return sample_latents(backbone, FLOW, sampler, conditioning, [request], text(2))


@pytest.mark.parametrize(("steps", "guidance", "in_high"), [(4, 1.0, 2), (10, 3.0, 5)])
def test_two_experts_are_a_loop_that_changes_the_network_at_the_boundary(
    networks, steps, guidance, in_high
):
    """The frame that is given runs at a fifth of the noise, far below the boundary, and still goes
    through the high-noise network while the step is above it."""
    high, low = networks
    noise = torch.randn(SHAPE, generator=generator_for(7, "generate/noise"))[None]
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    sigmas = (5 * u / (1 + 4 * u)).float()
    share = torch.tensor([0.2, 1.0, 1.0])
    given = torch.cat([medium(), torch.zeros(1, 16, 2, 8, 8)], dim=2)
    level = (share * sigmas[0])[None, None, :, None, None]
    x = (1 - level) * given + level * noise
    with torch.no_grad():
        for step in range(steps):
            network = high if step < in_high else low
            sigma = (share * sigmas[step])[None]
            velocity = network(x, sigma, text(1))
            if guidance != 1:
                negative = network(x, sigma, text(2))
                velocity = negative + guidance * (velocity - negative)
            down = share * sigmas[step + 1] - share * sigmas[step]
            x = x + down[None, None, :, None, None] * velocity
    experts = Experts([(0.875, high), (0.0, low)])
    assert torch.equal(sample(experts, Sampler(steps, guidance)), x)
    assert not torch.allclose(sample(high, Sampler(steps, guidance)), x, atol=1e-3)
    assert not torch.allclose(sample(low, Sampler(steps, guidance)), x, atol=1e-3)


def test_two_experts_that_are_equal_are_one_model(networks):
    high, _ = networks
    experts = Experts([(0.875, high), (0.0, random_backbone(TWIN, 0).eval())], one_at_a_time=True)
    assert torch.equal(sample(experts, Sampler(6, 2.0)), sample(high, Sampler(6, 2.0)))


@pytest.mark.parametrize(("floor", "works"), [(0.875, True), (1.5, False)])
def test_a_lora_of_the_high_noise_expert_works_only_above_the_boundary(networks, floor, works):
    _, low = networks
    adapted = random_backbone(TWIN, 0).eval()
    load_lora(adapted, make_adapter(adapted, 4, 4.0), 5.0)
    plain, changed = (
        sample(Experts([(floor, high), (0.0, low)]), Sampler(4)) for high in (networks[0], adapted)
    )
    assert torch.equal(plain, changed) is not works
