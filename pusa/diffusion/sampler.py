"""The sampling loops: Euler, Heun and UniPC over any sigma plan. A task is a plan; there is no loop
for a task."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pusa.diffusion.flow import FlowMatching, per_frame

# (x (B, C, F, h, w), sigma (B, F), step sigma ()) -> velocity, noise - clean
Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
Progress = Callable[[Iterable], Iterable]


@torch.no_grad()
def euler(
    velocity: Velocity,
    noise: Tensor,
    clean: Tensor,
    sigmas: Tensor,
    plan: Tensor,
    flow: FlowMatching,
    progress: Progress = iter,
) -> Tensor:
    """Integrate a sigma plan with Euler steps; every frame follows its own column.

    noise, clean: (B, C, F, h, w); sigmas: (S+1,) step sigmas; plan: (S+1, B, F), usually
    `Conditioning.plan(sigmas)`. `velocity` also gets the step's sigma, by which an expert is
    chosen; frames never choose. Returns latents. A frame whose plan is 0 comes back bit for bit.
    """
    x = flow.add_noise(clean, noise, plan[0])
    for step_sigma, sigma, sigma_next in progress(list(zip(sigmas, plan, plan[1:], strict=False))):
        x = x + per_frame(sigma_next - sigma) * velocity(x, sigma, step_sigma)
    return x


@torch.no_grad()
def heun(
    velocity: Velocity,
    noise: Tensor,
    clean: Tensor,
    sigmas: Tensor,
    plan: Tensor,
    flow: FlowMatching,
    progress: Progress = iter,
) -> Tensor:
    """As `euler`, with the mean of the velocities at both ends of a step: second order, two calls.

    Where a frame's step ends at 0 it is Euler's (Karras et al. 2022, algorithm 1): no network is
    asked for the velocity of a clean frame. If that is all of them, the step has one call.
    """
    x = flow.add_noise(clean, noise, plan[0])
    steps = list(zip(sigmas, sigmas[1:], plan, plan[1:], strict=False))
    for step_sigma, step_next, sigma, sigma_next in progress(steps):
        change = per_frame(sigma_next - sigma)
        first = velocity(x, sigma, step_sigma)
        if sigma_next.any():
            second = velocity(x + change * first, sigma_next, step_next)
            first = torch.where(per_frame(sigma_next > 0), (first + second) / 2, first)
        x = x + change * first
    return x


@torch.no_grad()
def unipc(
    velocity: Velocity,
    noise: Tensor,
    clean: Tensor,
    sigmas: Tensor,
    plan: Tensor,
    flow: FlowMatching,
    progress: Progress = iter,
) -> Tensor:
    """As `euler`, with UniPC of order 2 (Zhao et al. 2023, B(h) = e^h - 1), which Wan's own code
    uses: each step is predicted from this and the last estimate of the clean clip, and corrected
    by the next. One call a step.

    Every frame has its own lambda = log((1 - sigma) / sigma) and its own order: 1 where it starts,
    where it ends at 0, and where a step is more than 100 times its last one (in lambda), which
    says nothing about so long a way. ValueError if the plan puts noise on a clean frame.
    """
    if ((plan[:-1] == 0) & (plan[1:] > 0)).any():
        raise ValueError("unipc cannot put noise back on a clean frame; use euler or heun.")
    x = flow.add_noise(clean, noise, plan[0])
    taken: tuple[UniPCStep, Tensor, Tensor, Tensor] | None = None
    for i in progress(range(len(plan) - 1)):
        estimate = x - per_frame(plan[i]) * velocity(x, plan[i], sigmas[i])
        step = UniPCStep.between(plan[max(i - 1, 0)], plan[i], plan[i + 1], x)
        slope = torch.zeros_like(x)
        if taken is not None:
            last, start, last_estimate, last_slope = taken
            x = last.correct(x, start, last_estimate, last_slope, estimate)
            slope = step.slope(estimate, last_estimate)
        taken = step, x, estimate, slope
        x = step.predict(x, estimate, slope)
    return x


METHODS = {"euler": euler, "heun": heun, "unipc": unipc}

# 1 - sigma at the start, where lambda is -inf: diffusers starts at 1 - 1e-6, which float32 holds as
# 1 - 17 * 2**-24. It enters the extrapolation of the second step as a logarithm.
NEAREST_NOISE = 17 * 2.0**-24
SHORTEST_HISTORY = 0.01  # of a step's length in lambda: what it may be extrapolated from


@dataclass(frozen=True)
class UniPCStep:
    """The numbers of one step, all (B, 1, F, 1, 1): `ratio` of its sigmas, next over this; `back`,
    the last step over this one in lambda, negative; `weights` of the corrector; `inner`, where it
    moves and does not end at 0; `second`, where it is of order 2."""

    ratio: Tensor
    back: Tensor
    weights: tuple[Tensor, Tensor]
    inner: Tensor
    second: Tensor

    @classmethod
    def between(
        cls, previous: Tensor, sigma: Tensor, following: Tensor, like: Tensor
    ) -> "UniPCStep":
        """Levels (B, F) of the last step, this and the next -> the step, in the dtype of `like`."""
        lambdas = [_log_ratio(s) for s in (previous, sigma, following)]
        length = lambdas[2] - lambdas[1]
        moves = length != 0
        length = torch.where(moves, length, 1.0)
        back = (lambdas[0] - lambdas[1]) / length
        inner = moves & (following > 0)
        second = inner & (back < -SHORTEST_HISTORY)
        back = torch.where(second, back, -1.0)
        b1, b2 = _phi_weights(length)
        older = torch.where(second, (b1 - b2) / (1 - back), 0.0)
        newer = torch.where(second, b1 - older, 0.5)
        s, n = sigma.double(), following.double()
        ratio = torch.where(s > 0, n / s.where(s > 0, 1.0), 1.0)
        ratio, back, older, newer = (per_frame(v).to(like) for v in (ratio, back, older, newer))
        return cls(ratio, back, (older, newer), per_frame(inner), per_frame(second))

    def slope(self, estimate: Tensor, last: Tensor) -> Tensor:
        """The change of the clean estimate over this step, going on as it did; 0 at order 1."""
        return torch.where(self.second, (last - estimate) / self.back, 0.0)

    def predict(self, x: Tensor, estimate: Tensor, slope: Tensor) -> Tensor:
        return self.ratio * x + (1 - self.ratio) * (estimate + slope / 2)

    def correct(
        self, predicted: Tensor, x: Tensor, estimate: Tensor, slope: Tensor, reached: Tensor
    ) -> Tensor:
        """The step once more, knowing the estimate of the clean clip where it led."""
        older, newer = self.weights
        towards = estimate + older * slope + newer * (reached - estimate)
        return torch.where(self.inner, self.ratio * x + (1 - self.ratio) * towards, predicted)


def _log_ratio(sigma: Tensor) -> Tensor:
    """lambda (B, F), float64 and finite."""
    s = sigma.double()
    smallest = torch.finfo(torch.float64).tiny
    return (1 - s).clamp(min=NEAREST_NOISE).log() - s.clamp(min=smallest).log()


def _phi_weights(length: Tensor) -> tuple[Tensor, Tensor]:
    """The right-hand side (b1, b2) of the corrector's two equations, for steps in lambda."""
    h = -length
    short = h.abs() < 1e-4  # there the quotients lose their digits, and two terms are enough
    safe = torch.where(short, 1.0, h)
    growth = torch.expm1(safe)
    first = growth / safe - 1
    b1 = torch.where(short, 0.5 - h / 12, first / growth)
    b2 = torch.where(short, 1 / 3 - h / 12, 2 * (first / safe - 0.5) / growth)
    return b1, b2


def guided(
    conditional: Velocity,
    unconditional: Velocity,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
    together: Velocity | None = None,
) -> Velocity:
    """Classifier-free guidance, v_neg + scale * (v_pos - v_neg).

    Scale 1, and steps whose sigma is outside `interval`, take the conditional pass alone. together:
    both in one pass, velocities (2B, C, F, h, w), the conditional ones first.
    """
    if scale == 1:
        return conditional
    low, high = interval

    def velocity(x: Tensor, sigma: Tensor, step_sigma: Tensor) -> Tensor:
        if not low <= step_sigma <= high:
            return conditional(x, sigma, step_sigma)
        if together is not None:
            positive, negative = together(x, sigma, step_sigma).chunk(2)
            return negative + scale * (positive - negative)
        negative = unconditional(x, sigma, step_sigma)
        return negative + scale * (conditional(x, sigma, step_sigma) - negative)

    return velocity
