"""Training of the replica's codec (`train.py experiment=tiny_vae`). Real VAEs stay as they are."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from pusa.atomic import write_json
from pusa.models.tiny_vae import TinyVAE
from pusa.rng import generator_for
from pusa.training.loggers import log_mean
from pusa.weights.files import write_tensors


class AutoencoderModule(L.LightningModule):
    """L1 reconstruction through latents that carry fixed noise and a small pull towards zero.

    The noise makes the decoder forgive a sampler's small errors; the pull keeps the latents near
    unit scale. Together they are a VAE whose posterior variance is fixed, not learned.
    """

    def __init__(
        self,
        vae: TinyVAE,
        optimizer: Callable,
        schedule: Callable | None = None,
        seed: int = 0,
        latent_noise: float = 0.1,
        latent_penalty: float = 1e-3,
    ):
        super().__init__()
        self.vae, self.make_optimizer, self.make_schedule = vae, optimizer, schedule
        self.seed, self.latent_noise, self.latent_penalty = seed, latent_noise, latent_penalty

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        frames = batch["frames"]  # (B, 3, T, H, W)
        latents = self.vae.encode_raw(frames)
        generator = generator_for(self.seed, "vae/noise", self.global_step)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        decoded = self.vae.decode_raw(latents + self.latent_noise * noise)
        error = (decoded - frames).abs().mean()
        log_mean(self, "train/l1", error.detach())
        return error + self.latent_penalty * latents.square().mean()

    def export(self, folder: Path, recipe: Mapping) -> Path:
        """Write a diffusers-style VAE folder: config.json with statistics, and bfloat16 weights.

        The statistics are over the first 256 training clips. Every process calls it, the first one
        writes.
        """
        if self.global_rank:
            return folder / "vae"
        clips = self.trainer.datamodule.train_set  # pyright: ignore[reportAttributeAccessIssue]
        self.vae.eval()
        frames = [clips[i]["frames"] for i in range(min(256, len(clips)))]
        self.vae.set_statistics(*latent_statistics(self.vae, frames))
        weights = {key: value.bfloat16() for key, value in self.vae.state_dict().items()}
        metadata = {"recipe": json.dumps(dict(recipe), default=str)}
        write_json(folder / "vae" / "config.json", {"_class_name": "TinyVAE", **self.vae.config})
        return write_tensors(
            folder / "vae" / "diffusion_pytorch_model.safetensors", weights, metadata
        )

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.vae.parameters())
        if self.make_schedule is None:
            return optimizer
        schedule = self.make_schedule(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.no_grad()
def latent_statistics(vae: TinyVAE, clips: list[Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of the raw latents of clips (3, T, H, W)."""
    latents = torch.cat([vae.encode_raw(clip[None]) for clip in clips])
    return latents.mean((0, 2, 3, 4)).tolist(), latents.std((0, 2, 3, 4)).tolist()
