"""Cosines between the features of frames: what four dimensions are made of.

Features have length 1, and a negative cosine counts as 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pusa.evaluation.metrics.frames import Frames, batches

MAX_WEIGHT, MEAN_WEIGHT, MIN_WEIGHT = 0.4, 0.3, 0.3  # VBench-I2V's


@torch.inference_mode()
def features_of(video: Frames, network: Callable[[Tensor], Tensor], batch_size: int) -> Tensor:
    """Features (T, D) of length 1. network: uint8 frames (t, 3, H, W) -> (t, D)."""
    return torch.cat([unit(network(frames)) for frames in batches(video, batch_size)])


def unit(features: Tensor) -> Tensor:
    """Features (N, D) scaled to length 1, float32 on the CPU."""
    return F.normalize(features.float(), dim=-1).cpu()


def consistency(features: Tensor) -> float:
    """Mean over the frames after the first of their cosines with the last frame before and with
    the first frame; features: (T, D) with T >= 2."""
    both = _cosines(features[:-1], features[1:]) + _cosines(features[:1], features[1:])
    return (both / 2).mean().item()


def conformity(features: Tensor, reference: Tensor) -> float:
    """The best likeness of any frame to the reference (1, D), and the mean and the worst likeness
    of neighbours, weighted; features: (T, D) with T >= 2."""
    likeness = _cosines(reference, features)
    neighbours = _cosines(features[:-1], features[1:])
    return (
        MAX_WEIGHT * likeness.max() + MEAN_WEIGHT * neighbours.mean()
        + MIN_WEIGHT * neighbours.min()
    ).item()  # fmt: skip


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    return F.cosine_similarity(first, second).double().clamp(min=0)
