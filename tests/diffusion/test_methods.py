"""Heun and UniPC: their order on a field with a known solution, and UniPC against diffusers'."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

from pusa.diffusion.flow import FlowMatching, per_frame
from pusa.diffusion.sampler import METHODS, guided, heun, unipc

MEAN, DEVIATION = 0.7, 0.5


def gaussian_velocity(x: Tensor, sigma: Tensor, step: Tensor) -> Tensor:
    """E[noise - clean | x] where clean values are N(MEAN, DEVIATION^2)."""
    s = per_frame(sigma)
    z = (x - (1 - s) * MEAN) / ((1 - s) ** 2 * DEVIATION**2 + s**2)
    return s * z - (MEAN + (1 - s) * DEVIATION**2 * z)


def gaussian_end(x: Tensor, sigma: float) -> Tensor:
    """Where its probability flow takes x of level sigma: x moves with mean and deviation."""
    deviation = math.sqrt((1 - sigma) ** 2 * DEVIATION**2 + sigma**2)
    return MEAN + DEVIATION * (x - (1 - sigma) * MEAN) / deviation


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("unipc", 2)])
def test_a_method_has_its_order_on_frames_of_different_levels(method, order):
    """Twice the steps, 2^order less error. UniPC's end steps keep it from the corrector's 3."""
    noise = torch.randn(
        2, 1, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    multiplier = torch.tensor([[1.0, 0.5, 0.8]], dtype=torch.float64).expand(2, 3)
    errors = []
    for steps in (80, 160):
        sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        plan = sigmas[:, None, None] * multiplier
        result = METHODS[method](
            gaussian_velocity, noise, torch.zeros_like(noise), sigmas, plan, FlowMatching()
        )
        truth = torch.stack(
            [gaussian_end(m * noise[:, :, i], m) for i, m in enumerate(multiplier[0].tolist())], 2
        )
        errors.append((result - truth).abs().amax(dim=(0, 1, 3, 4)))
    for frame, (coarse, fine) in enumerate(zip(*errors, strict=True)):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15), frame


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [5.0, 12.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 10, 30])
def test_unipc_with_one_sigma_is_diffusers_scheduler(steps, shift, dtype):
    """On a field that is no line, so that predictor and corrector both have something to do."""

    def velocity(x: Tensor, sigma: Tensor, step: Tensor) -> Tensor:
        return gaussian_velocity(x, sigma, step) + 0.3 * torch.sin(3 * x)

    scheduler: Any = UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift
    )
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1])
    scheduler.set_begin_index(0)
    noise = torch.randn(1, 4, 3, 2, 2, dtype=dtype, generator=torch.Generator().manual_seed(1))
    x = noise
    for sigma, t in zip(scheduler.sigmas.to(dtype), scheduler.timesteps, strict=False):
        x = scheduler.step(velocity(x, sigma.expand(1, 3), sigma), t, x, return_dict=False)[0]
    sigmas = FlowMatching(shift).sigmas(steps).to(dtype)
    plan = sigmas[:, None, None].expand(-1, 1, 3)
    result = unipc(velocity, noise, torch.zeros_like(noise), sigmas, plan, FlowMatching())
    torch.testing.assert_close(result, x, atol=1e-5, rtol=0)


def test_unipc_frames_do_not_know_each_other():
    """Each frame has its own lambda and order: a clip of frames that start at different levels,
    rest or end early is those frames, one by one."""
    generator = torch.Generator().manual_seed(2)
    noise, clean = torch.randn(2, 1, 2, 4, 2, 2, dtype=torch.float64, generator=generator)
    columns = [
        [1, 0.9, 0.6, 0.3, 0],
        [1, 1, 1, 0.5, 0],
        [0.4, 0.2, 0, 0, 0],
        [0.3, 0.3, 0.2, 0.1, 0],
    ]
    plan = torch.tensor(columns, dtype=torch.float64).T[:, None]
    sigmas = torch.tensor(columns[0])
    flow = FlowMatching()
    together = unipc(gaussian_velocity, noise, clean, sigmas, plan, flow)
    for f in range(4):
        part = slice(f, f + 1)
        alone = unipc(
            gaussian_velocity, noise[:, :, part], clean[:, :, part], sigmas, plan[:, :, part], flow
        )
        assert torch.equal(together[:, :, part], alone)


def test_heun_asks_for_no_velocity_of_a_clip_that_is_clean():
    levels: list[float] = []

    def velocity(x, sigma, step):
        levels.append(round(float(step), 3))
        return torch.zeros_like(x)

    x, sigmas = torch.zeros(1, 1, 1, 2, 2), torch.tensor([1.0, 0.6, 0.2, 0.0])
    heun(velocity, x, x, sigmas, sigmas[:, None, None], FlowMatching())
    assert levels == [1.0, 0.6, 0.6, 0.2, 0.2]


def test_guidance_works_inside_its_interval_only():
    x = torch.zeros(1, 1, 1, 1, 1)
    velocity = guided(
        lambda *_: torch.full_like(x, 3.0), lambda *_: torch.full_like(x, 1.0), 2.0, (0.3, 0.8)
    )
    found = {s: velocity(x, x, torch.tensor(s)).item() for s in (1.0, 0.8, 0.5, 0.3, 0.2)}
    assert found == {1.0: 3, 0.8: 5, 0.5: 5, 0.3: 5, 0.2: 3}


def test_both_passes_together_are_one_call():
    x, calls = torch.zeros(2, 1, 1, 1, 1), []

    def together(x, sigma, step):
        calls.append(step)
        return torch.cat([torch.full_like(x, 3.0), torch.full_like(x, 1.0)])

    def alone(*_):
        raise AssertionError("not asked for")

    velocity = guided(alone, alone, 2.0, together=together)
    assert velocity(x, x, torch.tensor(0.5)).unique().tolist() == [5.0]
    assert len(calls) == 1
