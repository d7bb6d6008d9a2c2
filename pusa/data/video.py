"""Pixels in and out: the only importer of decord and PyAV. Knows no latents and no captions."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pusa.atomic import replacing

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
FITS = ("crop", "stretch", "pad")


class VideoError(ValueError):
    """A media file that cannot be used, with its path, what is wrong and what to do."""


@dataclass(frozen=True)
class VideoInfo:
    """What a container holds: frame count, frames per second, height and width in pixels."""

    num_frames: int
    fps: float
    height: int
    width: int


def read_frames(path: str | Path, num_frames: int | None = None) -> tuple[Tensor, VideoInfo]:
    """Decode the first `num_frames` frames (all of them if None) with decord.

    Returns uint8 frames (T, 3, H, W) and the file's VideoInfo. An image is a one-frame clip.
    Raises VideoError for a missing, empty, truncated or too short file.
    """
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path}: no such file; check the path or the manifest that names it.")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes); copy or export it again.")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        frames = _read_image(path)
        info = VideoInfo(1, 0.0, frames.shape[2], frames.shape[3])
    else:
        frames, info = _read_video(path, num_frames)
    if num_frames is not None and len(frames) < num_frames:
        raise VideoError(
            f"{path}: has {info.num_frames} frames, {num_frames} are needed; "
            "drop the clip or lower data.num_frames."
        )
    return frames[:num_frames], info


def _read_image(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise VideoError(f"{path}: not a readable image ({error}); export it again.") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]


def _read_video(path: Path, num_frames: int | None) -> tuple[Tensor, VideoInfo]:
    # Imported late: decord starts native threads, and only processes that decode should pay.
    import decord

    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        total = len(reader)
        stop = total if num_frames is None else min(num_frames, total)
        pixels = reader.get_batch(range(stop)).asnumpy()
        fps = float(reader.get_avg_fps())
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise VideoError(
            f"{path}: cannot be decoded, it is truncated or not a video ({first_line}); "
            "remove it from the data set or export it again."
        ) from error
    frames = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return frames, VideoInfo(total, fps, frames.shape[2], frames.shape[3])


def fit(frames: Tensor, height: int, width: int, how: str = "crop") -> Tensor:
    """Bring uint8 frames (T, 3, H, W) to (T, 3, height, width), antialiased.

    crop: cover, then cut the centre. stretch: ignore the aspect. pad: contain, black borders.
    """
    if how not in FITS:
        raise ValueError(f"fit={how!r} is unknown; use one of {', '.join(FITS)}.")
    source_height, source_width = frames.shape[-2:]
    if (source_height, source_width) == (height, width):
        return frames
    target = (height, width)
    if how != "stretch":
        choose = max if how == "crop" else min
        scale = choose(height / source_height, width / source_width)
        target = (round(source_height * scale), round(source_width * scale))
    resized = functional.interpolate(
        frames.float(), size=target, mode="bicubic", antialias=True, align_corners=False
    )
    resized = resized.round().clamp(0, 255).to(torch.uint8)
    top, left = (target[0] - height) // 2, (target[1] - width) // 2
    if how == "pad":
        return functional.pad(
            resized, (-left, width - target[1] + left, -top, height - target[0] + top)
        )
    return resized[..., top : top + height, left : left + width]


def to_signed(frames: Tensor) -> Tensor:
    """uint8 frames (T, 3, H, W) -> float32 (3, T, H, W) in [-1, 1], as the VAEs expect."""
    return frames.transpose(0, 1).float() / 127.5 - 1


def to_uint8(frames: Tensor) -> Tensor:
    """Frames (..., 3, T, H, W) in [-1, 1] -> uint8 (..., T, 3, H, W), rounded to nearest."""
    return ((frames.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).transpose(-4, -3)


def write_video(path: str | Path, frames: Tensor, fps: float, crf: int = 12) -> None:
    """Write uint8 frames (T, 3, H, W) as H.264 mp4; the file appears whole or not at all.

    One encoder thread: the same frames give the same bytes.
    """
    height, width = frames.shape[-2:]
    with replacing(path) as partial, av.open(str(partial), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        # x264's macroblock tree gives other bytes now and then for pictures as small as 32x32.
        stream.options = {
            "crf": str(crf), "threads": "1", "preset": "medium", "x264-params": "mbtree=0"
        }  # fmt: skip
        for pixels in frames.permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def write_image(path: str | Path, pixels: Tensor) -> None:
    """Write a uint8 image (3, H, W) as PNG, whole or not at all."""
    with replacing(path) as partial:
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(partial, format="PNG")
