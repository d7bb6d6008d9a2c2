"""How far frames have come from those that they go on from: colours, contrast, detail.

Frames are uint8 (T, 3, H, W), of both any number. Nothing here compares pixel with pixel, so motion
alone changes none of these much.
"""

import torch
from torch import Tensor
from torch.nn import functional


def color_shift(frames: Tensor, reference: Tensor) -> float:
    """Absolute difference of the mean colour, averaged over the channels, in grey levels."""
    means = [clip.double().mean((0, 2, 3)) for clip in (frames, reference)]
    return float((means[0] - means[1]).abs().mean())


def contrast_ratio(frames: Tensor, reference: Tensor) -> float:
    """Standard deviation over a picture, averaged over channels and frames, to the reference's.

    1: the same; below: faded. Infinite against flat pictures.
    """
    spreads = [clip.double().std((2, 3)).mean() for clip in (frames, reference)]
    return float(spreads[0] / spreads[1])


def detail_ratio(frames: Tensor, reference: Tensor) -> float:
    """Mean absolute Laplacian of the pictures against the reference's.

    1: as sharp; below: blurred; above: noise or sharpened edges. Infinite against flat pictures.
    """
    return _laplacian(frames) / _laplacian(reference)


def _laplacian(frames: Tensor) -> float:
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.double)
    pictures = frames.double().flatten(0, 1)[:, None]
    return float(functional.conv2d(pictures, kernel[None, None]).abs().mean())
