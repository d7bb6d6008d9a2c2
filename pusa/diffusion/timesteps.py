"""How training draws one noise level per latent frame."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pusa.diffusion.flow import shift_sigma


@dataclass(frozen=True)
class VectorTimesteps:
    """Noise levels (B, F) in (0, 1].

    p_async: probability that a sample's frames are drawn independently; otherwise all frames
        share one draw. 1 is Pusa's VTA, 0 ordinary text-to-video training, between is FVDM's PTSS.
    shift: time shift of the draw u ~ U(0, 1].
    sigma_range: (low, high); draws are kept inside it, uniform in u (an expert's own noise range);
        frames that are given have less.
    first_frame_clean: probability that a sample's frame 0 is given clean (sigma 0), as in
        image-to-video training. Never applied to one-frame clips.
    clean_share: probability that any single frame is given clean; one frame always stays noisy.
    planned: probability that a sample is drawn as sampling will show it, in place of all of the
        above but sigma_range: the free frames share a draw, a random part of the others has it
        times one noise multiplier, which is 0 for half of such samples and uniform in [0, 1] else.
    """

    p_async: float = 1.0
    shift: float = 5.0
    sigma_range: tuple[float, float] = (0.0, 1.0)
    first_frame_clean: float = 0.0
    clean_share: float = 0.0
    planned: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "sigma_range", tuple(self.sigma_range))
        for name in ("p_async", "first_frame_clean", "clean_share", "planned"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"timesteps.{name} must be in [0, 1], got {getattr(self, name)}.")
        low, high = self.sigma_range
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"timesteps.sigma_range must be 0 <= low < high <= 1, got {low}, {high}."
            )
        if not self.shift > 0:
            raise ValueError(f"timesteps.shift must be positive, got {self.shift}.")

    def sample(self, batch: int, frames: int, generator: torch.Generator | None = None) -> Tensor:
        """Noise levels (batch, frames), float32, on the generator's device."""
        device = generator.device if generator is not None else None

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=device)

        u = 1 - uniform(batch, frames)  # (0, 1]: torch.rand never returns 1
        synchronized = uniform(batch, 1) >= self.p_async
        u = torch.where(synchronized, u[:, :1], u)
        low, high = (self._unshift(sigma) for sigma in self.sigma_range)
        sigma = shift_sigma(low + (high - low) * u, self.shift)
        if frames > 1:
            sigma = self._with_clean_frames(sigma, uniform)
            if self.planned > 0:
                planned = uniform(batch, 1) < self.planned
                shared = shift_sigma(low + (high - low) * (1 - uniform(batch, 1)), self.shift)
                sigma = torch.where(planned, shared * _plan_shaped(batch, frames, uniform), sigma)
        return sigma

    def _unshift(self, sigma: float) -> float:
        return sigma / (self.shift - (self.shift - 1) * sigma)

    def _with_clean_frames(self, sigma: Tensor, uniform) -> Tensor:
        clean = torch.zeros_like(sigma, dtype=torch.bool)
        if self.first_frame_clean > 0:
            clean[:, :1] = uniform(sigma.shape[0], 1) < self.first_frame_clean
        if self.clean_share > 0:
            draw = uniform(*sigma.shape).masked_fill(clean, -1.0)
            clean |= (draw < self.clean_share) & (draw < draw.max(dim=1, keepdim=True).values)
        return sigma.masked_fill(clean, 0.0)


def _plan_shaped(batch: int, frames: int, uniform) -> Tensor:
    """Noise multipliers (batch, frames): 1 for free frames, of which there is at least one, and one
    below 1 for those that are given, in any number and at any place."""
    order = uniform(batch, frames).argsort(dim=1).argsort(dim=1)  # a random rank for each frame
    num_given = (uniform(batch, 1) * frames).floor()  # 0 to frames - 1
    multiplier = uniform(batch, 1) * (uniform(batch, 1) < 0.5)
    return torch.where(order < num_given, multiplier, 1.0)
