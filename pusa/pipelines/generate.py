"""Prompts + what is given -> latents and videos. Used by the command line, sample grids and
evaluation alike."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from pusa.data import video
from pusa.diffusion import upstream
from pusa.diffusion.conditioning import Conditioning
from pusa.diffusion.flow import FlowMatching, per_frame
from pusa.diffusion.plans import Constant, Rule
from pusa.diffusion.sampler import METHODS as OUR_METHODS
from pusa.diffusion.sampler import Velocity, guided
from pusa.models.base import VideoVAE
from pusa.models.experts import Experts
from pusa.pipelines.encode import encode_frames
from pusa.pipelines.media import Shown
from pusa.pipelines.prompted import Prompted, while_memory_allows
from pusa.pipelines.step_cache import Caching, StepCache
from pusa.rng import generator_for
from pusa.types import Text

log = logging.getLogger(__name__)
METHODS = {**OUR_METHODS, "upstream": upstream.euler}
GUIDANCE = ("auto", "sequential", "batched")


@dataclass(frozen=True)
class Sampler:
    """num_steps of a method; guidance_scale 1 means no guidance; shift None means the model's;
    autocast: run the backbone under bfloat16 autocast.

    method: euler, heun (two network calls a step), unipc, or upstream (Euler with the public code's
    roundings). guidance_interval: the step sigmas (low, high) at which there is guidance; guidance:
    its two passes one after the other, or as one batch; auto: on a GPU as one batch as long as its
    memory allows, on a CPU, where that is no faster, one after the other. plan: how frames follow
    the steps, a rule of diffusion/plans.py; None is `Constant`. clean_above: while the step's sigma
    is at or above it, given frames are shown clean (their noise comes back below); a model's
    boundary keeps low noise levels from the high-noise expert. cache: leave blocks out of steps
    that change little.
    """

    num_steps: int = 30
    guidance_scale: float = 1.0
    shift: float | None = None
    autocast: bool = False
    method: str = "euler"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance: str = "auto"
    plan: Rule | None = None
    clean_above: float | None = None
    cache: StepCache | None = None

    def __post_init__(self):
        object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        if self.num_steps < 1:
            raise ValueError(f"sampler.num_steps must be at least 1, got {self.num_steps}.")
        for name, known in (("method", METHODS), ("guidance", GUIDANCE)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"sampler.{name}={value!r} is unknown; use {', '.join(known)}.")
        if len(self.guidance_interval) != 2 or not (
            0 <= self.guidance_interval[0] <= self.guidance_interval[1] <= 1
        ):
            raise ValueError(
                "sampler.guidance_interval must be [low, high] with 0 <= low <= high <= 1, "
                f"got {list(self.guidance_interval)}."
            )
        for name in ("clean_above", "cache"):
            if getattr(self, name) is not None and self.method == "upstream":
                raise ValueError(f"sampler.{name} is not upstream's; use another sampler.method.")

    def flow(self, flow: FlowMatching) -> FlowMatching:
        return flow if self.shift is None else replace(flow, shift=self.shift)


def integrate(
    sampler: Sampler,
    flow: FlowMatching,
    velocity: Velocity,
    noise: Tensor,
    conditioning: Conditioning,
    progress: Callable[[Iterable], Iterable] = iter,
    caching: Caching | None = None,
) -> Tensor:
    """Noise -> latents (B, C, F, h, w) by the sampler's steps, method and plan.

    flow: the model's; caching: the velocity's, which is told of the steps. ValueError if plan and
    conditioning, or plan and method, do not agree.
    """
    flow = sampler.flow(flow)
    rule = Constant() if sampler.plan is None else sampler.plan
    plan = rule(flow.sigmas(sampler.num_steps), conditioning.multiplier)
    # The path itself: a flow that rounds in training (UpstreamFlow) would not keep a clean frame.
    path = FlowMatching()
    method = METHODS[sampler.method]
    steps, levels, clean = plan.steps, plan.levels, conditioning.latents

    def run(noise: Tensor, clean: Tensor, steps: Tensor, levels: Tensor) -> Tensor:
        told = progress if caching is None else caching.follow(progress, levels)
        return method(velocity, noise, clean, steps, levels, path, told)

    if sampler.clean_above is not None:
        early = int((steps[:-1] >= sampler.clean_above).sum())
        given = conditioning.multiplier < 1
        kept = torch.where(given, 0.0, levels[: early + 1])
        x = run(noise, clean, steps[: early + 1], kept)
        # Of the given frames not what a network made of them, but they and their own noise.
        x = torch.where(per_frame(given), path.add_noise(clean, noise, levels[early]), x)
        noise, clean, steps, levels = x, x, steps[early:], levels[early:]
    return run(noise, clean, steps, levels)


@dataclass(frozen=True)
class Request:
    """One video: encoded prompt (1, L, text_dim), the pixels that are given, a seed."""

    text: Text
    given: tuple[Shown, ...] = ()
    seed: int = 0
    purpose: str = field(default="generate", repr=False)


def join_texts(texts: Sequence[Text]) -> Text:
    """Texts -> one padded batch of them all."""
    length = max(text.embedding.shape[1] for text in texts)
    embeddings, masks = [], []
    for text in texts:
        pad = length - text.embedding.shape[1]
        embeddings.append(nn.functional.pad(text.embedding, (0, 0, 0, pad)))
        masks.append(nn.functional.pad(text.mask, (0, pad)))
    return Text(torch.cat(embeddings), torch.cat(masks))


def no_text(batch: int, text_dim: int, device: torch.device | str = "cpu") -> Text:
    """What a dropped caption looks like: rows of zeros."""
    return Text(
        torch.zeros(batch, 1, text_dim, device=device),
        torch.zeros(batch, 1, dtype=torch.bool, device=device),
    )


@torch.no_grad()
def sample_latents(
    backbone: nn.Module | Experts,
    flow: FlowMatching,
    sampler: Sampler,
    conditioning: Conditioning,
    requests: Sequence[Request],
    negative: Text | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Tensor:
    """Latents (B, C, F, h, w) for a batch of requests.

    backbone: one network, or experts, of which the sigma of each step chooses one. conditioning:
    latents and multipliers of the batch; what the requests give is not looked at. A request's noise
    depends on its own seed alone, not on the batch. negative: encoded negative prompt (1, L,
    text_dim), None for no text.
    """
    experts = backbone if isinstance(backbone, Experts) else Experts([(0.0, backbone)])
    device = experts.device
    text = join_texts([request.text for request in requests]).to(device)
    if negative is None:
        negative = no_text(1, text.embedding.shape[-1])
    negative = join_texts([negative] * len(requests)).to(device)
    shape = conditioning.latents.shape[1:]
    noise = torch.stack([_noise(request, shape) for request in requests]).to(device)
    conditioning = conditioning.to(device)
    as_one = sampler.guidance == "batched" or (sampler.guidance == "auto" and device.type != "cpu")
    both = join_texts([text, negative]) if as_one else None
    caching = None if sampler.cache is None else Caching(sampler.cache)
    prompted = Prompted(experts, caching)
    halves = prompted.by(text), prompted.by(negative)
    together = None if both is None else prompted.by_pair(both)
    if together is not None and sampler.guidance == "auto":
        together = while_memory_allows(together, halves)
    velocity = guided(*halves, sampler.guidance_scale, sampler.guidance_interval, together)
    precision = (
        torch.autocast(device.type, torch.bfloat16)
        if sampler.autocast
        else contextlib.nullcontext()
    )
    with precision:
        latents = integrate(sampler, flow, velocity, noise, conditioning, progress, caching)
    if caching is not None:
        log.info("step cache: %d of %d passes reused", caching.reused, caching.passes)
    return latents


def _noise(request: Request, shape: Sequence[int]) -> Tensor:
    generator = generator_for(request.seed, f"{request.purpose}/noise")
    return torch.randn(tuple(shape), generator=generator)


def generate(
    backbone: nn.Module | Experts,
    vae: VideoVAE,
    flow: FlowMatching,
    sampler: Sampler,
    requests: Sequence[Request],
    shape: Sequence[int],
    negative: Text | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Tensor:
    """Videos (B, T, 3, H, W) uint8, of latents of `shape` (C, F, h, w)."""
    conditioning = condition(vae, requests, shape)
    latents = sample_latents(backbone, flow, sampler, conditioning, requests, negative, progress)
    return decode_latents(vae, latents)


def condition(vae: VideoVAE, requests: Sequence[Request], shape: Sequence[int]) -> Conditioning:
    """Encode what requests give, what is of one size together, for latents of `shape` (C, F, h, w).

    ValueError if a request's latent frame is outside the clip or given twice.
    """
    result = Conditioning.free((len(requests), *shape))
    alike: dict[tuple, list[tuple[int, Shown]]] = {}
    for row, request in enumerate(requests):
        for shown in request.given:
            key = (shown.frames.shape, shown.skip, len(shown.latents))
            alike.setdefault(key, []).append((row, shown))
    for (_, skip, _), members in alike.items():
        pixels = torch.stack([video.to_signed(shown.frames) for _, shown in members])
        encoded = encode_frames(vae, pixels)[:, :, skip:].cpu()
        for (row, shown), latents in zip(members, encoded, strict=True):
            # One latent for several frames: an image that is encoded alone.
            several = latents.expand(-1, len(shown.latents), -1, -1).unbind(1)
            frames = zip(shown.latents, zip(several, shown.multipliers, strict=True), strict=True)
            result = result.given(dict(frames), row)
    return result


@torch.no_grad()
def decode_latents(vae: VideoVAE, latents: Tensor) -> Tensor:
    """Latents (B, C, F, h, w) -> uint8 (B, T, 3, H, W). ValueError if they are not finite."""
    return torch.cat([piece.cpu() for piece in decode_pieces(vae, latents)], dim=1)


@torch.no_grad()
def decode_pieces(vae: VideoVAE, latents: Tensor) -> Iterator[Tensor]:
    """`decode_latents` a few frames at a time, as uint8 (B, t, 3, H, W)."""
    if not torch.isfinite(latents).all():
        raise ValueError(
            "sampling gave latents that are not finite; lower the LoRA strength or the guidance."
        )
    device = next((p.device for p in vae.parameters()), latents.device)
    for frames in vae.decode_stream(latents.float().to(device)):
        yield video.to_uint8(frames)
