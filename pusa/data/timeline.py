"""Which frames of a clip make a sample: chosen by the time at which they are shown.

A model is trained at one native rate. A clip of another rate is resampled by time, so that things
move as fast as in reality. Decodes nothing.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Where = Literal["first", "middle", "random"] | tuple[Literal["window"], int]


class VideoError(ValueError):
    """A media file that cannot be used, with its path, what is wrong and what to do."""


@dataclass(frozen=True)
class Chosen:
    """Frames of a sample, as presentation indices, and how much faster than in reality they play.

    factor: 1 when resampled by time; model rate / clip rate when taken frame by frame.
    """

    indices: tuple[int, ...]
    factor: float


def rate(timestamps: Sequence[float]) -> float:
    """Average frames per second of a clip; 0 for a single frame."""
    if len(timestamps) < 2:
        return 0.0
    return (len(timestamps) - 1) / (timestamps[-1] - timestamps[0])


def is_variable(timestamps: Sequence[float]) -> bool:
    """Whether some frame is shown more than a quarter of a frame off a constant rate.

    Less is the rounding of containers that count milliseconds (Matroska) or hundredths (GIF).
    """
    fps = rate(timestamps)
    start = timestamps[0] if timestamps else 0.0
    return any(abs((t - start) * fps - i) > 0.25 for i, t in enumerate(timestamps))


def choose_frames(
    timestamps: Sequence[float],
    num_frames: int,
    fps: float,
    where: Where = "first",
    generator: torch.Generator | None = None,
    max_stretch: float = 0.05,
    allow_repeat: bool = False,
    stride: int | None = None,
    name: object = "the clip",
) -> Chosen:
    """Choose `num_frames` frames at the model's native `fps` from a clip.

    timestamps: seconds at which the clip's frames are shown, ascending (Probe.timestamps). For the
    times t0 + k / fps the frame shown then is taken: the last one whose time is not later by more
    than half the wait for it, or half a frame of the clip's average rate if that is less. For a
    constant rate that is the nearest frame; a picture that stays long is not left early. A clip of
    constant rate within max_stretch of `fps` is taken frame by frame instead.

    where: "first"; "middle"; "random" (needs a generator; every frame that leaves room is equally
    likely to begin); ("window", i): the i-th of `num_windows` that begin `stride` frames of the
    model (default num_frames) apart. name: what errors call the clip.

    VideoError if the clip is too short, or if its rate is so low that frames would be repeated,
    unless allow_repeat says so or max_stretch lets it play faster. An image, a clip of one frame,
    serves num_frames == 1 only.
    """
    times = _checked(timestamps, num_frames, fps, max_stretch)
    clip_fps, by_frame = _pace(times, num_frames, fps, max_stretch, allow_repeat, name)
    grid = range(num_frames)
    last = _capacity(times, fps, clip_fps, by_frame) - num_frames
    if last < 0:
        raise VideoError(_too_short(times, num_frames, fps, clip_fps, by_frame, name))
    if by_frame:
        first = _begin(last + 1, where, generator, stride or num_frames)
        return Chosen(tuple(first + k for k in grid), fps / clip_fps if clip_fps else 1.0)
    if isinstance(where, tuple):
        begin = times[0] + _begin(last + 1, where, generator, stride or num_frames) / fps
    else:
        latest = _end(times, clip_fps) - (num_frames - 1) / fps
        begin = times[_begin(bisect_right(times, latest), where, generator, 0)]
    switches = [times[0], *(b - _early(b - a, clip_fps) for a, b in itertools.pairwise(times))]
    indices = tuple(bisect_right(switches, begin + k / fps) - 1 for k in grid)
    return Chosen(indices, 1.0)


def num_windows(
    timestamps: Sequence[float],
    num_frames: int,
    fps: float,
    stride: int | None = None,
    max_stretch: float = 0.05,
    allow_repeat: bool = False,
) -> int:
    """How many windows of `num_frames` frames at `fps`, `stride` frames apart, a clip holds.

    0 if it is too short. VideoError as in `choose_frames` for a clip of too low a rate.
    """
    times = _checked(timestamps, num_frames, fps, max_stretch)
    clip_fps, by_frame = _pace(times, num_frames, fps, max_stretch, allow_repeat, "the clip")
    spare = _capacity(times, fps, clip_fps, by_frame) - num_frames
    return 0 if spare < 0 else 1 + spare // (stride or num_frames)


def _checked(
    timestamps: Sequence[float], num_frames: int, fps: float, max_stretch: float
) -> list[float]:
    if num_frames < 1 or fps <= 0 or max_stretch < 0:
        raise ValueError(
            f"num_frames={num_frames}, fps={fps}, max_stretch={max_stretch}: "
            "at least 1 frame, a rate above 0 and a stretch of 0 or more are needed."
        )
    times = list(timestamps)
    if not times or any(b <= a for a, b in itertools.pairwise(times)):
        raise ValueError("timestamps must ascend and hold at least one; use Probe.timestamps.")
    return times


def _pace(
    times: list[float],
    num_frames: int,
    fps: float,
    max_stretch: float,
    allow_repeat: bool,
    name: object,
) -> tuple[float, bool]:
    """The clip's average rate, and whether it is taken frame by frame."""
    if len(times) == 1:
        return 0.0, True
    clip_fps = rate(times)
    factor = fps / clip_fps
    close = abs(factor - 1) <= max_stretch
    if factor > 1 + max_stretch and not allow_repeat and num_frames > 1:
        raise VideoError(
            f"{name}: has {clip_fps:.4g} frames per second, the model {fps:.4g}; frame by frame it "
            f"would play {factor:.3f} times too fast, by time frames would be repeated. Drop it, "
            f"or allow it by max_stretch={math.ceil(100 * factor - 100) / 100:g} (data.encode)."
        )
    return clip_fps, close and not is_variable(times)


