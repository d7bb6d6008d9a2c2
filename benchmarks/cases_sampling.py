"""A guided sampling step with a clean first frame: our sampler, and diffusers' network called twice
with a timestep per token and Euler's formula written out."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.cases_forward import Setting
from benchmarks.harness import TOLERANCE, Row, Side, check_equal, measure, tensors_of
from benchmarks.networks import TEXT_LEN, make_batch, make_text, pair
from pusa.diffusion.conditioning import Conditioning
from pusa.diffusion.flow import FlowMatching
from pusa.pipelines.generate import Request, Sampler, sample_latents
from pusa.rng import generator_for
from pusa.types import Text

STEPS, GUIDANCE = 3, 5.0
FLOW = FlowMatching(shift=5.0)


def padded(text: Text) -> Text:
    """As diffusers' pipelines hand it over."""
    rest = TEXT_LEN - text.embedding.shape[1]
    embedding = nn.functional.pad(text.embedding, (0, 0, 0, rest))
    return Text(embedding, torch.ones(1, TEXT_LEN, dtype=torch.bool, device=embedding.device))


def our_sampling(network: nn.Module, clean: Tensor, texts: tuple[Text, Text]) -> Tensor:
    """clean: (1, C, F, h, w), of which the first frame is given. Latents of STEPS steps."""
    prompt, negative = texts
    free = Conditioning.free(clean.shape, device=clean.device)
    conditioning = free.given({0: (clean[:, :, 0], 0.0)})
    sampler = Sampler(STEPS, GUIDANCE)
    return sample_latents(network, FLOW, sampler, conditioning, [Request(prompt)], negative)


@torch.no_grad()
def their_sampling(network: nn.Module, clean: Tensor, texts: tuple[Text, Text]) -> Tensor:
    x = our_noise(clean)
    x[:, :, 0] = clean[:, :, 0]
    sigmas = FLOW.sigmas(STEPS).to(clean.device)
    levels = sigmas[:, None].repeat(1, clean.shape[2])  # (S+1, F)
    levels[:, 0] = 0.0
    for now, after in pairwise(levels):
        with_text, without = (network(x, now[None], text) for text in texts)
        velocity = without + GUIDANCE * (with_text - without)
        x = x + (after - now)[None, None, :, None, None] * velocity
    return x


def our_noise(clean: Tensor) -> Tensor:
    """The noise of a request of seed 0."""
    generator = generator_for(0, "generate/noise")
    return torch.randn(clean.shape[1:], generator=generator)[None].to(clean.device)


def sampling(setting: Setting) -> Iterator[Row]:
    """Eager; seconds, FLOPs of all STEPS steps, the preparation of ours' texts among them."""
    networks = pair(setting.width, setting.dtype, setting.device)
    texts = make_text().to(setting.device), make_text(120, seed=3).to(setting.device)
    given = {"ours": texts, "diffusers": (padded(texts[0]), padded(texts[1]))}
    ways: dict[str, Callable[..., Tensor]] = {"ours": our_sampling, "diffusers": their_sampling}
    for frames in setting.frames:
        clean = make_batch(setting.width, frames, setting.device).latents
        sides = {}
        for who, network in networks.items():
            sides[who] = _side(ways[who], network, clean, given[who])
        start = our_noise(clean)
        start[:, :, 0] = clean[:, :, 0]
        way = {"ways that sampling went": tuple(side.run() - start for side in sides.values())}
        if frames > 1:  # of one frame, given, nothing is left to sample
            differences = check_equal("sampling", way, TOLERANCE[setting.dtype])
            row = setting.row("sampling", f"{STEPS} steps", "eager", frames)
            measured = measure(sides, setting.device, setting.rounds)
            yield row | {"differences": differences, "steps": STEPS} | measured


def _side(way: Callable[..., Tensor], network: nn.Module, clean: Tensor, texts: tuple) -> Side:
    there = [clean, *(t for text in texts for t in (text.embedding, text.mask))]
    return Side(lambda: way(network, clean, texts), lambda: [*there, *tensors_of(network)])
