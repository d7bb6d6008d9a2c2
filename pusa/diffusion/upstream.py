"""The public Pusa code's numerics in training, behind the interfaces of flow and timesteps, for who must
match its runs. Nothing else in the project rounds a timestep or looks one up.

Differences from ours: levels come from a grid of 1000; t is rounded to bfloat16, after which 294 distinct
ones are left, and noise is added at the grid's sigma nearest to that; noise and target are bfloat16; the
loss is one mean over everything times the mean of the frames' weights, so that no frame is weighted.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pusa.diffusion.flow import FlowMatching, linear_quadratic, per_frame, shift_sigma

STEPS = 1000


@cache
def training_grid(shift: float, grid: str = "shifted") -> Tensor:
    """Timesteps (1000,) float32, from 1000 down; the last is not 0."""
    if grid == "linear_quadratic":
        return 1000 * linear_quadratic(STEPS)[:-1].float()
    u = torch.linspace(1, 0, STEPS + 1)[:-1]
    return 1000 * shift_sigma(u, shift)


@dataclass(frozen=True)
class UpstreamTimesteps:
    """Independent draws from the grid, rounded to bfloat16: levels (B, F) as t / 1000.

    grid, shift: as FlowMatching has them. skip_last: grid points at the end that are never drawn
    (Mochi's trainer leaves out 2).
    """

    shift: float = 5.0
    grid: str = "shifted"
    skip_last: int = 0
    sigma_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        if tuple(self.sigma_range) != (0.0, 1.0):
            raise ValueError("timesteps=upstream draws from all levels; it has no sigma_range.")

    def sample(self, batch: int, frames: int, generator: torch.Generator | None = None) -> Tensor:
        device = generator.device if generator is not None else None
        index = torch.randint(
            0, STEPS - self.skip_last, (batch, frames), generator=generator, device=device
        )
        timesteps = training_grid(self.shift, self.grid).to(index.device)[index]
        return timesteps.bfloat16().float() / 1000


@dataclass(frozen=True)
class UpstreamFlow(FlowMatching):
    """FlowMatching with the public code's roundings; weighting "bell" is what it calls for, and its
    reduction makes of it a jitter around 1."""

    weighting: str = "bell"

    def nearest(self, sigma: Tensor) -> Tensor:
        """Index of the training grid's timestep nearest to 1000 * sigma, the first if two are."""
        grid = training_grid(self.shift, self.grid).to(sigma.device)
        return (grid - 1000 * sigma[..., None]).abs().argmin(-1)

    def add_noise(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        grid = training_grid(self.shift, self.grid).to(sigma.device) / 1000
        s = per_frame(grid[self.nearest(sigma)])
        return (1 - s) * clean.bfloat16().float() + s * noise.bfloat16().float()

    def velocity(self, clean: Tensor, noise: Tensor) -> Tensor:
        return (noise.bfloat16() - clean.bfloat16()).float()

    def weight(self, sigma: Tensor) -> Tensor:
        if self.weighting == "none":
            return torch.ones_like(sigma)
        timesteps = training_grid(self.shift, self.grid).to(sigma.device)
        bell = torch.exp(-2 * ((timesteps - 500) / 1000) ** 2)
        bell = bell - bell.min()
        return (bell * STEPS / bell.sum())[self.nearest(sigma)]

    def mean_loss(self, errors: Tensor, sigma: Tensor) -> Tensor:
        """Of each sample (upstream's batches are of one): mean error times mean weight."""
        return (errors.mean(1) * self.weight(sigma).mean(1)).mean()
