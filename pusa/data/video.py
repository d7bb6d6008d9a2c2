"""Pixels in and out: the door to decoding, fitting and writing. Knows no latents, no captions."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pusa.atomic import replacing
from pusa.data import readers
from pusa.data.geometry import FITS, fit
from pusa.data.media import Media, as_media
from pusa.data.packets import scan
from pusa.data.probe import (
    IMAGE_SUFFIXES,
    Probe,
    is_image,
    packets_of,
    probe,
    read_image,
    require_unchanged,
)
from pusa.data.timeline import Chosen, VideoError, choose_frames, num_windows

__all__ = [
    "FITS",
    "IMAGE_SUFFIXES",
    "Chosen",
    "Probe",
    "VideoError",
    "VideoInfo",
    "choose_frames",
    "fit",
    "num_windows",
    "probe",
    "read_at",
    "read_fitted",
    "read_frames",
    "require_quality",
    "to_signed",
    "to_uint8",
    "write_image",
    "write_video",
]


@dataclass(frozen=True)
class VideoInfo:
    """What a container holds: frame count, frames per second, height and width in pixels."""

    num_frames: int
    fps: float
    height: int
    width: int


def read_frames(
    path: Media | str | Path, num_frames: int | None = None
) -> tuple[Tensor, VideoInfo]:
    """Decode the first `num_frames` frames (all of them if None), in one pass and without a probe.

    Returns uint8 frames (T, 3, H, W) and the file's VideoInfo. An image is a one-frame clip.
    Read by PyAV: unlike decord it needs no proof, and notices damage.
    Raises VideoError for a missing, empty, truncated, damaged or too short file.
    """
    media = as_media(path)
    if is_image(media):
        pixels = read_image(media)
        total, fps, decoded = 1, 0.0, iter([pixels])
    else:
        packets = scan(media)
        total, fps = packets.num_frames, packets.fps
        decoded = readers.read_first(media, None if num_frames is None else min(num_frames, total))
    if num_frames is not None and total < num_frames:
        raise VideoError(
            f"{media}: has {total} frames, {num_frames} are needed; "
            "drop the clip or lower num_frames."
        )
    frames = _filled(decoded, total if num_frames is None else num_frames)
    return frames, VideoInfo(len(frames) if num_frames is None else total, fps, *frames.shape[2:])


def read_at(
    media: Media | str | Path, indices: Sequence[int], probe: Probe | None = None
) -> Tensor:
    """Frames (T, 3, H, W) uint8 at presentation indices, in any order and with repeats.

    probe: of this file; made if None. VideoError if the file cannot be read, ValueError for an
    index that it does not have.
    """
    return _read(as_media(media), indices, probe, lambda frames: frames)


def read_fitted(
    media: Media | str | Path,
    indices: Sequence[int],
    height: int,
    width: int,
    how: str = "crop",
    probe: Probe | None = None,
) -> Tensor:
    """`read_at`, then `fit`: (T, 3, height, width), with one source frame in memory at a time."""
    return _read(as_media(media), indices, probe, lambda frames: fit(frames, height, width, how))


def _read(
    media: Media, indices: Sequence[int], known: Probe | None, change: Callable[[Tensor], Tensor]
) -> Tensor:
    known = known or probe(media)
    require_unchanged(media, known)
    wanted = sorted(set(indices))
    if not wanted or wanted[0] < 0 or wanted[-1] >= known.num_frames:
        raise ValueError(
            f"{media}: has frames 0 to {known.num_frames - 1}, asked for {list(indices)}."
        )
    places: dict[int, list[int]] = {index: [] for index in wanted}
    for place, index in enumerate(indices):
        places[index].append(place)
    output: Tensor | None = None
    for index, pixels in zip(wanted, _decode(media, wanted, known), strict=True):
        frame = change(_as_tensor(pixels)[None].movedim(-1, 1))[0]
        if output is None:
            # In the layout of a decoded picture, or that of a fitted one: a turn takes longer than
            # decoding.
            output = torch.empty_like(frame.expand(len(indices), -1, -1, -1))
        output[places[index]] = frame
    assert output is not None
    return output


def _decode(media: Media, wanted: Sequence[int], known: Probe) -> Iterator[np.ndarray]:
    if known.reader == "image":
        return iter([read_image(media)])
    if known.reader == "decord":
        return readers.read_decord(media, wanted, known.height, known.width)
    return readers.read_pyav(media, packets_of(media, known), wanted)


def _filled(decoded: Iterator[np.ndarray], expected: int) -> Tensor:
    """Frames (T, 3, H, W) written where they stay: memory is slower than decoding."""
    frames, found = torch.empty(0), 0
    for pixels in decoded:
        if found == 0:
            frames = torch.empty((expected, *pixels.shape), dtype=torch.uint8)
        elif found == len(frames):
            frames = torch.cat([frames, torch.empty_like(frames)])
        frames[found] = _as_tensor(pixels)
        found += 1
    return frames[:found].movedim(-1, 1)


def _as_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels))


def to_signed(frames: Tensor) -> Tensor:
    """uint8 frames (T, 3, H, W) -> float32 (3, T, H, W) in [-1, 1], as the VAEs expect."""
    return frames.transpose(0, 1).float() / 127.5 - 1


def to_uint8(frames: Tensor) -> Tensor:
    """Frames (..., 3, T, H, W) in [-1, 1] -> uint8 (..., T, 3, H, W), rounded to nearest."""
    return ((frames.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).transpose(-4, -3)


def require_quality(crf: int) -> None:
    """ValueError for what H.264 does not have."""
    if not (isinstance(crf, int) and 0 <= crf <= 51):
        raise ValueError(f"crf={crf!r} is not a quality of H.264; use 0 (best) to 51.")


def write_video(
    path: str | Path, frames: Tensor | Iterable[Tensor], fps: float, crf: int = 12
) -> None:
    """Write frames as H.264 mp4; the file appears whole or not at all.

    frames: uint8 (T, 3, H, W), or pieces (t, 3, H, W) of them, each written when it comes, so that
    memory does not grow with length. crf: 0 (lossless but for the halved colour planes) to 51.
    One encoder thread: the same frames give the same bytes, whole or in pieces. ValueError for
    other frames, no frames, odd sides (the colour planes are halved), another crf or fps <= 0.
    """
    require_quality(crf)
    if fps <= 0:
        raise ValueError(f"fps={fps} is not a rate; use more than 0 frames per second.")
    pictures = _pictures([frames] if isinstance(frames, Tensor) else frames, path)
    first = next(pictures, None)
    if first is None:
        raise ValueError(f"{path}: there are no frames to write; a video needs at least one.")
    with replacing(path) as partial, av.open(str(partial), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "yuv420p"
        # x264's macroblock tree gives other bytes now and then for pictures as small as 32x32.
        stream.options = {
            "crf": str(crf), "threads": "1", "preset": "medium", "x264-params": "mbtree=0"
        }  # fmt: skip
        for pixels in chain([first], pictures):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _pictures(pieces: Iterable[Tensor], path: str | Path) -> Iterator[np.ndarray]:
    """Frame by frame (H, W, 3), all of the first one's size."""
    size = None
    for piece in pieces:
        if piece.ndim != 4 or piece.shape[1] != 3 or piece.dtype != torch.uint8:
            raise ValueError(
                f"{path}: frames are {piece.dtype} of the shape {tuple(piece.shape)}; expected "
                "uint8 (T, 3, H, W)."
            )
        height, width = size = size or piece.shape[2:]
        if piece.shape[2:] != size:
            raise ValueError(
                f"{path}: frames of {piece.shape[2]}x{piece.shape[3]} come after frames of "
                f"{height}x{width} (height x width); a video has one size."
            )
        if height % 2 or width % 2:
            raise ValueError(
                f"{path}: frames are {height}x{width} (height x width); H.264 needs even sides, "
                "cut or pad a row or column."
            )
        for pixels in piece.cpu().permute(0, 2, 3, 1):
            yield pixels.contiguous().numpy()


def write_image(path: str | Path, pixels: Tensor) -> None:
    """Write a uint8 image (3, H, W) as PNG, whole or not at all."""
    with replacing(path) as partial:
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(partial, format="PNG")
