"""Parts that the DiTs share: checks of their inputs, sinusoid, per-frame modulation, norms, rope,
attention dispatch."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

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


def working_dtype(weight: Tensor) -> torch.dtype:
    """In which products with a weight are taken: autocast's if that is on, else the weight's."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


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
    if x.device.type == "cpu":
        return _RMSNorm.apply(x.float(), weight, eps)
    return functional.rms_norm(x.float(), x.shape[-1:], weight, eps)


class _RMSNorm(torch.autograd.Function):
    """torch has a kernel for this on a GPU; on a CPU its chain of elementwise operations takes four
    times as long as this one, forward and backward."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        out = x * inverse
        return out if weight is None else out.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (gradient * x).mul_(inverse).flatten(0, -2).sum(0)
        scaled = gradient.clone() if weight is None else gradient * weight
        along = torch.linalg.vecdot(scaled, x)[..., None] * inverse.square() / x.shape[-1]
        return scaled.addcmul_(x, along, value=-1).mul_(inverse), of_weight, None


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
    """cos + i sin (N, head_dim/2) for tokens in (f, h, w) order, w fastest; built in float64.

    The head's pairs are split over the axes as Wan does: height and width get head_dim//6 pairs
    each, the frame axis the rest; every axis has its own frequency ladder. Returns complex64.
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
    return torch.complex(angle.cos().float(), angle.sin().float()).to(device)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Apply rope to (B, N, heads, head_dim); neighbouring elements form a pair. Float32.

    table: complex (N, head_dim/2). One complex product: with cosines and sines apart it is six
    passes over halves that are not contiguous.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table[:, None]).flatten(-2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


ATTENTION: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"sdpa": _sdpa}


def attention(q: Tensor, k: Tensor, v: Tensor, backend: str = "sdpa") -> Tensor:
    """Full attention of (B, N, heads, head_dim) queries over keys and values; same shape as q.

    q and k are cast to v's dtype. backend: a key of ATTENTION, checked where a model is built.
    """
    return ATTENTION[backend](q.to(v.dtype), k.to(v.dtype), v)


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, backend: str = "sdpa"
) -> Tensor:
    """`attention` without the keys where mask (B, num_keys) is False; None keeps them all.

    A mask always takes torch's own kernel, so that no backend has to support one. Every sample
    needs a key that is kept, else its rows are NaN.
    """
    if mask is None:
        return attention(q, k, v, backend)
    q, k, v = (part.to(v.dtype).transpose(1, 2) for part in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, mask[:, None, None]).transpose(1, 2)
