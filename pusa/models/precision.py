"""The dtype in which products are taken. A leaf: imports nothing of ours."""

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Of the autocast that is on where x is, None if none is."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def working_dtype(x: Tensor) -> torch.dtype:
    """In which products with x, a weight or what is multiplied with one, are taken: autocast's if
    that is on, else its own."""
    return autocast_dtype(x) or x.dtype
