"""Rectified flow with one noise level per latent frame: path, target, loss and shifted grids."""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

WEIGHTINGS = ("none", "bell")
GRIDS = ("shifted", "linear_quadratic")
LINEAR_PART = 0.025  # how far the linear half of Mochi's grid comes down from 1


def per_frame(values: Tensor) -> Tensor:
    """(B, F) -> (B, 1, F, 1, 1), ready to broadcast over latents."""
    return values[:, None, :, None, None]


def shift_sigma(u: Tensor, shift: float) -> Tensor:
    """Move u in [0, 1] towards noise: shift*u / (1 + (shift-1)*u), the SD3 and Wan time shift."""
    return shift * u / (1 + (shift - 1) * u)


@dataclass(frozen=True)
class FlowMatching:
    """The straight path x = (1-sigma) clean + sigma noise and its velocity, noise - clean.

    shift: time shift of sampling and training grids. weighting: loss weight by noise level, "none"
    (what the released Pusa weights effectively saw) or "bell" (DiffSynth's, mean 1 on its grid).
    grid: of sampling, "shifted" (Wan) or "linear_quadratic" (Mochi, with shift 1).
    """

    shift: float = 5.0
    weighting: str = "none"
    grid: str = "shifted"

    def __post_init__(self):
        if not self.shift > 0:
            raise ValueError(f"flow.shift must be positive, got {self.shift}.")
        if self.weighting not in WEIGHTINGS:
            known = ", ".join(WEIGHTINGS)
            raise ValueError(f"flow.weighting={self.weighting!r} is unknown; use one of {known}.")
        if self.grid not in GRIDS:
            known = ", ".join(GRIDS)
            raise ValueError(f"flow.grid={self.grid!r} is unknown; use one of {known}.")

    def sigmas(self, num_steps: int) -> Tensor:
        """Sampling grid (num_steps + 1,), float32, from 1 down to exactly 0."""
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        if self.grid == "linear_quadratic":
            return linear_quadratic(num_steps).float()
        u = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
        return shift_sigma(u, self.shift).float()

    def add_noise(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """clean, noise: (B, C, F, h, w); sigma: (B, F) -> the noisy latents, float32 or wider."""
        s = per_frame(sigma)
        return (1 - s) * clean + s * noise

    def velocity(self, clean: Tensor, noise: Tensor) -> Tensor:
        return noise - clean

    def frame_errors(self, velocity: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of each latent frame, (B, F), computed in float32."""
        error = velocity.float() - self.velocity(clean.float(), noise.float())
        return error.square().mean(dim=(1, 3, 4))

    def loss(self, velocity: Tensor, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Scalar loss of a batch, see `mean_loss`."""
        return self.mean_loss(self.frame_errors(velocity, clean, noise), sigma)

    def mean_loss(self, errors: Tensor, sigma: Tensor) -> Tensor:
        """Frame errors (B, F) -> weighted mean over each sample's frames with sigma > 0 (a frame
        given clean has nothing to predict), then over samples: the same however a batch is divided.
        """
        noisy = sigma > 0
        error = torch.where(noisy, errors * self.weight(sigma), 0)
        return (error.sum(1) / noisy.sum(1).clamp(min=1)).mean()

    def weight(self, sigma: Tensor) -> Tensor:
        """Loss weight of each noise level, same shape as sigma."""
        if self.weighting == "none":
            return torch.ones_like(sigma)
        mean = _bell_mean(self.shift)
        return ((_bell(sigma) - _BELL_FLOOR) / mean).clamp(min=0)


def linear_quadratic(num_steps: int) -> Tensor:
    """Mochi's grid (num_steps + 1,), float64: half of the steps go down to 0.975 evenly, the rest
    to 0 along a parabola that leaves that line smoothly."""
    half = num_steps // 2
    if half == 0:
        return torch.tensor([1.0, 0.0], dtype=torch.float64)
    slope, rest = LINEAR_PART / half, num_steps - half
    down = slope * torch.arange(half + 1, dtype=torch.float64)
    step = torch.arange(1, rest + 1, dtype=torch.float64)
    bend = (1 - LINEAR_PART - slope * rest) / rest**2
    return 1 - torch.cat([down, LINEAR_PART + slope * step + bend * step**2])


_BELL_FLOOR = math.exp(-0.5)  # the bell's value at sigma = 0 and 1


def _bell(sigma: Tensor) -> Tensor:
    return torch.exp(-2 * (sigma - 0.5) ** 2)


@cache
def _bell_mean(shift: float) -> float:
    """Mean of the raised bell over DiffSynth's 1000-step grid, so that weights average 1."""
    grid = shift_sigma(torch.linspace(1, 0, 1001, dtype=torch.float64)[:-1], shift)
    return float((_bell(grid) - _BELL_FLOOR).mean())
