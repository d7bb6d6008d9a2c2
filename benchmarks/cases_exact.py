"""How exact an attention kernel is against float64, and a gradient against float32; and where the
time goes, ours and diffusers'."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.autograd.profiler_util import FunctionEventAvg

from benchmarks.cases_forward import Setting, evaluate, sigma_of
from benchmarks.cases_train import fresh_step, step
from benchmarks.harness import Row
from benchmarks.networks import (
    CAPTION_LEN,
    RANK,
    TEXT_LEN,
    make_batch,
    pair,
    recompute_blocks,
    training_pair,
)
from pusa.models.attention import ATTENTION, attention, choose, many_in_few, masked_attention
from pusa.types import LatentBatch
from pusa.weights.lora import LoRA

QUERIES, HEADS, HEAD_DIM, SEED = 2048, 2, 128, 0
FEW = 8  # keys that stand for a caption's padding
KINDS = {  # of work -> how the names of its operations begin, after "aten::"
    "attention": ("_scaled_dot_product", "_flash_attention", "_efficient_attention"),
    "matrix products": ("addmm", "mm", "bmm", "baddbmm", "addmm_", "slow_conv3d", "mkldnn_conv",
                        "convolution", "cudnn_convolution"),
    "GELU": ("gelu",),
}  # fmt: skip


def exact(device: torch.device) -> Iterator[Row]:
    """Errors of every kernel that runs on the device, in parts of the output's root mean square:
    the worst number, and the root mean square. Self-attention of many tokens; and a caption's keys
    with the few that stand for its padding, against all that they stand for."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for backend in (name for name in ATTENTION if name != "auto"):
            try:
                choose(backend, device, dtype)
            except ValueError:
                continue
            for detail, error in _errors(backend, device, dtype).items():
                yield {
                    "case": "exact", "detail": detail, "mode": backend, "dtype": str(dtype)[6:],
                    "worst": float(error.abs().max()), "rms": float(error.square().mean().sqrt()),
                }  # fmt: skip


@torch.no_grad()
def _errors(backend: str, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(SEED)

    def draw(length: int) -> Tensor:
        x = torch.randn(1, length, HEADS, HEAD_DIM, generator=generator)
        return x.to(device, dtype)

    q, k, v = draw(QUERIES), draw(QUERIES), draw(QUERIES)
    rest = TEXT_LEN - CAPTION_LEN
    bias = torch.cat([torch.zeros(CAPTION_LEN), many_in_few(rest, FEW, dtype).float()])
    few, many = [], []
    for words, padding in ((draw(CAPTION_LEN), draw(1)), (draw(CAPTION_LEN), draw(1))):
        few.append(torch.cat([words, padding.expand(-1, FEW, -1, -1)], 1))
        many.append(torch.cat([words, padding.expand(-1, rest, -1, -1)], 1))
    found = {
        "self-attention": (attention(q, k, v, backend), _exactly(q, k, v)),
        "cross-attention": (
            masked_attention(q, *few, bias[None].to(device), backend), _exactly(q, *many)
        ),
    }  # fmt: skip
    return {
        name: (out.double() - true) / true.square().mean().sqrt()
        for name, (out, true) in found.items()
    }


def _exactly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In float64, by the formula, of numbers that are the dtype's."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2)


def profile(setting: Setting) -> Iterator[Row]:
    """Seconds by the kind of work of a forward pass and of a LoRA step, blocks kept, eager, with a
    timestep per frame, as the profiler has them, which is slower than without."""
    networks = pair(setting.width, setting.dtype, setting.device)
    modules = training_pair(setting.width, setting.dtype, setting.device, LoRA(RANK, RANK))
    for frames in setting.frames:
        batch = make_batch(setting.width, frames, setting.device)
        sigma = sigma_of("per frame", frames, setting.device)
        runs: dict[str, dict[str, Callable[[], object]]] = {
            "forward": {who: partial(evaluate, n, batch, sigma) for who, n in networks.items()},
            "LoRA step": {who: partial(fresh_step, m, batch) for who, m in modules.items()},
        }
        for detail, both in runs.items():
            shares = {who: _shares(run, setting.device) for who, run in both.items()}
            yield setting.row("profile", detail, "eager", frames) | {"parts": shares}


def _shares(run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds by kind of work; all that is no other kind is "the rest"."""
    run()
    with torch.profiler.profile() as profiler:
        run()
    seconds = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for event in profiler.key_averages():
        seconds[_kind(event.key)] += _own_time(event, device) / 1e6
    return seconds


def _kind(operation: str) -> str:
    name = operation.removeprefix("aten::")
    return next((kind for kind, starts in KINDS.items() if name.startswith(starts)), "the rest")


def _own_time(event: FunctionEventAvg, device: torch.device) -> float:
    """Microseconds."""
    return event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total


def rounded(setting: Setting) -> Iterator[Row]:
    """A LoRA's gradients under bfloat16 autocast against those in float32, by what waits for the
    backward pass; error in parts of their norm."""
    for frames in setting.frames:
        batch = make_batch(setting.width, frames, setting.device)
        true = _gradients(setting, "float32", "none", batch)
        for policy in ("none", "blocks", "blocks_half"):
            found = _gradients(setting, "bfloat16", policy, batch)
            yield setting.row("rounded", policy, "eager", frames) | {
                "dtype": "bfloat16", "error": float((found - true).norm() / true.norm()),
                "cosine": float(torch.cosine_similarity(found, true, 0)),
            }  # fmt: skip


def _gradients(setting: Setting, dtype: str, policy: str, batch: LatentBatch) -> Tensor:
    modules = training_pair(setting.width, dtype, setting.device, LoRA(RANK, RANK))
    ours = modules["ours"]
    recompute_blocks(ours.backbone, policy)
    step(ours, batch)
    gradients = [p.grad for p in ours.backbone.parameters() if p.grad is not None]
    return torch.cat([gradient.double().flatten() for gradient in gradients])
