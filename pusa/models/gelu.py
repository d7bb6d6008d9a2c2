"""GELU (tanh) between two linear layers, in place and in parts: its output, as wide as the
feed-forward, need not exist whole."""

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 4096  # of a wide tensor that is recomputed, at once


def gelu_(x: Tensor) -> Tensor:
    """GELU (tanh) in place."""
    return torch.ops.aten.gelu_(x, approximate="tanh")


def product_with_gelu(left: Tensor, hidden: Tensor) -> Tensor:
    """left^T @ gelu(hidden), (K, ffn), of rows (N, K) and (N, ffn), without gelu(hidden) whole."""
    found = left.new_zeros(left.shape[1], hidden.shape[1])
    for part, wide in zip(left.split(ROWS), hidden.split(ROWS), strict=True):
        found.addmm_(part.t(), functional.gelu(wide, approximate="tanh"))
    return found


def through_gelu_(gradient: Tensor, hidden: Tensor) -> Tensor:
    """The gradient of gelu's output -> that of its input, in place."""
    backward = torch.ops.aten.gelu_backward.grad_input
    return backward(gradient, hidden, approximate="tanh", grad_input=gradient)
