"""Sigma plans: which noise level every latent frame has at every step. A rule makes a plan of a
grid and the frames' noise multipliers; the samplers integrate any of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class SigmaPlan:
    """steps (S+1,): the level of each step as a whole, by which an expert is chosen; levels
    (S+1, B, F): that of each frame, down to 0. A frame's first level is the share of noise it
    starts from.

    ValueError for a level outside [0, 1], a last one other than 0, or one that rises from a step
    to the next (may_rise: that is meant).
    """

    steps: Tensor
    levels: Tensor
    may_rise: bool = False

    def __post_init__(self):
        levels = self.levels
        if levels.ndim != 3 or len(self.steps) != len(levels) or len(levels) < 2:
            raise ValueError(
                f"a sigma plan has levels (S+1, B, F) and steps (S+1,), S at least 1; got "
                f"{tuple(levels.shape)} and {tuple(self.steps.shape)}."
            )
        for values in (levels, self.steps):
            if not ((values >= 0) & (values <= 1)).all():  # NaN is not, either
                raise ValueError("a sigma plan has levels in [0, 1] only.")
        if levels[-1].any():
            frame = int(levels[-1].amax(0).argmax())
            raise ValueError(f"a sigma plan ends at 0; latent frame {frame} does not.")
        rises = (levels[1:] > levels[:-1]).any(dim=1)  # (S, F)
        if rises.any() and not self.may_rise:
            step, frame = rises.nonzero()[0].tolist()
            raise ValueError(
                f"latent frame {frame} rises after step {step}; a plan only comes down, unless "
                "may_rise says that noise is to be put back."
            )


class Rule(Protocol):
    """sigmas (S+1,) from 1 down to 0 and multipliers (B, F) in [0, 1] -> a plan, which may have
    more steps than the grid.

    Under every rule a frame of multiplier 0 stays at 0, one of multiplier 1 is not conditioned.
    """

    def __call__(self, sigmas: Tensor, multiplier: Tensor) -> SigmaPlan: ...


def scaled(sigmas: Tensor, multiplier: Tensor) -> Tensor:
    """(S+1,) or (S+1, F), times (B, F) -> (S+1, B, F), in dtype and place of the multipliers."""
    sigmas = sigmas.to(multiplier)
    return (sigmas[:, None, None] if sigmas.ndim == 1 else sigmas[:, None]) * multiplier


@dataclass(frozen=True)
class Constant:
    """Every frame at its multiplier of the step's sigma, all the way down: Pusa's way."""

    def __call__(self, sigmas: Tensor, multiplier: Tensor) -> SigmaPlan:
        return SigmaPlan(sigmas, scaled(sigmas, multiplier))


@dataclass(frozen=True)
class NoisyFirst:
    """Given frames are noisy for the first `steps` steps only, and clean in all later ones.

    A given frame starts at its multiplier m and comes down along the grid's first `steps` steps,
    stretched so that they end at 0: m (sigma_i - sigma_n) / (1 - sigma_n). With all the steps it is
    `Constant`. Afterwards the frame stays as it has become.
    """

    steps: int = 1

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"plan.steps must be at least 1, got {self.steps}.")

    def __call__(self, sigmas: Tensor, multiplier: Tensor) -> SigmaPlan:
        if self.steps >= len(sigmas):
            raise ValueError(
                f"plan.steps={self.steps} is more than the sampler's {len(sigmas) - 1} steps."
            )
        end = sigmas[self.steps]
        early = ((sigmas - end) / (1 - end)).clamp(min=0)
        given = multiplier < 1
        return SigmaPlan(
            sigmas, torch.where(given, scaled(early, multiplier), scaled(sigmas, multiplier))
        )


@dataclass(frozen=True)
class Pyramid:
    """Each frame starts `lag` steps after the one before it, as in diffusion forcing: noise never
    falls from a frame to the next free one.

    Every frame has the grid's S steps, so that there are S + lag (F - 1) in all. A lag that is no
    whole number reads the grid between its points. The step's own level is the last frame's, the
    noisiest.
    """

    lag: float = 1.0

    def __post_init__(self):
        if not 0 <= self.lag < math.inf:
            raise ValueError(f"plan.lag must be 0 or more steps, got {self.lag}.")

    def __call__(self, sigmas: Tensor, multiplier: Tensor) -> SigmaPlan:
        return ramp(sigmas, multiplier, self.lag)


@dataclass(frozen=True)
class RollingWindow:
    """A window of `frames` frames at work at once, evenly spread from noise to clean, moves over
    the clip: before it all is noise, behind it all is done. It is the pyramid of lag S / frames."""

    frames: int = 4

    def __post_init__(self):
        if self.frames < 1:
            raise ValueError(f"plan.frames must be at least 1, got {self.frames}.")

    def __call__(self, sigmas: Tensor, multiplier: Tensor) -> SigmaPlan:
        return ramp(sigmas, multiplier, (len(sigmas) - 1) / self.frames)


def ramp(sigmas: Tensor, multiplier: Tensor, lag: float) -> SigmaPlan:
    """Frame f runs through the grid from step lag * f on."""
    steps, frames = len(sigmas) - 1, multiplier.shape[1]
    delay = lag * torch.arange(frames, dtype=torch.float64, device=sigmas.device)
    total = steps + math.ceil(round(lag * (frames - 1), 6))
    row = torch.arange(total + 1, dtype=torch.float64, device=sigmas.device)
    # Rounded: a third of a step, three times over, is a step.
    position = (row[:, None] - delay).round(decimals=6).clamp(0, steps)
    before = position.long().clamp(max=steps - 1)
    share = (position - before).to(sigmas)
    levels = torch.lerp(sigmas[before], sigmas[before + 1], share)
    return SigmaPlan(levels.amax(dim=1), scaled(levels, multiplier))


@dataclass(frozen=True)
class Matrix:
    """Levels written out by hand: a row for each step and one for the end, a column for each latent
    frame. As under every rule they are times the frame's multiplier. A given frame may start
    anywhere; a free one has nothing to start from but noise, and its column starts at 1.

    rows: numbers in [0, 1], the last row 0. may_rise: noise may be put back. The step's own level
    is the row's largest. ValueError if the rows are no such matrix or do not suit the clip.
    """

    rows: tuple[tuple[float, ...], ...]
    may_rise: bool = False

    def __post_init__(self):
        rows = tuple(
            tuple(float(x) for x in row) if isinstance(row, Sequence) else (float(row),)
            for row in self.rows
        )
        object.__setattr__(self, "rows", rows)
        if len(rows) < 2 or len({len(row) for row in rows}) != 1 or not rows[0]:
            raise ValueError("plan.rows must be two rows or more, all of one length.")
        levels = torch.tensor(rows)
        SigmaPlan(levels.amax(dim=1), levels[:, None], self.may_rise)

    def __call__(self, sigmas: Tensor, multiplier: Tensor) -> SigmaPlan:
        steps, frames = len(self.rows) - 1, len(self.rows[0])
        if steps != len(sigmas) - 1:
            raise ValueError(f"plan.rows has {steps} steps; set sampler.num_steps={steps}.")
        if frames != multiplier.shape[1]:
            raise ValueError(
                f"plan.rows has {frames} columns, the clip {multiplier.shape[1]} latent frames."
            )
        levels = torch.tensor(self.rows)
        for frame in (levels[0] < 1).nonzero()[:, 0].tolist():
            if (multiplier[:, frame] == 1).any():
                raise ValueError(
                    f"plan.rows starts latent frame {frame} at {self.rows[0][frame]:g}, but nothing"
                    " is given there; start it at 1, or give it a clip or an image."
                )
        return SigmaPlan(levels.amax(dim=1), scaled(levels, multiplier), self.may_rise)
