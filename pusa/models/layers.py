"""Parts that the DiTs share: checks of their inputs, sinusoid, per-frame modulation, norms, rope,
linear layers side by side and after an activation."""

from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from pusa.models.gelu import gelu_, product_with_gelu, through_gelu_
from pusa.models.precision import working_dtype
from pusa.types import Text


def check_latents(latents: Tensor, sigma: Tensor, in_channels: int) -> None:
    """ValueError for inputs that do not fit a DiT with 2x2 patches or do not fit one another."""
    if latents.ndim != 5 or latents.shape[1] != in_channels:
        raise ValueError(f"latents {tuple(latents.shape)} are not (B, {in_channels}, F, h, w).")
    batch, _, frames, height, width = latents.shape
    if height % 2 or width % 2:
        raise ValueError(f"latent size {height}x{width} is odd; use even sides (patch 2x2).")
    if sigma.shape not in ((batch,), (batch, frames)):
        raise ValueError(
            f"sigma {tuple(sigma.shape)} is neither ({batch},) nor ({batch}, {frames})."
        )


def check_text(text: Text, batch: int | None, text_dim: int, text_len: int) -> None:
    """ValueError for a text that does not fit a DiT, or these latents; batch None: any number."""
    shape = text.embedding.shape
    if len(shape) != 3 or batch not in (None, shape[0]) or shape[2] != text_dim:
        raise ValueError(f"text {tuple(shape)} is not ({batch or 'B'}, L, {text_dim}).")
    if shape[1] > text_len:
        raise ValueError(f"text has {shape[1]} tokens, this model takes {text_len}.")


def sinusoid(timestep: Tensor, dim: int) -> Tensor:
    """Timesteps (...) in [0, 1000] -> (..., dim): cosines first, then sines; angles in float64."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float64, device=timestep.device) / half
    angle = timestep.double()[..., None] * torch.pow(10000.0, -exponent)
    return torch.cat([angle.cos(), angle.sin()], dim=-1).float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift every token by the modulation of its latent frame.

    x: (B, F, S, D) tokens grouped by frame; shift, scale: (B, F, D).
    """
    return torch.addcmul(shift[:, :, None], x, 1 + scale[:, :, None])


