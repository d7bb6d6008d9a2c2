"""Resizing and cropping as the benchmark's transforms do it, without torchvision.

The published numbers were made when torchvision resized tensors without smoothing them first
("board"); since 0.17 it smooths by default ("modern"), which changes i2v_subject and i2v_background
alone: the other dimensions ask for no smoothing whatever the version. Sizes and crops round as
torchvision documents it: the longer side is cut off to whole pixels, a crop's corner is rounded.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

Resize = Literal["board", "modern"]
Interpolation = Literal["bilinear", "bicubic"]


def to_size(
    pixels: Tensor, height: int, width: int, how: Interpolation, antialias: bool = False
) -> Tensor:
    """Pixels (N, 3, H, W) -> float32 (N, 3, height, width); bicubic may leave the range."""
    if pixels.shape[-2:] == (height, width):
        return pixels.float()
    return F.interpolate(
        pixels.float(), (height, width), mode=how, align_corners=False, antialias=antialias
    )


def shorter_side(pixels: Tensor, size: int, how: Interpolation, antialias: bool = False) -> Tensor:
    """Pixels (N, 3, H, W) -> float32 with the shorter side `size`."""
    height, width = _sides(pixels.shape[-2], pixels.shape[-1], size)
    return to_size(pixels, height, width, how, antialias)


def centre_crop(pixels: Tensor, size: int) -> Tensor:
    """(..., H, W) -> (..., size, size)."""
    top, left = (round((side - size) / 2.0) for side in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]


def read_reference(path: str | Path, size: int, crop: int | None) -> Tensor:
    """An input image as float32 (1, 3, h, w) in [0, 1], resized by Pillow, which always smooths.

    crop: None squashes the image to size x size; else the shorter side becomes `size` and the
    middle `crop` x `crop` is cut out. ValueError if it is no readable image.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path}: not a readable reference image ({error}).") from error
    height, width = (size, size) if crop is None else _sides(image.height, image.width, size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).movedim(-1, 0)[None] / 255.0
    return pixels if crop is None else centre_crop(pixels, crop)


def _sides(height: int, width: int, size: int) -> tuple[int, int]:
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size
