"""A model as its config names it -> ready backbone, VAE and text encoder."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pusa.data.hashing import fingerprint
from pusa.diffusion.flow import FlowMatching
from pusa.models.base import VideoVAE
from pusa.models.text import T5TextEncoder, load_text_encoder
from pusa.models.vae import load_vae
from pusa.rng import generator_for
from pusa.types import LatentSpec
from pusa.weights.files import load_weights
from pusa.weights.lora import load_lora

log = logging.getLogger(__name__)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Model:
    """Everything that configs/model/*.yaml says about one model.

    backbone: builds the network; weights: its checkpoint in any layout that is read, or None for a
    random start; vae, text_encoder: local files or folders; dtype: precision of the frozen weights;
    spec: how the VAE folds pixels; num_frames, height, width, fps: what it was made for;
    negative_prompt: None means no text at all; device: of sampling ("auto": a GPU if there is one),
    training is placed by the trainer. expert: "high" or "low" where the model is one of two; its
    LoRAs say so, and the other's are refused. latent_space: of the VAE, see `load_vae`.
    """

    name: str
    backbone: Callable[[], nn.Module]
    flow: FlowMatching
    spec: LatentSpec
    weights: str | None
    vae: str
    text_encoder: str
    text_len: int
    num_frames: int
    height: int
    width: int
    fps: float
    guidance_scale: float = 1.0
    negative_prompt: str | None = None
    dtype: str = "float32"
    device: str = "auto"
    expert: str | None = None
    latent_space: str = "normalized"

    def run_device(self) -> torch.device:
        """Where sampling runs: "auto" is the first GPU if there is one."""
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(name)

    def __post_init__(self):
        if self.dtype not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ValueError(f"model.dtype={self.dtype!r} is unknown; use one of {known}.")
        if self.expert not in (None, "high", "low"):
            raise ValueError(f"model.expert={self.expert!r} is unknown; use high or low.")
        self.latent_shape()

    def latent_shape(
        self, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> tuple[int, int, int, int]:
        """(C, F, h, w) of a clip, by default of the model's own size; ValueError if not legal."""
        size = (num_frames, height, width), (self.num_frames, self.height, self.width)
        frames, height, width = (
            own if asked is None else asked for asked, own in zip(*size, strict=True)
        )
        return (
            self.spec.channels,
            self.spec.num_latent_frames(frames),
            *self.spec.latent_size(height, width),
        )

    def input_marks(self) -> dict[str, str]:
        """What the files behind the paths are; "" if absent. A run is the same run only if these
        are the same."""
        paths = {"weights": self.weights, "vae": self.vae, "text": self.text_encoder}
        return {
            name: fingerprint(path) if path and Path(path).exists() else ""
            for name, path in paths.items()
        }

    def build_backbone(self, seed: int = 0) -> nn.Module:
        """The network with its weights, frozen, in eval mode; a random start without weights."""
        if self.weights is None:
            log.warning("model %s has no weights (model.weights is null): random start.", self.name)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(generator_for(seed, "model/init").initial_seed())
                return self.backbone().eval()
        with torch.device("meta"):
            backbone = self.backbone()
        load_weights(backbone, self.weights, PRECISIONS[self.dtype])
        return backbone.eval().requires_grad_(False)

    def build_vae(self) -> VideoVAE:
        vae = load_vae(self.vae, latent_space=self.latent_space)
        if vae.spec != self.spec:
            raise ValueError(
                f"{self.vae}: folds pixels as {vae.spec}, model.spec says {self.spec}."
            )
        return vae

    def build_text_encoder(self) -> T5TextEncoder:
        return load_text_encoder(self.text_encoder, text_len=self.text_len)


def build_adapted(model: Model, lora: str, strength: float = 1.0) -> nn.Module:
    """The model's backbone with a LoRA file at a strength. WeightsError if it does not fit."""
    backbone = model.build_backbone()
    load_lora(backbone, lora, strength, expert=model.expert)
    return backbone
