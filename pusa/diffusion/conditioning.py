"""What a task gives the model: Task (a rule) -> Conditioning (bound to latents) -> sigma plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pusa.diffusion.plans import scaled


@dataclass(frozen=True)
class Anchor:
    """Latents of medium number `medium` are placed from latent frame `at` on.

    multipliers: one noise multiplier per latent frame of the medium (0 = kept exactly, 1 = free).
    A single one is used for all of them; negative `at` counts from the end.
    """

    at: int
    multipliers: tuple[float, ...] = (0.0,)
    medium: int = 0

    def __post_init__(self):
        values = (
            (self.multipliers,) if isinstance(self.multipliers, (int, float)) else self.multipliers
        )
        object.__setattr__(self, "multipliers", tuple(float(m) for m in values))
        if not self.multipliers:
            raise ValueError(f"the anchor at latent frame {self.at} has no noise multiplier.")


@dataclass(frozen=True)
class Task:
    """A rule that says which latent frames are given: rows of YAML, no tensors."""

    name: str
    anchors: tuple[Anchor, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "anchors", tuple(self.anchors))

    @property
    def num_media(self) -> int:
        """How many images or clips a user has to hand in."""
        return 1 + max((anchor.medium for anchor in self.anchors), default=-1)

    def bind(self, shape: Sequence[int], media: Sequence[Tensor]) -> "Conditioning":
        """Conditioning for latents of `shape` (B, C, F, h, w).

        media: latents (B, C, F_m, h, w) of each medium. ValueError if their number is wrong or one
        reaches past the end of the clip.
        """
        if len(media) != self.num_media:
            raise ValueError(
                f"task {self.name!r} takes {self.num_media} image(s) or clip(s), got {len(media)}."
            )
        frames: dict[int, tuple[Tensor, float]] = {}
        for anchor in self.anchors:
            placed = self._place(anchor, shape[2], media[anchor.medium])
            if taken := frames.keys() & placed.keys():
                raise ValueError(f"task {self.name!r} gives latent frame {min(taken)} twice.")
            frames |= placed
        return Conditioning.free(shape, device=media[0].device if media else None).given(frames)

    def _place(self, anchor: Anchor, total: int, latents: Tensor) -> dict:
        length = latents.shape[2]
        if len(anchor.multipliers) not in (1, length):
            raise ValueError(
                f"task {self.name!r}: {len(anchor.multipliers)} noise multipliers for a medium of "
                f"{length} latent frames; give one, or one per frame."
            )
        start = anchor.at + total if anchor.at < 0 else anchor.at
        multipliers = anchor.multipliers * (length if len(anchor.multipliers) == 1 else 1)
        return {start + i: (latents[:, :, i], m) for i, m in enumerate(multipliers)}


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

    def given(self, frames: Mapping[int, tuple[Tensor, float]]) -> "Conditioning":
        """A copy with latent frames given: {index: (latent [C,h,w] or [B,C,h,w], multiplier)}.

        Negative indices count from the end. ValueError for an index outside the clip, one named
        twice, a multiplier outside [0, 1] or a latent of another shape.
        """
        latents, multiplier = self.latents.clone(), self.multiplier.clone()
        total, seen = latents.shape[2], set()
        for index, (latent, m) in frames.items():
            place = index + total if index < 0 else index
            if not 0 <= place < total:
                raise ValueError(
                    f"latent frame {index} is outside a clip of {total} latent frames; "
                    f"use 0..{total - 1} or -{total}..-1."
                )
            if place in seen:
                raise ValueError(f"latent frame {index} is given twice; name it once.")
            if not 0 <= m <= 1:
                raise ValueError(f"noise multiplier {m} for frame {index} must be in [0, 1].")
            if latent.shape[-3:] != latents.shape[1:2] + latents.shape[3:]:
                raise ValueError(
                    f"the latent for frame {index} has shape {tuple(latent.shape)}, the clip needs "
                    f"{(latents.shape[1], *latents.shape[3:])}."
                )
            seen.add(place)
            latents[:, :, place] = latent.to(latents)
            multiplier[:, place] = m
        return Conditioning(latents, multiplier)

    def plan(self, sigmas: Tensor) -> Tensor:
        """Step sigmas (S+1,) -> per-frame sigmas (S+1, B, F), each frame at its multiplier of the
        step's; other plans are in diffusion/plans.py."""
        return scaled(sigmas, self.multiplier)
