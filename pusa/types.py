"""Shapes and small records that every room shares. Imports nothing from pusa.

Legend of shape letters: B batch, C channels, F latent frames, T pixel frames, H W pixels,
h w latent size, S tokens per latent frame, N = F*S tokens, D model width, L text tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentSpec:
    """How a VAE folds pixels: frame 0 alone, then groups of `temporal_stride` frames."""

    channels: int
    temporal_stride: int = 4
    spatial_stride: int = 8

    def num_latent_frames(self, num_frames: int) -> int:
        """Latent frames of a clip of `num_frames` pixel frames; ValueError if it is not 4k+1."""
        groups, rest = divmod(num_frames - 1, self.temporal_stride)
        if num_frames < 1 or rest:
            legal = max(groups, 0) * self.temporal_stride + 1
            raise ValueError(
                f"num_frames={num_frames} is not {self.temporal_stride}k+1; "
                f"use {legal} or {legal + self.temporal_stride} (num_frames)."
            )
        return groups + 1

    def num_pixel_frames(self, num_latent_frames: int) -> int:
        return (num_latent_frames - 1) * self.temporal_stride + 1

    def pixel_frames(self, latent_index: int) -> range:
        """Pixel frames that latent frame `latent_index` covers: 0 -> {0}, k -> {4k-3..4k}."""
        if latent_index == 0:
            return range(0, 1)
        stop = latent_index * self.temporal_stride + 1
        return range(stop - self.temporal_stride, stop)

    def latent_index(self, pixel_frame: int) -> int:
        """Latent frame that covers `pixel_frame`."""
        return -(-pixel_frame // self.temporal_stride)

    def latent_size(self, height: int, width: int, patch: int = 2) -> tuple[int, int]:
        """(h, w) of the latents; ValueError unless both sides divide by stride * patch."""
        multiple = self.spatial_stride * patch
        for name, value in (("height", height), ("width", width)):
            if value < multiple or value % multiple:
                legal = max(multiple, round(value / multiple) * multiple)
                raise ValueError(f"{name}={value} is not a multiple of {multiple}; use {legal}.")
        return height // self.spatial_stride, width // self.spatial_stride


@dataclass(frozen=True)
class Text:
    """Encoded captions.

    embedding: (B, L, text_dim), right-padded; mask: (B, L) bool, True where a token is real.
    """

    embedding: Tensor
    mask: Tensor

    def to(self, *args, **kwargs) -> "Text":
        """Move (and cast) the embedding as torch does; the mask moves but stays bool."""
        embedding = self.embedding.to(*args, **kwargs)
        return Text(embedding, self.mask.to(embedding.device))


@dataclass(frozen=True)
class LatentBatch:
    """A training batch: latents (B, C, F, h, w), their text, and the samples' indices (B,)."""

    latents: Tensor
    text: Text
    index: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "LatentBatch":
        """Move everything but the indices, which stay where they are counted."""
        return LatentBatch(
            self.latents.to(device, non_blocking=non_blocking), self.text.to(device), self.index
        )
