"""Models as systems to compare: a backbone, with or without a LoRA, on one task."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pusa.data import video
from pusa.evaluation.suite import SuiteItem
from pusa.models.base import TextEncoder, VideoVAE
from pusa.models.experts import Experts
from pusa.pipelines.build import Model
from pusa.pipelines.encode import encode_frames
from pusa.pipelines.generate import Request, Sampler, decode_latents, generate, join_texts
from pusa.pipelines.media import Shown, shown
from pusa.pipelines.placements import Placement, place_unseen
from pusa.pipelines.positions import Timing
from pusa.pipelines.tasks import Task
from pusa.rng import generator_for
from pusa.types import Text

RETENTION_SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass
class ModelSystem:
    """Generates suite items with a backbone. What the task gives are the item's own frames there.

    Two systems get the same noise for the same item and seed, so their differences are paired.
    """

    backbone: Experts
    model: Model
    vae: VideoVAE
    text_encoder: TextEncoder
    task: Task
    sampler: Sampler
    seeded: bool = True

    def generate(self, items: Sequence[SuiteItem], seed: int) -> list[Tensor]:
        """uint8 videos (T, 3, H, W), one per item."""
        scene = items[0].scene
        timing = Timing(self.model.spec, scene.num_frames, self.model.fps)
        placements = place_unseen(self.task, timing)
        requests = [
            Request(
                self.text_encoder.encode([item.caption]),
                reveal(item.frames(), placements, timing) if placements else (),
                seed=seed,
                purpose=f"suite/{item.index}",
            )
            for item in items
        ]
        negative = self.model.negative_prompt
        videos = generate(
            self.backbone, self.vae, self.model.flow, self.sampler, requests,
            self.model.latent_shape(scene.num_frames, scene.height, scene.width),
            None if negative is None else self.text_encoder.encode([negative]),
        )  # fmt: skip
        return list(videos)


def reveal(truth: Tensor, placements: Sequence[Placement], timing: Timing) -> tuple[Shown, ...]:
    """Frames of a clip (T, 3, H, W) where a task gives some: a picture is the frame at its place,
    and a clip looks back on the frames before it if the task has them."""
    own, behind = {}, {}
    for placement in placements:
        frames = list(timing.frames_of(placement.latents))
        own[placement] = truth[[placement.at] * len(frames) if placement.is_picture else frames]
        if placement.before:
            behind[placement] = truth[list(placement.before)]
    return shown(placements, own, behind, timing)


def codec_roundtrip(vae: VideoVAE, frames: Tensor) -> Tensor:
    """uint8 frames (T, 3, H, W) through the VAE and back: what no model on it can surpass."""
    return decode_latents(vae, encode_frames(vae, video.to_signed(frames)[None]))[0]


@torch.no_grad()
def shared_timestep_losses(
    backbone: Experts, model: Model, vae: VideoVAE, text_encoder: TextEncoder,
    items: Sequence[SuiteItem], seed: int,
) -> Tensor:  # fmt: skip
    """Text-to-video loss (items, noise levels) at RETENTION_SIGMAS, one sigma for all frames.

    The noise of an item is the same for every backbone.
    """
    rows = []
    for start in range(0, len(items), 16):
        part = items[start : start + 16]
        frames = torch.stack([video.to_signed(item.frames()) for item in part])
        clean = encode_frames(vae, frames)
        text: Text = join_texts([text_encoder.encode([item.caption]) for item in part])
        noise = torch.stack(
            [
                torch.randn(clean.shape[1:], generator=generator_for(seed, "retention", item.index))
                for item in part
            ]
        ).to(clean.device)
        columns = []
        for level in RETENTION_SIGMAS:
            sigma = torch.full((clean.shape[0], clean.shape[2]), level, device=clean.device)
            velocity = backbone.at(level)(model.flow.add_noise(clean, noise, sigma), sigma, text)
            columns.append(model.flow.frame_errors(velocity, clean, noise).mean(dim=1))
        rows.append(torch.stack(columns, dim=1))
    return torch.cat(rows).cpu()


@torch.no_grad()
def scalar_agreement(
    backbone: Experts, model: Model, text_encoder: TextEncoder, item: SuiteItem
) -> str:
    """Whether the network, told one sigma for each frame and all equal, does as with a single one;
    in words, with the largest difference at RETENTION_SIGMAS."""
    scene = item.scene
    shape = model.latent_shape(scene.num_frames, scene.height, scene.width)
    text = text_encoder.encode([item.caption])
    device = model.run_device()
    noise = torch.randn((1, *shape), generator=generator_for(0, "agreement")).to(device)
    apart = 0.0
    for level in RETENTION_SIGMAS:
        network, single = backbone.at(level), torch.tensor([level], device=device)
        vector = network(noise, single[:, None].expand(1, shape[1]), text)
        apart = max(apart, float((vector - network(noise, single, text)).abs().max()))
    end = "bit for bit the same" if apart == 0 else f"differ by {apart:.3g} at most"
    return f"velocities of a vector of equal sigmas and of a single one: {end}"
