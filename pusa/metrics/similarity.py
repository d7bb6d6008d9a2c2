"""Is it still the same background, the same subject? Structure of a region against the truth's.

VBench asks a vision backbone whether the video keeps the condition image's content. Here the true
continuation is known, so the question needs no backbone: the regions are compared directly.
"""

import torch
from torch import Tensor

from pusa.metrics.registry import Sample, register

# SSIM's C3 = C2 / 2: keeps flat regions (a night sky) from turning noise into a verdict.
STABILISER = (0.03 * 255) ** 2 / 2
FREE = 0.02  # below this coverage a pixel is background
COVERED = 0.5  # above this coverage a pixel is subject


@register("background_similarity")
def background_similarity(sample: Sample) -> float | None:
    """Mean structure similarity of the determined background over frames 1.., in [0, 1]."""
    return _over_frames(sample, sample.determined & (sample.sprite < FREE))


@register("subject_similarity")
def subject_similarity(sample: Sample) -> float | None:
    """Mean structure similarity of the sprite, where the truth has it, over frames 1.., in [0, 1].

    A sprite that is lost, repainted or in the wrong place scores near 0.
    """
    return _over_frames(sample, sample.sprite > COVERED)


def _over_frames(sample: Sample, region: Tensor) -> float | None:
    """Mean over frames 1.. whose region is not empty; None if all are."""
    scores = [
        structure_similarity(video[:, inside], truth[:, inside])
        for video, truth, inside in zip(sample.video[1:], sample.truth[1:], region[1:], strict=True)
        if inside.any()
    ]
    return sum(scores) / len(scores) if scores else None


def structure_similarity(pixels: Tensor, truth: Tensor) -> float:
    """Zero-mean normalised cross-correlation of two sets of pixels, clipped at 0.

    pixels, truth: uint8 (3, P), the same P places of two pictures. Each channel's mean is removed,
    then all channels are correlated together: the structure term of SSIM with the region as its
    one window, (cov + C3) / (std std + C3). Blind to brightness and contrast, which PSNR and SSIM
    see; 1 for equal regions, flat ones included.
    """
    x, y = (p.double() - p.double().mean(1, keepdim=True) for p in (pixels, truth))
    covariance = (x * y).mean()
    deviations = torch.sqrt(x.square().mean() * y.square().mean())
    return float(((covariance + STABILISER) / (deviations + STABILISER)).clamp(0, 1))
