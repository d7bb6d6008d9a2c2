"""The one sampling loop. A task is a sigma plan; there is no second loop for a task."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pusa.diffusion.flow import FlowMatching, per_frame

# (x (B, C, F, h, w), sigma (B, F), step sigma ()) -> velocity, noise - clean
Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]


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
    """Integrate a sigma plan with Euler steps; every frame follows its own column.

    noise, clean: (B, C, F, h, w); sigmas: (S+1,) step sigmas; plan: (S+1, B, F), usually
    `Conditioning.plan(sigmas)`. `velocity` also gets the step's sigma, by which an expert is
    chosen; frames never choose. Returns latents. A frame whose plan is 0 comes back bit for bit.
    """
    x = flow.add_noise(clean, noise, plan[0])
    for step_sigma, sigma, sigma_next in progress(list(zip(sigmas, plan, plan[1:], strict=False))):
        x = x + per_frame(sigma_next - sigma) * velocity(x, sigma, step_sigma)
    return x


def guided(conditional: Velocity, unconditional: Velocity, scale: float) -> Velocity:
    """Classifier-free guidance, v_neg + scale * (v_pos - v_neg); scale 1 skips the second pass."""
    if scale == 1:
        return conditional

    def velocity(x: Tensor, sigma: Tensor, step_sigma: Tensor) -> Tensor:
        negative = unconditional(x, sigma, step_sigma)
        return negative + scale * (conditional(x, sigma, step_sigma) - negative)

    return velocity
