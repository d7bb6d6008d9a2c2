"""A linear layer with a LoRA in three matrix products each way, without passes between them.

As separate operations, the sums of base and LoRA (of the output, of the input's gradient) and the
scaling are passes over wide tensors of their own, and gradients exist twice. Knows no peft.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def fits(x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether `lora_linear` is the same mathematics here: frozen weights, whole in memory (ZeRO-3's
    are not), and one dtype, be it autocast's."""
    if x.ndim < 2 or weight.requires_grad or any(hasattr(w, "ds_id") for w in (weight, a, b)):
        return False
    return _lowered(x) is not None or x.dtype == weight.dtype == a.dtype == b.dtype


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> Tensor:
    """x @ weight^T + bias + scale * x @ a^T @ b^T, in autocast's dtype if there is one, else x's.

    x: (..., in); weight: (out, in), frozen as is bias (out,); a: (rank, in); b: (out, rank).
    """
    dtype = _lowered(x) or x.dtype
    with torch.autocast(x.device.type, enabled=False):
        bias = None if bias is None else bias.to(dtype)
        return _LoRALinear.apply(
            x.to(dtype), weight.to(dtype), bias, a.to(dtype), b.to(dtype), scale
        )


def _lowered(x: Tensor) -> torch.dtype | None:
    """The dtype of the autocast that is on, if any."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        rows = x.flatten(0, -2)
        low = functional.linear(rows, a)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        out = functional.linear(rows, weight, bias).addmm_(low, b.t(), alpha=scale)
        return out.view(*x.shape[:-1], weight.shape[0])  # x may have no rows: an empty caption

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight, a, b, low = ctx.saved_tensors
        shape, rows = x.shape, gradient.flatten(0, -2)
        of_low = (rows @ b).mul_(ctx.scale)
        of_x = of_a = of_b = None
        if ctx.needs_input_grad[3]:
            of_a = of_low.t() @ x.flatten(0, -2)
        if ctx.needs_input_grad[4]:
            of_b = (rows.t() @ low).mul_(ctx.scale)
        del x, low  # of a recomputed block nobody else holds them: free before the widest tensor
        if ctx.needs_input_grad[0]:
            of_x = (rows @ weight).addmm_(of_low, a).view(shape)
        return of_x, None, None, of_a, of_b, None