def add_gated(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """Residual sum with a branch that is gated by the modulation of its latent frame.

    x, branch: (B, F, S, D), their dtypes may differ; gate: (B, F, D).
    """
    return torch.addcmul(x, branch, gate[:, :, None])


def plain_layer_norm(x: Tensor, eps: float) -> Tensor:
    """LayerNorm without parameters over the last dimension, computed in float32."""
    return functional.layer_norm(x.float(), x.shape[-1:], eps=eps)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMS norm over the last dimension, times weight (D,) if there is one; computed in float32."""
    weight = None if weight is None else weight.float()
    keeps = torch.is_grad_enabled() and x.requires_grad and x.dtype != torch.float32
    if (x.device.type == "cpu" or keeps) and not torch.compiler.is_compiling():
        return _RMSNorm.apply(x if x.dtype.itemsize < 4 else x.float(), weight, eps)
    return functional.rms_norm(x.float(), x.shape[-1:], weight, eps)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x


class _RMSNorm(torch.autograd.Function):
    """torch has a kernel for this on a GPU, which keeps a float32 copy of what is normed; this one
    keeps it as it came. On a CPU torch's chain of elementwise operations takes four times as long
    as this one, forward and backward."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        wide = _at_least_float32(x)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        out = wide * inverse if wide is x else wide.mul_(inverse)
        return out if weight is None else out.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        dtype, x = x.dtype, _at_least_float32(x)
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (gradient * x).mul_(inverse).flatten(0, -2).sum(0)
        scaled = gradient.clone() if weight is None else gradient * weight
        along = torch.linalg.vecdot(scaled, x)[..., None] * inverse.square() / x.shape[-1]
        return scaled.addcmul_(x, along, value=-1).mul_(inverse).to(dtype), of_weight, None


class RMSNorm(nn.Module):
    """RMS norm over the last dimension; float32 in and out of the arithmetic."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


@lru_cache(maxsize=16)
def rope_table(
    grid: tuple[int, int, int], head_dim: int, device: torch.device, theta: float = 10000.0
) -> Tensor:
    """cos and sin (N, head_dim/2, 2) for tokens in (f, h, w) order, w fastest; built in float64.

    The head's pairs are split over the axes as Wan does: height and width get head_dim//6 pairs
    each, the frame axis the rest; every axis has its own frequency ladder. Returns float32.
    """
    with torch.inference_mode(False):  # the cached table serves training, too
        return _rope_table(grid, head_dim, device, theta)


def _rope_table(
    grid: tuple[int, int, int], head_dim: int, device: torch.device, theta: float
) -> Tensor:
    side = head_dim // 6
    angles = []
    for axis, pairs in enumerate((head_dim // 2 - 2 * side, side, side)):
        exponent = torch.arange(pairs, dtype=torch.float64) / pairs
        position = torch.arange(grid[axis], dtype=torch.float64)
        angle = position[:, None] * torch.pow(theta, -exponent)
        shape = [1, 1, 1, pairs]
        shape[axis] = grid[axis]
        angles.append(angle.view(shape).expand(*grid, pairs))
    angle = torch.cat(angles, dim=-1).flatten(0, 2)
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float().to(device)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Apply rope to (B, N, heads, head_dim); neighbouring elements form a pair. Float32.

    table: cosines and sines (N, head_dim/2, 2). One complex product: with cosines and sines apart
    it is six passes over halves that are not contiguous, unless a compiler makes one of them.
    """
    table = table[:, None]
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        (a, b), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    turned = torch.view_as_complex(pairs) * torch.view_as_complex(table)
    return torch.view_as_real(turned).flatten(-2)


def project(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """layer(x) of several linear layers. Layers that share work, as LoRAs do in training, say so by
    a method `together`."""
    together = getattr(layers[0], "together", None)
    found = together(layers, x) if together is not None and torch.is_grad_enabled() else None
    return [layer(x) for layer in layers] if found is None else found


class FeedForward(nn.Sequential):
    """Linear, GELU, linear. Training keeps what goes into the GELU alone, not also what comes out
    of it, the second of a block's two widest tensors; sampling overwrites the one with the other.
    """

    def __init__(self, dim: int, ffn_dim: int):
        super().__init__(nn.Linear(dim, ffn_dim), nn.GELU("tanh"), nn.Linear(ffn_dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        first, gelu, last = cast(tuple[nn.Linear, nn.GELU, nn.Linear], tuple(self))
        hidden = first(x)
        if torch.compiler.is_compiling():  # decides itself what is kept
            return last(gelu(hidden))
        if not torch.is_grad_enabled():
            return last(gelu_(hidden))
        after_gelu = getattr(last, "after_gelu", None)  # of a LoRA, which keeps its input
        if after_gelu is not None:
            return after_gelu(hidden)
        weight = last.weight
        if not weight.requires_grad or hasattr(weight, "ds_id"):  # ZeRO-3 gathers it by a call
            return last(gelu(hidden))
        dtype = working_dtype(weight)
        with torch.autocast(x.device.type, enabled=False):
            bias = None if last.bias is None else last.bias.to(dtype)
            return _LinearOfGelu.apply(hidden.to(dtype), weight.to(dtype), bias)


class _LinearOfGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return functional.linear(functional.gelu(hidden, approximate="tanh"), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        hidden, weight = ctx.saved_tensors
        rows, wide = gradient.flatten(0, -2), hidden.flatten(0, -2)
        of_weight = of_bias = None
        if ctx.needs_input_grad[1]:
            of_weight = product_with_gelu(rows, wide)
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        of_hidden = through_gelu_(rows @ weight, wide).view_as(hidden)
        return of_hidden, of_weight, of_bias
