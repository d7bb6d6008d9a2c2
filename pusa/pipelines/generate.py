"""Prompt + media + Task -> video. Used by the command line, sample grids and evaluation alike."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from pusa.data import video
from pusa.diffusion import upstream
from pusa.diffusion.conditioning import Conditioning, Task
from pusa.diffusion.flow import FlowMatching
from pusa.diffusion.plans import Constant, Rule
from pusa.diffusion.sampler import METHODS as OUR_METHODS
from pusa.diffusion.sampler import Velocity, guided
from pusa.models.base import VideoVAE
from pusa.models.experts import Experts
from pusa.pipelines.encode import encode_frames
from pusa.pipelines.prompted import Prompted
from pusa.rng import generator_for
from pusa.types import Text

METHODS = {**OUR_METHODS, "upstream": upstream.euler}
GUIDANCE = ("sequential", "batched")


@dataclass(frozen=True)
class Sampler:
    """num_steps of a method; guidance_scale 1 means no guidance; shift None means the model's;
    autocast: run the backbone under bfloat16 autocast.

    method: euler, heun (two network calls a step), unipc, or upstream (Euler with the public code's
    roundings). guidance_interval: the step sigmas (low, high) at which there is guidance; guidance:
    its two passes one after the other, or as one batch. plan: how frames follow the steps, a rule
    of diffusion/plans.py; None is `Constant`.
    """

    num_steps: int = 30
    guidance_scale: float = 1.0
    shift: float | None = None
    autocast: bool = False
    method: str = "euler"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance: str = "sequential"
    plan: Rule | None = None

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

    def flow(self, flow: FlowMatching) -> FlowMatching:
        return flow if self.shift is None else replace(flow, shift=self.shift)


def integrate(
    sampler: Sampler,
    flow: FlowMatching,
    velocity: Velocity,
    noise: Tensor,
    conditioning: Conditioning,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Tensor:
    """Noise -> latents (B, C, F, h, w) by the sampler's steps, method and plan.

    flow: the model's. ValueError if plan and conditioning, or plan and method, do not agree.
    """
    flow = sampler.flow(flow)
    rule = Constant() if sampler.plan is None else sampler.plan
    plan = rule(flow.sigmas(sampler.num_steps), conditioning.multiplier)
    # The path itself: a flow that rounds in training (UpstreamFlow) would not keep a clean frame.
    path = FlowMatching()
    method = METHODS[sampler.method]
    return method(velocity, noise, conditioning.latents, plan.steps, plan.levels, path, progress)


@dataclass(frozen=True)
class Request:
    """One video: encoded prompt (1, L, text_dim), media as uint8 frames (T, 3, H, W), a seed."""

    text: Text
    media: tuple[Tensor, ...] = ()
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
    task: Task,
    requests: Sequence[Request],
    media: Sequence[Tensor],
    shape: Sequence[int],
    negative: Text | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Tensor:
    """Latents (B, C, F, h, w) for a batch of requests of one task.

    backbone: one network, or experts, of which the sigma of each step chooses one. media: latents
    (B, C, F_m, h, w) of each medium of the task; shape: (C, F, h, w). A request's noise depends on
    its own seed alone, not on the batch. negative: encoded negative prompt (1, L, text_dim), None
    for no text.
    """
    experts = backbone if isinstance(backbone, Experts) else Experts([(0.0, backbone)])
    device = experts.device
    text = join_texts([request.text for request in requests]).to(device)
    if negative is None:
        negative = no_text(1, text.embedding.shape[-1])
    negative = join_texts([negative] * len(requests)).to(device)
    noise = torch.stack([_noise(request, shape) for request in requests]).to(device)
    conditioning = task.bind(noise.shape, [latents.to(device) for latents in media])
    both = join_texts([text, negative]) if sampler.guidance == "batched" else None
    prompted = Prompted(experts)
    velocity = guided(
        prompted.by(text),
        prompted.by(negative),
        sampler.guidance_scale,
        sampler.guidance_interval,
        None if both is None else prompted.by_pair(both),
    )
    precision = (
        torch.autocast(device.type, torch.bfloat16)
        if sampler.autocast
        else contextlib.nullcontext()
    )
    with precision:
        return integrate(sampler, flow, velocity, noise, conditioning, progress)


def _noise(request: Request, shape: Sequence[int]) -> Tensor:
    generator = generator_for(request.seed, f"{request.purpose}/noise")
    return torch.randn(tuple(shape), generator=generator)


def generate(
    backbone: nn.Module | Experts,
    vae: VideoVAE,
    flow: FlowMatching,
    sampler: Sampler,
    task: Task,
    requests: Sequence[Request],
    shape: Sequence[int],
    negative: Text | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Tensor:
    """Videos (B, T, 3, H, W) uint8. ValueError if a request's media do not suit the task."""
    for request in requests:
        if len(request.media) != task.num_media:
            raise ValueError(
                f"task {task.name!r} takes {task.num_media} image(s) or clip(s), "
                f"got {len(request.media)}."
            )
    media = [
        encode_frames(vae, torch.stack([video.to_signed(r.media[i]) for r in requests]))
        for i in range(task.num_media)
    ]
    latents = sample_latents(
        backbone, flow, sampler, task, requests, media, shape, negative, progress
    )
    return decode_latents(vae, latents)


@torch.no_grad()
def decode_latents(vae: VideoVAE, latents: Tensor) -> Tensor:
    """Latents (B, C, F, h, w) -> uint8 (B, T, 3, H, W). ValueError if they are not finite."""
    if not torch.isfinite(latents).all():
        raise ValueError(
            "sampling gave latents that are not finite; lower the LoRA strength or the guidance."
        )
    device = next((p.device for p in vae.parameters()), latents.device)
    return video.to_uint8(vae.decode(latents.float().to(device))).cpu()
