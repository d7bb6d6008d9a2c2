"""VAEs behind one interface: frames (B, 3, T, H, W) in [-1, 1] <-> normalized latents."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pusa.models.base import VideoVAE
from pusa.models.tiny_vae import TinyVAE
from pusa.types import LatentSpec


class WanVAE(nn.Module):
    """diffusers' AutoencoderKLWan with the latent statistics of its config, in float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, vae):
        super().__init__()
        self.vae = vae
        config = vae.config
        self.spec = LatentSpec(
            config.z_dim, config.scale_factor_temporal, config.scale_factor_spatial
        )  # fmt: skip
        for name, values in (("mean", config.latents_mean), ("std", config.latents_std)):
            tensor = torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def encode(self, frames: Tensor) -> Tensor:
        self.spec.num_latent_frames(frames.shape[2])
        raw = self.vae.encode(frames.to(self.vae.dtype)).latent_dist.mode()
        return (raw.float() - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        raw = latents.float() * self.std + self.mean
        return self.vae.decode(raw.to(self.vae.dtype)).sample.float().clamp(-1, 1)


def load_vae(path: str | Path) -> VideoVAE:
    """A frozen VAE in eval mode from a diffusers folder (config.json + safetensors).

    ValueError if the folder is missing or holds a class that is not known here.
    """
    config_file = Path(path) / "config.json"
    if not config_file.is_file():
        raise ValueError(
            f"{path}: no config.json in it; expected a diffusers VAE folder (model.vae)."
        )
    config = json.loads(config_file.read_text())
    name = config.pop("_class_name", None)
    if name == "TinyVAE":
        vae = TinyVAE(**config)
        weights = load_file(Path(path) / "diffusion_pytorch_model.safetensors")
        vae.load_state_dict({key: value.float() for key, value in weights.items()})
    elif name == "AutoencoderKLWan":
        from diffusers import AutoencoderKLWan

        vae = WanVAE(AutoencoderKLWan.from_pretrained(str(path), local_files_only=True))
    else:
        raise ValueError(f"{config_file}: VAE class {name!r} is not known; use AutoencoderKLWan.")
    return vae.eval().requires_grad_(False)
