"""Sizes: fitting frames to a height and width, and buckets of clip lengths and shapes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

FITS = ("crop", "stretch", "pad")
_CHUNK = 2**24  # float values resized at once: 64 MB


@dataclass(frozen=True)
class Bucket:
    """A shape that batches come in: num_frames, and height and width in pixels."""

    num_frames: int
    height: int
    width: int


def fit(frames: Tensor, height: int, width: int, how: str = "crop") -> Tensor:
    """Bring uint8 frames (T, 3, H, W) to (T, 3, height, width), antialiased.

    crop: cover, then cut the centre. stretch: ignore the aspect. pad: contain, black borders.
    Few frames are resized at a time, so that the memory above input and output stays small.
    """
    if how not in FITS:
        raise ValueError(f"fit={how!r} is unknown; use one of {', '.join(FITS)}.")
    if frames.shape[-2:] == (height, width):
        return frames
    fitted = frames.new_zeros((*frames.shape[:-2], height, width))
    chunk = max(1, _CHUNK // max(1, frames[:1].numel()))
    for start in range(0, len(frames), chunk):
        _fit_into(fitted[start : start + chunk], frames[start : start + chunk], how)
    return fitted


def _fit_into(output: Tensor, frames: Tensor, how: str) -> None:
    height, width = output.shape[-2:]
    source_height, source_width = frames.shape[-2:]
    target = (height, width)
    if how != "stretch":
        choose = max if how == "crop" else min
        scale = choose(height / source_height, width / source_width)
        target = (max(1, round(source_height * scale)), max(1, round(source_width * scale)))
    resized = functional.interpolate(
        frames.float(), size=target, mode="bicubic", antialias=True, align_corners=False
    )
    resized = resized.round().clamp(0, 255).to(torch.uint8)
    top, left = (target[0] - height) // 2, (target[1] - width) // 2
    if how == "pad":
        output[..., -top : target[0] - top, -left : target[1] - left] = resized
    else:
        output.copy_(resized[..., top : top + height, left : left + width])


def choose_bucket(
    num_frames: int, height: int, width: int, buckets: Sequence[Bucket]
) -> Bucket | None:
    """The bucket for a clip of height x width with `num_frames` frames at the model's rate.

    Of the buckets that the clip can fill, those with the most frames; of these the one closest in
    aspect (by the logarithm of the ratio), then the largest, then the widest. None if the clip is
    too short for all.
    """
    aspect = math.log(width / height)

    def order(bucket: Bucket) -> tuple[float, ...]:
        # Rounded, so that 2:1 and 1:2 are equally far from a square whatever the last digit.
        distance = round(abs(math.log(bucket.width / bucket.height) - aspect), 9)
        return -bucket.num_frames, distance, -bucket.height * bucket.width, -bucket.width

    return min((b for b in buckets if b.num_frames <= num_frames), key=order, default=None)


def aspect_buckets(
    area: int, multiple: int, ratios: Sequence[float], num_frames: Sequence[int] = (1,)
) -> tuple[Bucket, ...]:
    """Buckets of every width / height ratio and clip length, of nearly but never above `area`.

    area: pixels, such as 480 * 832; multiple: what height and width must divide by. The shape next
    to each ratio is taken; equal ones appear once. ValueError if the area holds no such shape.
    """
    shapes = dict.fromkeys(_shape(area, multiple, ratio) for ratio in ratios)
    return tuple(Bucket(n, *shape) for n in num_frames for shape in shapes)


def _shape(area: int, multiple: int, ratio: float) -> tuple[int, int]:
    """The (height, width) of at most `area` pixels closest to a ratio, then largest."""
    ideal = math.sqrt(area / ratio) / multiple, math.sqrt(area * ratio) / multiple
    heights, widths = ({math.floor(x + 1e-9), math.ceil(x - 1e-9)} for x in ideal)
    shapes = [
        (h * multiple, w * multiple)
        for h in heights
        for w in widths
        if h and w and h * w * multiple**2 <= area
    ]
    if not shapes:
        raise ValueError(
            f"no shape of ratio {ratio:.3g} in multiples of {multiple} fits into {area} pixels; "
            "raise the area or drop the ratio."
        )
    return min(shapes, key=lambda s: (abs(math.log(s[1] / s[0] / ratio)), -s[0] * s[1], s))
