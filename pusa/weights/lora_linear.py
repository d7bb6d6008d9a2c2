"""Linear layers with a LoRA, one or several of one input, without passes between the products.

As separate operations, the sums of base and LoRA (of the output, of the input's gradient) and the
scaling are passes over wide tensors of their own, and gradients exist twice. Layers of one input,
as q, k and v are, share the product with their stacked A and one gradient of the input, into which
each adds. Knows no peft.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from pusa.models.gelu import gelu_, product_with_gelu, through_gelu_
from pusa.models.precision import autocast_dtype, working_dtype
from pusa.models.stored import dense


@dataclass(frozen=True)
class Layer:
    """weight (out, in), frozen as is bias (out,); a (rank, in); b (out, rank); scale of b @ a.

    row_scale: (out, 1) of a weight of 8-bit numbers, see `dense`; it is made dense for each product
    anew, and never kept so.
    """

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scale: float
    row_scale: Tensor | None = None

    def fits(self, x: Tensor) -> bool:
        """Whether `lora_linear` is the same mathematics here: frozen weights, whole in memory
        (ZeRO-3's are not), and one dtype, be it autocast's."""
        weights = (self.weight, self.a, self.b)
        if x.ndim < 2 or self.weight.requires_grad or any(hasattr(w, "ds_id") for w in weights):
            return False
        own = weights if self.row_scale is None else weights[1:]
        return autocast_dtype(x) is not None or all(x.dtype == w.dtype for w in own)


def lora_linear(x: Tensor, *layers: Layer, gelu: bool = False) -> tuple[Tensor, ...]:
    """x @ weight^T + bias + scale * x @ a^T @ b^T of each layer, in autocast's dtype if there is
    one, else x's. x: (..., in). gelu: of gelu(x) instead, of which x alone is kept; without
    gradients it is overwritten."""
    dtype = working_dtype(x)
    if torch.compiler.is_compiling():  # it sees what can be one pass, and what need not be kept
        x = functional.gelu(x, approximate="tanh") if gelu else x
        return tuple(
            functional.linear(x, dense(layer.weight, layer.row_scale, dtype), layer.bias)
            + layer.scale * functional.linear(functional.linear(x, layer.a), layer.b)
            for layer in layers
        )
    if gelu and not torch.is_grad_enabled():
        x, gelu = gelu_(x), False
    with torch.autocast(x.device.type, enabled=False):
        flat = [part for layer in layers for part in _parts(layer, dtype)]
        scales = tuple(layer.scale for layer in layers)
        return cast(tuple[Tensor, ...], _LoRALinear.apply(x.to(dtype), gelu, scales, *flat))


def _parts(layer: Layer, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    """Weight, row_scale, bias, a and b, in dtype but for 8-bit numbers and their scale."""
    weight = layer.weight if layer.row_scale is not None else layer.weight.to(dtype)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return weight, layer.row_scale, bias, layer.a.to(dtype), layer.b.to(dtype)


def _stacked(parts: tuple[Tensor, ...], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gelu: bool, scales: tuple[float, ...], *flat: Tensor):
        weights, row_scales, biases, a, b = (flat[i::5] for i in range(5))
        rows = x.flatten(0, -2)
        if gelu:
            rows = functional.gelu(rows, approximate="tanh")
        ranks = [part.shape[0] for part in a]
        low = functional.linear(rows, _stacked(a, 0))  # (N, sum of the ranks)
        ctx.save_for_backward(x, low, *weights, *row_scales, *a, *b)
        ctx.gelu, ctx.scales, ctx.ranks = gelu, scales, ranks
        outs = []
        parts = zip(weights, row_scales, biases, low.split(ranks, 1), b, scales, strict=True)
        for weight, row_scale, bias, narrow, wide, scale in parts:
            out = functional.linear(rows, dense(weight, row_scale, x.dtype), bias)
            out.addmm_(narrow, wide.t(), alpha=scale)
            outs.append(out.view(*x.shape[:-1], weight.shape[0]))  # x may have no rows
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor):
        x, low, *saved = ctx.saved_tensors
        n = len(gradients)
        weights, row_scales, a, b = (saved[i * n : (i + 1) * n] for i in range(4))
        rows = [gradient.flatten(0, -2) for gradient in gradients]
        parts = zip(rows, b, ctx.scales, strict=True)
        of_low = _stacked(tuple((g @ wide).mul_(scale) for g, wide, scale in parts), 1)
        needs = ctx.needs_input_grad  # of x, gelu, scales, and five of each layer
        of_a: list[Tensor | None] = [None] * n
        of_b: list[Tensor | None] = [None] * n
        hidden = x.flatten(0, -2)
        if any(needs[6::5]):
            whole = product_with_gelu(of_low, hidden) if ctx.gelu else of_low.t() @ hidden
            of_a = [part if need else None for part, need in
                    zip(whole.split(ctx.ranks), needs[6::5], strict=True)]  # fmt: skip
        if any(needs[7::5]):
            each = zip(rows, low.split(ctx.ranks, 1), ctx.scales, strict=True)
            of_b = [(g.t() @ narrow).mul_(scale) for g, narrow, scale in each]
        shape, x_dtype = x.shape, x.dtype
        if not ctx.gelu:
            del hidden
        del x, low  # of a recomputed block nobody else holds them: free before the widest tensor
        of_x = None
        if needs[0]:
            of_x = rows[0] @ dense(weights[0], row_scales[0], x_dtype)
            for g, weight, row_scale in zip(rows[1:], weights[1:], row_scales[1:], strict=True):
                of_x.addmm_(g, dense(weight, row_scale, x_dtype))
            of_x.addmm_(of_low, _stacked(tuple(a), 0))
            if ctx.gelu:
                through_gelu_(of_x, hidden)
            of_x = of_x.view(shape)
        flat = [part for pair in zip(of_a, of_b, strict=True) for part in (None, None, None, *pair)]
        return of_x, None, None, *flat
