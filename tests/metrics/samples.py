"""Samples for the metric tests: rendered toy clips and degradations of them."""

import torch
from torch import Tensor
from torch.nn import functional

from pusa.data import toy
from pusa.metrics.registry import Sample
from pusa.rng import generator_for


def scene(index: int, split: str = "heldout") -> toy.Scene:
    return toy.make_scene(5, split, index)


def sample_of_scene(index: int, video: Tensor | None = None, split: str = "heldout") -> Sample:
    """The sample of a scene; its video is the truth unless another is given."""
    clip = scene(index, split)
    drawn = toy.render(clip)
    frames = drawn.frames if video is None else video
    return Sample(frames, drawn.frames, drawn.sprite, drawn.determined, clip.direction, clip.pan)


def still(frames: Tensor) -> Tensor:
    """Frame 0, repeated."""
    return frames[:1].expand_as(frames).contiguous()


def degraded(frames: Tensor, index: int, sigma: float = 8.0) -> Tensor:
    """A 3x3 blur, then Gaussian noise of `sigma` grey levels."""
    blurred = functional.avg_pool2d(
        functional.pad(frames.float(), (1, 1, 1, 1), mode="replicate"), 3, stride=1
    )
    noise = torch.randn(frames.shape, generator=generator_for(0, "tests/noise", index))
    return (blurred + sigma * noise).round().clamp(0, 255).to(torch.uint8)
