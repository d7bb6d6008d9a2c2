"""The public Pusa code's numerics, behind the interfaces of flow, timesteps and sampler, for who
must match its runs. Nothing else in the project rounds a timestep or looks one up.

Training differs from ours: levels come from a grid of 1000; t is rounded to bfloat16, after which
294 distinct ones are left, and noise is added at the grid's sigma nearest to that; noise and target
are bfloat16; the loss is one mean over everything times the mean of the frames' weights, so that no
frame is weighted.

Sampling differs from ours (`euler`, sampler=upstream):
- t and its product with a frame's multiplier are bfloat16, cut to a whole number for the network;
- the step's sigma is the grid's nearest to the largest t of the frames. Where all frames are given,
  that is a later step than it should be: frames start with too little noise and stop short of 0.
  Where steps are closer than bfloat16 tells apart, one is taken twice or left out;
- a frame whose t is cut to 0 stands still, with the noise that is left in it.
Not imitated: latents between steps are float32 here, and nothing but t is rounded.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pusa.diffusion.flow import FlowMatching, linear_quadratic, per_frame, shift_sigma
from pusa.diffusion.sampler import Velocity

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


def conditioned_timesteps(sigma: Tensor, multiplier: Tensor) -> Tensor:
    """The t (B, F) of a step of sigma () that the network is given, whole numbers as float32."""
    t = (1000 * sigma).bfloat16()  # () times a Python float in the public code: a bfloat16
    frames = t.float() * multiplier
    return frames.bfloat16().long().bfloat16().float()


def step_index(timesteps: Tensor, sigmas: Tensor) -> int:
    """The step that a solver takes for the timesteps (B, F): the grid's nearest to their largest,
    the first if two are as near."""
    return int((1000 * sigmas[:-1] - timesteps.max().to(sigmas)).abs().argmin())


@torch.no_grad()
def euler(
    velocity: Velocity,
    noise: Tensor,
    clean: Tensor,
    sigmas: Tensor,
    plan: Tensor,
    flow: FlowMatching,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Tensor:
    """`sampler.euler` with the public code's roundings. ValueError if the plan is no `Constant`."""
    multiplier = plan[0] / sigmas[0].to(plan)
    if not torch.equal(plan, sigmas.to(plan)[:, None, None] * multiplier):
        raise ValueError("sampler.method=upstream knows constant noise multipliers only; no plan.")
    first = conditioned_timesteps(sigmas[0], multiplier)
    base = sigmas[step_index(first, sigmas)]
    x = flow.add_noise(clean, noise, base * multiplier)
    for step_sigma in progress(sigmas[:-1]):
        t = conditioned_timesteps(step_sigma, multiplier)
        index = step_index(t, sigmas)
        change = (sigmas[index + 1] - sigmas[index]) * multiplier
        change = torch.where(t == 0, 0.0, change)
        x = x + per_frame(change) * velocity(x, t / 1000, step_sigma)
    return x
