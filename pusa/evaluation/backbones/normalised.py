"""An image network behind the mean and deviation of the colours that it was trained with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class Normalised:
    """network of (pixels - mean) / deviation, channel by channel; pixels (N, 3, h, w) in [0, 1]."""

    network: Callable[[Tensor], Tensor]
    mean: Sequence[float]
    deviation: Sequence[float]

    def __call__(self, pixels: Tensor) -> Tensor:
        mean, deviation = (
            torch.tensor(values, device=pixels.device)[:, None, None]
            for values in (self.mean, self.deviation)
        )
        return self.network((pixels - mean) / deviation)
