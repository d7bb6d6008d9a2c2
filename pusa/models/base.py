"""What the other rooms may rely on: a backbone, a VAE and a text encoder, as protocols."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from pusa.types import LatentSpec, Text


class VideoBackbone(Protocol):
    """latents (B, C, F, h, w), sigma (B,) or (B, F) in [0, 1], text -> velocity, noise - clean."""

    text_dim: int

    def __call__(self, latents: Tensor, sigma: Tensor, text: Text) -> Tensor: ...


class VideoVAE(Protocol):
    """encode: frames (B, 3, T, H, W) in [-1, 1] -> normalized latents (B, C, F, h, w) and back."""

    spec: LatentSpec

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def to(self, device: torch.device) -> "VideoVAE": ...

    def encode(self, frames: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


class TextEncoder(Protocol):
    """encode: captions -> Text with embedding (B, L <= text_len, text_dim), zero past a caption."""

    text_len: int

    def encode(self, captions: Sequence[str]) -> Text: ...
