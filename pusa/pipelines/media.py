"""A user's images and clips: opened at the video's rate, and read where they are given."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pusa.data import video
from pusa.data.timeline import choose_frames, num_windows
from pusa.pipelines.placements import CONTEXT_GROUPS, Placement
from pusa.pipelines.positions import Timing

PACES = ("time", "frames")
_PIECE = 32  # frames read at once where a clip is passed on


@dataclass(frozen=True)
class Medium:
    """An image or clip. indices: of the file's frames, one for each frame at the video's rate; one
    of an image. note: what a user should know of its rate."""

    file: str
    probe: video.Probe
    indices: tuple[int, ...]
    note: str = ""

    @property
    def num_frames(self) -> int:
        return len(self.indices)

    def read(self, frames: Sequence[int], height: int, width: int, fit: str) -> Tensor:
        """Frames at the video's rate, in any order and with repeats, fitted: (T, 3, H, W) uint8."""
        chosen = [self.indices[frame] for frame in frames]
        return video.read_fitted(self.file, chosen, height, width, fit, self.probe)

    def pieces(self, frames: range, height: int, width: int, fit: str) -> Iterator[Tensor]:
        """`read` of a long stretch, a few frames at a time."""
        for start in range(0, len(frames), _PIECE):
            yield self.read(frames[start : start + _PIECE], height, width, fit)


def open_medium(file: str, fps: float, pace: str = "time") -> Medium:
    """Examine a file; VideoError, with the remedy, if it cannot be read.

    fps: the video's rate, to which a clip of another one is brought by time, so that things move as
    fast as in reality; of a lower rate some frames are shown more than once. pace "frames" takes
    them as they come.
    """
    if pace not in PACES:
        raise ValueError(f"pace={pace!r} is unknown; use {' or '.join(PACES)}.")
    found = video.probe(file)
    if found.num_frames == 1:
        return Medium(file, found, (0,))
    every = tuple(range(found.num_frames))
    if pace == "frames":
        factor = fps / found.fps
        told = "" if abs(factor - 1) < 0.01 else f", and play {factor:.3g} times as fast"
        return Medium(file, found, every, f"its frames are taken as they come{told}")
    count = num_windows(found.timestamps, 1, fps, 1)
    chosen = choose_frames(found.timestamps, count, fps, allow_repeat=True, name=file)
    note = ""
    if chosen.indices != every:
        note = f"{found.fps:.4g} frames per second are brought to {fps:g} by time"
        if len(set(chosen.indices)) < count:
            note += "; some are shown more than once"
    return Medium(file, found, chosen.indices, note)


@dataclass(frozen=True)
class Shown:
    """Pixels that are given, as the VAE is to see them.

    frames: uint8 (T, 3, H, W), context first; skip: how many latents that context makes, which are
    left out; latents: where the others stand, with a noise multiplier each.
    """

    frames: Tensor
    skip: int
    latents: range
    multipliers: tuple[float, ...]


def read_given(
    placements: Sequence[Placement],
    media: Mapping[str, Medium],
    timing: Timing,
    height: int,
    width: int,
    fit: str,
) -> tuple[Shown, ...]:
    """The pixels of placements, with what their encoding looks back on."""
    own = {
        placement: media[placement.given.file].read(placement.frames, height, width, fit)
        for placement in placements
    }
    behind = {
        placement: media[placement.given.file].read(placement.before, height, width, fit)
        for placement in placements
        if placement.before
    }
    return shown(placements, own, behind, timing)


def shown(
    placements: Sequence[Placement],
    own: Mapping[Placement, Tensor],
    behind: Mapping[Placement, Tensor],
    timing: Timing,
) -> tuple[Shown, ...]:
    """Pixels of placements, whose frames (T, 3, H, W) are there, as they are to be encoded.

    behind: frames of their own media before them; where there are none, "context" takes what others
    give before, the next frame held for what nobody does.
    """
    result = []
    for placement in placements:
        frames, latents = own[placement], placement.latents
        skip = 0
        if placement.encode_as == "alone" or not latents[0]:
            frames = frames if latents[0] == 0 else frames[:1]
        else:
            before = frames[:1]
            if placement.encode_as == "context":
                before = behind.get(placement)
                before = _past(latents[0], own, timing) if before is None else before
                before = _whole(frames[:1] if before is None else before, timing)
            skip = timing.spec.num_latent_frames(len(before))
            frames = torch.cat([before, frames])
        result.append(Shown(frames, skip, latents, placement.multipliers))
    return tuple(result)


def _past(latent: int, own: Mapping[Placement, Tensor], timing: Timing) -> Tensor | None:
    """What all conditions show of the frames before a latent frame, the last one held over gaps."""
    given: dict[int, Tensor] = {}
    for placement, frames in own.items():
        given |= dict(zip(timing.frames_of(placement.latents), frames, strict=True))
    end = timing.spec.pixel_frames(latent)[0]
    earlier = [frame for frame in given if frame < end]
    if not earlier:
        return None
    stride = timing.spec.temporal_stride
    begin = max(0, end - CONTEXT_GROUPS * stride - 1)
    held = [max((f for f in earlier if f <= t), default=min(earlier)) for t in range(begin, end)]
    return torch.stack([given[frame] for frame in held])


def _whole(before: Tensor, timing: Timing) -> Tensor:
    """Context of a whole number of groups and one: its first frame is held before it."""
    missing = (1 - len(before)) % timing.spec.temporal_stride
    return torch.cat([before[:1].expand(missing, -1, -1, -1), before])