def _early(gap: float, clip_fps: float) -> float:
    """How long before its time a frame is taken that follows `gap` seconds after the last one.

    Half, and a thousandth for the rounding of floats: exactly halfway means the later frame.
    """
    return 0.501 * min(gap, 1 / clip_fps)


def _end(times: list[float], clip_fps: float) -> float:
    """The latest time for which the clip has a frame: half a frame after its last one's."""
    return times[-1] + _early(1 / clip_fps, clip_fps)


def _capacity(times: list[float], fps: float, clip_fps: float, by_frame: bool) -> int:
    """How many frames at the model's rate the whole clip gives."""
    if by_frame:
        return len(times)
    return int((_end(times, clip_fps) - times[0]) * fps) + 1


def _begin(choices: int, where: Where, generator: torch.Generator | None, stride: int) -> int:
    """Which of `choices` places to begin at."""
    if where == "first":
        return 0
    if where == "middle":
        return (choices - 1) // 2
    if where == "random":
        if generator is None:
            raise ValueError("where='random' needs a generator; use rng.generator_for.")
        return int(torch.randint(choices, (), generator=generator))
    if not isinstance(where, tuple) or where[0] != "window":
        raise ValueError(f"where={where!r} is unknown; use first, middle, random or (window, i).")
    count = 1 + (choices - 1) // stride
    if not 0 <= where[1] < count:
        raise ValueError(f"window {where[1]} does not exist; the clip has {count} (num_windows).")
    return where[1] * stride


def _too_short(
    times: list[float], num_frames: int, fps: float, clip_fps: float, by_frame: bool, name: object
) -> str:
    has = _capacity(times, fps, clip_fps, by_frame)
    if len(times) == 1:
        return f"{name}: is a single picture, {num_frames} frames are needed; use it with 1 frame."
    seconds, needed = len(times) / clip_fps, num_frames / (clip_fps if by_frame else fps)
    return (
        f"{name}: lasts {seconds:.2f} s, {has} frames at {fps:.4g} per second; {num_frames} frames "
        f"({needed:.2f} s) are needed. Drop the clip, lower num_frames, or add a shorter bucket "
        "(data.encode)."
    )
