"""What is given, as the sampler takes it: clean latents and a noise multiplier for every frame."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pusa.diffusion.plans import scaled


@dataclass(frozen=True)
class Conditioning:
    """latents (B, C, F, h, w): clean where given, zero where free.
    multiplier (B, F): 1 = free, 0 = kept exactly, between = starts from that share of the noise.
    ValueError for one outside [0, 1]."""

    latents: Tensor
    multiplier: Tensor

    def __post_init__(self):
        if not ((self.multiplier >= 0) & (self.multiplier <= 1)).all():  # NaN is not, either
            raise ValueError("noise multipliers must be in [0, 1].")

    @classmethod
    def free(cls, shape: Sequence[int], device: torch.device | str | None = None) -> "Conditioning":
        """Nothing given: text-to-video latents of `shape` (B, C, F, h, w)."""
        latents = torch.zeros(tuple(shape), device=device)
        return cls(latents, torch.ones(shape[0], shape[2], device=device))

    def given(
        self, frames: Mapping[int, tuple[Tensor, float]], row: int | None = None
    ) -> "Conditioning":
        """A copy with latent frames given: {index: (latent [C,h,w] or [B,C,h,w], multiplier)}.

        row: of the batch, alone; by default all of it. Negative indices count from the end.
        ValueError for an index outside the clip, one that is given already, a multiplier outside
        [0, 1] or a latent of another shape.
        """
        latents, multiplier = self.latents.clone(), self.multiplier.clone()
        total, seen = latents.shape[2], set()
        rows = slice(None) if row is None else slice(row, row + 1)
        for index, (latent, m) in frames.items():
            place = index + total if index < 0 else index
            if not 0 <= place < total:
                raise ValueError(
                    f"latent frame {index} is outside a clip of {total} latent frames; "
                    f"use 0..{total - 1} or -{total}..-1."
                )
            if place in seen or (self.multiplier[rows, place] < 1).any():
                raise ValueError(f"latent frame {index} is given twice; name it once.")
            if not 0 <= m <= 1:
                raise ValueError(f"noise multiplier {m} for frame {index} must be in [0, 1].")
            if latent.shape[-3:] != latents.shape[1:2] + latents.shape[3:]:
                raise ValueError(
                    f"the latent for frame {index} has shape {tuple(latent.shape)}, the clip needs "
                    f"{(latents.shape[1], *latents.shape[3:])}."
                )
            seen.add(place)
            latents[rows, :, place] = latent.to(latents)
            multiplier[rows, place] = m
        return Conditioning(latents, multiplier)

    def to(self, device: torch.device | str) -> "Conditioning":
        return Conditioning(self.latents.to(device), self.multiplier.to(device))

    def plan(self, sigmas: Tensor) -> Tensor:
        """Step sigmas (S+1,) -> per-frame sigmas (S+1, B, F), each frame at its multiplier of the
        step's; other plans are in diffusion/plans.py."""
        return scaled(sigmas, self.multiplier)
