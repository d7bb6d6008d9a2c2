"""A text is projected once per network, however many steps and passes a sampling has."""

from collections import Counter

import pytest
import torch
from torch import nn

from pusa.diffusion.conditioning import Conditioning
from pusa.diffusion.flow import FlowMatching
from pusa.models.experts import Experts
from pusa.models.variants import VARIANTS
from pusa.pipelines.generate import Request, Sampler, sample_latents
from pusa.pipelines.prompted import Prompted, while_memory_allows
from pusa.pipelines.tiny import random_backbone
from pusa.types import Text

FLOW = FlowMatching(5.0)


def make_networks(variant: str = "wan22_t2v_a14b_tiny") -> list[nn.Module]:
    return [random_backbone(VARIANTS[variant], seed).eval() for seed in (0, 1)]


def text(seed: int, length: int = 5) -> Text:
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(1, length, 64, generator=generator)
    return Text(embedding, torch.ones(1, length, dtype=torch.bool))


def key_projections(network: nn.Module) -> tuple[Counter, int]:
    """Calls of each block's cross-attention keys, counted from now on, and how many blocks."""
    calls = Counter()
    keys = [m for name, m in network.named_modules() if name.endswith("cross_attn.k")]
    for number, layer in enumerate(keys):
        layer.register_forward_hook(lambda *_, number=number: calls.update([number]))
    return calls, len(keys)


@pytest.mark.parametrize("one_at_a_time", [False, True])
@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize(
    ("guidance_scale", "guidance", "texts"),
    [(1.0, "auto", 1), (3.0, "auto", 2), (3.0, "sequential", 2), (3.0, "batched", 1)],
)
def test_keys_are_projected_once_per_network_and_text(
    guidance_scale, guidance, texts, method, one_at_a_time
):
    networks = make_networks()
    counts = [key_projections(network) for network in networks]
    experts = Experts([(0.875, networks[0]), (0.0, networks[1])], one_at_a_time)
    sampler = Sampler(6, guidance_scale, method=method, guidance=guidance)
    sample_latents(
        experts, FLOW, sampler, Conditioning.free((1, 16, 3, 8, 8)), [Request(text(1))], text(2, 7)
    )
    for calls, num_blocks in counts:
        assert num_blocks > 1
        assert calls == dict.fromkeys(range(num_blocks), texts)


def test_outside_the_interval_of_guidance_the_negative_text_is_not_projected():
    (network, _) = make_networks()
    calls, _ = key_projections(network)
    sampler = Sampler(6, 3.0, guidance_interval=(0.0, 0.0))
    sample_latents(
        network, FLOW, sampler, Conditioning.free((1, 16, 3, 8, 8)), [Request(text(1))], text(2)
    )
    assert set(calls.values()) == {1}


@torch.no_grad()
@pytest.mark.parametrize(
    ("variant", "channels"), [("wan22_t2v_a14b_tiny", 16), ("mochi_1_tiny", 12)]
)
def test_velocities_are_those_of_the_plain_texts(variant, channels):
    """Step by step, back and forth between the networks and the texts."""
    networks = make_networks(variant)
    experts = Experts([(0.5, networks[0]), (0.0, networks[1])])
    prompted, texts = Prompted(experts), (text(1), text(2, 7))
    by = [prompted.by(each) for each in texts]
    generator = torch.Generator().manual_seed(3)
    for level in (1.0, 0.7, 0.2, 0.6):
        x = torch.randn(1, channels, 3, 8, 8, generator=generator)
        sigma, network = torch.tensor([[0.0, level, level]]), networks[level < 0.5]
        for velocity, plain in zip(by, texts, strict=True):
            expected = network(x, sigma, plain)
            assert expected.std() > 0.01
            assert torch.equal(velocity(x, sigma, torch.tensor(level)), expected)


@torch.no_grad()
def test_what_a_network_prepared_goes_when_the_next_takes_over():
    networks = make_networks()
    experts = Experts([(0.5, networks[0]), (0.0, networks[1])])
    prompted = Prompted(experts)
    by = [prompted.by(text(seed)) for seed in (1, 2)]
    x = torch.zeros(1, 16, 3, 8, 8)
    owners = []
    for level in (0.9, 0.6, 0.3):
        for velocity in by:
            velocity(x, torch.full((1, 3), level), torch.tensor(level))
            owners.append([p.network() for p in prompted._prepared.values()])
    high, low = networks
    assert owners == [[high], [high] * 2, [high] * 2, [high] * 2, [low], [low] * 2]


def test_guidance_that_runs_out_of_memory_goes_on_one_by_one(caplog):
    """Once is enough: the pass that broke off is not tried again."""
    calls = []

    def pass_of(name: str, rows: int, limit: int):
        def velocity(x, sigma, step):
            calls.append(name)
            if rows * x.shape[-1] > limit:
                raise torch.OutOfMemoryError
            return torch.full((rows, 1), float(rows))

        return velocity

    halves = [pass_of(name, 1, 8) for name in ("text", "negative")]
    velocity = while_memory_allows(pass_of("both", 2, 8), halves)
    small, large = torch.zeros(1, 4), torch.zeros(1, 5)
    sigma = torch.zeros(1, 1)
    with caplog.at_level("INFO"):
        results = [velocity(x, sigma, sigma) for x in (small, large, small)]
    assert [len(one) for one in results] == [2, 2, 2]
    assert calls == ["both", "both", "text", "negative", "text", "negative"]
    assert caplog.text.count("do not fit into cpu's memory") == 1
    with pytest.raises(torch.OutOfMemoryError):
        velocity(torch.zeros(1, 9), sigma, sigma)
