"""Frozen linear layers kept in 8 bits, with a scale per row, and made dense for each product anew.

Which layers of a network, how they are rounded, and the layer itself. Files are read elsewhere.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from pusa.models.precision import working_dtype

FLOAT8 = torch.float8_e4m3fn
LARGEST = {"int8": 127.0, "float8": 448.0}  # storage -> what the largest of a row becomes


def check_storage(storage: str | None) -> None:
    """ValueError for a name that is none."""
    if storage is not None and storage not in LARGEST:
        known = ", ".join(LARGEST)
        raise ValueError(f"model.storage={storage!r} is unknown; use null or one of {known}.")


def stored_layers(model: nn.Module) -> list[str]:
    """Names of the layers that are kept so: the linear ones of the blocks, but for what the model
    lists in keep_float32 (parts of names) and, as its path of the time, in keep_dense."""
    keep = (*getattr(model, "keep_float32", ()), *getattr(model, "keep_dense", ()))
    return [
        f"blocks.{name}"
        for name, module in cast(nn.Module, model.blocks).named_modules()
        if isinstance(module, nn.Linear) and not any(part in name for part in keep)
    ]


def pack(weight: Tensor, storage: str) -> tuple[Tensor, Tensor]:
    """weight (out, in) -> its 8-bit numbers, as int8, and the scale of each row (out, 1), float32.

    "int8": whole steps, 127 of them on each side, rounded to nearest; "float8": the bytes of
    float8_e4m3fn. A row's largest is exact but for the scale's own rounding.
    """
    wide = weight.detach().float()
    tiny = torch.finfo(torch.float32).tiny  # of a row of zeros
    largest = LARGEST[storage]
    scale = (wide.abs().amax(1, keepdim=True) / largest).clamp_min(tiny)
    wide = (wide / scale).clamp_(-largest, largest)
    if storage == "int8":
        return wide.round_().to(torch.int8), scale
    return wide.to(FLOAT8).view(torch.int8), scale


def dense(numbers: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """8-bit numbers (out, in), int8 or float8, times their rows' scale (out, 1), rounded once to
    dtype; a weight that has no scale is itself, in dtype."""
    if scale is None:
        return numbers.to(dtype)
    return numbers.to(dtype).mul_(scale)  # the first is exact: both have at most 8 bits


class StoredLinear(nn.Linear):
    """A frozen nn.Linear of whose weight `pack` made 8-bit numbers.

    weight: (out, in) int8, also for "float8", so that what casts or sends a module's parameters
    without knowing float8 leaves it alone; scale: (out, 1) float32; bias: as it was.
    """

    def __init__(self, layer: nn.Linear, storage: str):
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        numbers, scale = pack(layer.weight, storage)
        self.storage = storage
        self.weight = nn.Parameter(numbers, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = layer.bias

    @property
    def numbers(self) -> Tensor:
        """The weight's 8-bit numbers, int8 or float8: without the scale."""
        return self.weight.view(FLOAT8) if self.storage == "float8" else self.weight

    def dense_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return dense(self.numbers, self.scale, dtype)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """In autocast's dtype if it is on, else x's."""
        dtype = working_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            x, bias = x.to(dtype), None if self.bias is None else self.bias.to(dtype)
            if torch.compiler.is_compiling():  # decides itself what is kept
                return functional.linear(x, self.dense_weight(dtype), bias)
            return cast(Tensor, _StoredLinear.apply(x, self.numbers, self.scale, bias))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, storage={self.storage}"


class _StoredLinear(torch.autograd.Function):
    """Keeps the 8-bit numbers for the backward pass; torch's own would keep the dense weight."""

    @staticmethod
    def forward(ctx, x: Tensor, numbers: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(numbers, scale)
        return functional.linear(x, dense(numbers, scale, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        numbers, scale = ctx.saved_tensors
        of_x = gradient @ dense(numbers, scale, gradient.dtype) if ctx.needs_input_grad[0] else None
        of_bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[3] else None
        return of_x, None, None, of_bias


def weight_of(layer: nn.Linear) -> Tensor:
    """The weight that a layer works with, dense."""
    return layer.dense_weight() if isinstance(layer, StoredLinear) else layer.weight


def store_layers(model: nn.Module, storage: str) -> None:
    """Put a `StoredLinear` in the place of each of its `stored_layers`, one after the other."""
    for name in stored_layers(model):
        model.set_submodule(name, StoredLinear(cast(nn.Linear, model.get_submodule(name)), storage))
