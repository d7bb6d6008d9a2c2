"""A widened network is its base until it is trained, and samples like any other backbone."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from pusa.diffusion.conditioning import Conditioning
from pusa.diffusion.flow import FlowMatching
from pusa.models.concat import Conditioned, widen
from pusa.models.experts import Experts
from pusa.models.mochi_dit import MochiDiT
from pusa.models.wan_dit import WanDiT
from pusa.pipelines.concat import under
from pusa.pipelines.generate import Request, Sampler, sample_latents
from pusa.rng import generator_for
from pusa.types import Text

C, SHAPE = 4, (2, 4, 3, 4, 6)
SIGMA = torch.tensor([0.3, 0.9])
FIRST = torch.tensor([[True, False, False]] * 2)


def make_model(in_channels: int = C) -> WanDiT:
    torch.manual_seed(0)
    model = WanDiT(
        dim=48, ffn_dim=64, num_heads=2, num_layers=2, in_channels=in_channels, out_channels=C,
        text_dim=16, text_len=8,
    )  # fmt: skip
    for parameter in model.parameters():  # nothing may hide behind a zero
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def trained() -> WanDiT:
    """Widened, with weights for the condition as training would have made some."""
    model = widen(make_model())
    nn.init.normal_(model.patch_embedding.weight, std=0.2)
    return model


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_text(batch: int = 2) -> Text:
    return Text(randn(3, batch, 5, 16), torch.ones(batch, 5, dtype=torch.bool))


def requests() -> list[Request]:
    text = make_text()
    pairs = zip(text.embedding, text.mask, strict=True)
    return [Request(Text(e[None], m[None]), seed=i) for i, (e, m) in enumerate(pairs)]


@torch.no_grad()
@pytest.mark.parametrize("given", [FIRST, ~FIRST, torch.zeros_like(FIRST)], ids=str)
def test_a_widened_network_is_its_base_at_the_start(given):
    x, text = randn(1, *SHAPE), make_text()
    base = make_model()(x, SIGMA, text)
    network = Conditioned(widen(make_model()), randn(2, *SHAPE), given)
    assert torch.allclose(network(x, SIGMA, text), base, atol=1e-5)
    assert base.std() > 0.1


@torch.no_grad()
def test_the_input_is_noisy_then_mask_then_clean_where_given():
    model, seen = widen(make_model()), []
    model.patch_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x, clean = randn(1, *SHAPE), randn(2, *SHAPE)
    Conditioned(model, clean, FIRST)(x, SIGMA, make_text())
    noisy, mask, condition = seen[0].split([C, 1, C], dim=1)
    assert torch.equal(noisy, x)
    assert torch.equal(mask[:, :, 0], torch.ones(2, 1, 4, 6))
    assert not mask[:, :, 1:].any()
    assert torch.equal(condition[:, :, 0], clean[:, :, 0])
    assert not condition[:, :, 1:].any()


@torch.no_grad()
def test_what_is_not_given_is_not_seen():
    model, x, clean = trained(), randn(1, *SHAPE), randn(2, *SHAPE)
    other = clean.clone()
    other[:, :, 1:] = float("nan")
    ours, theirs = (Conditioned(model, c, FIRST)(x, SIGMA, make_text()) for c in (clean, other))
    assert torch.equal(ours, theirs)
    other[:, :, 0] += 1
    assert not torch.allclose(Conditioned(model, other, FIRST)(x, SIGMA, make_text()), ours)


@torch.no_grad()
def test_euler_steps_of_it_are_those_of_the_sampler():
    """Every frame runs from noise, under a prepared text, through one expert; by hand here."""
    given = Conditioning.free(SHAPE).given({0: (randn(2, *SHAPE)[:, :, 0], 0.4)})
    network, flow = under(trained(), given), FlowMatching(2.0)
    sampled = sample_latents(
        Experts([(0.0, network)]), flow, Sampler(num_steps=3), Conditioning.free(SHAPE), requests()
    )
    draws = [generator_for(request.seed, "generate/noise") for request in requests()]
    x = torch.stack([torch.randn(SHAPE[1:], generator=generator) for generator in draws])
    for now, then in pairwise(flow.sigmas(3)):
        x = x + (then - now) * network(x, now.expand(2), make_text())
    assert torch.allclose(sampled, x, atol=1e-4)


@torch.no_grad()
def test_batched_guidance_has_the_condition_twice():
    given = Conditioning.free(SHAPE).given({0: (randn(2, *SHAPE)[:, :, 0], 0.0)})
    network, free = under(trained(), given), Conditioning.free(SHAPE)
    ours, theirs = (
        sample_latents(network, FlowMatching(2.0), sampler, free, requests())
        for sampler in (
            Sampler(num_steps=2, guidance_scale=3.0, guidance=way)
            for way in ("batched", "sequential")
        )
    )
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_widening_stays_on_meta_and_keeps_what_trains():
    with torch.device("meta"):
        wide = widen(make_model_on_meta())
    assert wide.patch_embedding.weight.is_meta
    assert wide.patch_embedding.weight.shape[1] == 2 * C + 1
    frozen = widen(make_model().requires_grad_(False))
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in widen(make_model()).parameters())
    assert wide.state_dict().keys() == make_model().state_dict().keys()


def make_model_on_meta() -> WanDiT:
    return WanDiT(
        dim=48, ffn_dim=64, num_heads=2, num_layers=2, in_channels=C, out_channels=C, text_dim=16
    )


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="only a Wan DiT can be widened"):
        widen(MochiDiT(48, 24, 2, 2, in_channels=C, text_dim=16, text_tokens=8))
    with pytest.raises(ValueError, match="takes 9 channels and gives 4"):
        widen(widen(make_model()))
    with pytest.raises(ValueError, match="9 input channels, this one has 4; is it widened"):
        Conditioned(make_model(), randn(2, *SHAPE), FIRST)
    with pytest.raises(ValueError, match=r"given \(2, 2\) is not"):
        Conditioned(trained(), randn(2, *SHAPE), FIRST[:, :2])
    network = Conditioned(trained(), randn(2, *SHAPE), FIRST)
    with pytest.raises(ValueError, match="do not fit what is given for 2 clips"):
        network(randn(1, 3, *SHAPE[1:]), SIGMA, make_text())
