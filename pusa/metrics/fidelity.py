"""Fidelity to the truth, by pixels: PSNR and SSIM of the first frame and of what it determines."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from pusa.metrics.registry import Sample, register

# Identical pictures would score infinity and spoil every mean. 60 dB is an RMS error of 1/4 of a
# grey level, beyond what an 8-bit codec reaches, so the cap touches nothing but identity.
PSNR_CAP = 60.0
SSIM_SIGMA, SSIM_RADIUS = 1.5, 5  # 11x11 window, as in Wang et al. 2004
SSIM_C1, SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


@register("psnr_first_frame")
def psnr_first_frame(sample: Sample) -> float:
    """PSNR of frame 0 against the truth's frame 0, in dB, at most PSNR_CAP."""
    everywhere = torch.ones_like(sample.determined[:1])
    return psnr(sample.video[:1], sample.truth[:1], everywhere)


@register("psnr_continuation")
def psnr_continuation(sample: Sample) -> float | None:
    """PSNR over all determined pixels of frames 1.., in dB; None if there are none."""
    determined = sample.determined[1:]
    if not determined.any():
        return None
    return psnr(sample.video[1:], sample.truth[1:], determined)


@register("ssim_first_frame")
def ssim_first_frame(sample: Sample) -> float:
    """Mean SSIM of frame 0 against the truth's frame 0, in [-1, 1]."""
    return float(ssim_map(sample.video[:1], sample.truth[:1]).mean())


@register("ssim_continuation")
def ssim_continuation(sample: Sample) -> float | None:
    """Mean of the SSIM map over the determined pixels of frames 1..; None if there are none.

    A window reaches up to 5 pixels (at small weight) beyond the determined region.
    """
    determined = sample.determined[1:]
    if not determined.any():
        return None
    return float(ssim_map(sample.video[1:], sample.truth[1:])[determined].mean())


def psnr(video: Tensor, truth: Tensor, region: Tensor) -> float:
    """PSNR in dB of uint8 (T, 3, H, W) over a region: bool (T, H, W), True somewhere."""
    squared = (video.double() - truth.double()).square().mean(1)  # (T, H, W)
    error = float(squared[region].mean())
    if error == 0:
        return PSNR_CAP
    return min(PSNR_CAP, 10 * math.log10(255**2 / error))


def ssim_map(video: Tensor, truth: Tensor) -> Tensor:
    """SSIM at every pixel, averaged over the channels: uint8 (T, 3, H, W) -> double (T, H, W).

    Wang, Bovik, Sheikh, Simoncelli 2004: Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03. At the
    border the window is cut and renormalised, so that every pixel of a tiny picture counts.
    """
    x, y = video.double(), truth.double()
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variance_x = _window_mean(x * x) - mean_x**2
    variance_y = _window_mean(y * y) - mean_y**2
    covariance = _window_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
    return (luminance * structure).mean(1)


def _window_mean(pictures: Tensor) -> Tensor:
    """Gaussian mean around every pixel, (T, 3, H, W) -> (T, 3, H, W)."""
    offsets = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=pictures.dtype)
    weights = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    for axis in (2, 3):
        shape = [1, 1, 1, 1]
        shape[axis] = len(weights)
        kernel = weights.view(shape)
        padding = [SSIM_RADIUS if size > 1 else 0 for size in shape[2:]]
        channels = pictures.shape[1]
        total = functional.conv2d(
            pictures, kernel.expand(channels, *shape[1:]), padding=padding, groups=channels
        )
        inside = functional.conv2d(torch.ones_like(pictures[:1, :1]), kernel, padding=padding)
        pictures = total / inside
    return pictures
