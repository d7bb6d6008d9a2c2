"""The frames of a video, one after the other, of a file or in memory. Scores nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pusa.data import readers
from pusa.data.media import as_media
from pusa.data.packets import scan
from pusa.data.video import read_frames

# Of a clip that is held while all dimensions look at it: 81 frames of 1920x1080 take half of this,
# and every process of a node can have as much beside its networks.
HELD_BYTES = 2**30


class Frames(Protocol):
    """A video that can be gone through again and again: frames are uint8 (3, H, W), upright RGB."""

    @property
    def fps(self) -> float: ...

    @property
    def num_frames(self) -> int: ...

    def __iter__(self) -> Iterator[Tensor]: ...


class FileFrames:
    """The frames of a video file, decoded anew in each pass. VideoError for an unreadable file."""

    def __init__(self, path: str | Path):
        self.media = as_media(path)
        packets = scan(self.media)
        self.fps, self.num_frames = packets.fps, packets.num_frames

    def __iter__(self) -> Iterator[Tensor]:
        for pixels in readers.read_first(self.media, None):
            yield torch.from_numpy(np.ascontiguousarray(pixels)).movedim(-1, 0)


@dataclass(frozen=True)
class TensorFrames:
    """Frames in memory: pixels uint8 (T, 3, H, W)."""

    pixels: Tensor
    fps: float = 16.0

    @property
    def num_frames(self) -> int:
        return len(self.pixels)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.pixels)


def open_frames(path: str | Path, held_bytes: int = HELD_BYTES) -> Frames:
    """A file's frames, decoded once and held if they take up to `held_bytes`, else decoded in each
    pass. VideoError for an unreadable file."""
    streamed = FileFrames(path)
    if next(iter(streamed)).numel() * streamed.num_frames > held_bytes:
        return streamed
    pixels, _ = read_frames(streamed.media)
    return TensorFrames(pixels, streamed.fps)


def batches(video: Frames, size: int) -> Iterator[Tensor]:
    """Up to `size` frames at a time: uint8 (t, 3, H, W)."""
    kept: list[Tensor] = []
    for frame in video:
        kept.append(frame)
        if len(kept) == size:
            yield torch.stack(kept)
            kept = []
    if kept:
        yield torch.stack(kept)


def windows(video: Frames, size: int, step: int = 1) -> Iterator[Tensor]:
    """Every `step`-th frame, `size` + 1 at a time: uint8 (t, 3, H, W) with t >= 2.

    A window begins with the frame that the one before ended with, so that each pair of neighbours
    is in exactly one.
    """
    kept: list[Tensor] = []
    for index, frame in enumerate(video):
        if index % step:
            continue
        kept.append(frame)
        if len(kept) == size + 1:
            yield torch.stack(kept)
            kept = kept[-1:]
    if len(kept) > 1:
        yield torch.stack(kept)
