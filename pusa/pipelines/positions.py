"""Where something stands in a video, as people write it: `last`, `2.5s`, `latent:20`, `0..3s`."""

import re
from dataclasses import dataclass

from pusa.types import LatentSpec

_POINT = re.compile(r"(?:(?P<unit>frame|latent):)?(?P<number>-?\d+(?:\.\d+)?)(?P<seconds>s)?")
LAST = "last"
GRAMMAR = "a frame (80, -1, last), seconds (2.5s), latent:K, or a range of them (0..3s, -13..last)"


@dataclass(frozen=True)
class Timing:
    """What positions are counted in: pixel frames, their rate, and how latents fold them."""

    spec: LatentSpec
    num_frames: int
    fps: float

    @property
    def num_latents(self) -> int:
        """Whole ones: a user's clip may have frames left over at its end."""
        return (self.num_frames - 1) // self.spec.temporal_stride + 1

    def frames_of(self, latents: range) -> range:
        """Pixel frames that neighbouring latent frames cover."""
        first, last = self.spec.pixel_frames(latents[0]), self.spec.pixel_frames(latents[-1])
        return range(first[0], last[-1] + 1)


@dataclass(frozen=True)
class Span:
    """Pixel frames first to last, both included. point: one place was written, not a range."""

    first: int
    last: int
    point: bool

    @property
    def num_frames(self) -> int:
        return self.last - self.first + 1


def read_span(text: str, timing: Timing) -> Span:
    """Pixel frames of a written position; a latent frame is all that it covers.

    Negative numbers count from the end: -1 is the last frame, -2s two seconds before the end. An
    end of a range without a unit takes the other's; one left out is the first or the last frame.
    ValueError for what is no position, or is outside the video.
    """
    left, dots, right = text.strip().partition("..")
    if not dots:
        frames = _point(left, "", timing)
        return Span(frames[0], frames[-1], point=True)
    units = _unit(left), _unit(right)
    first = _point(left, units[1], timing)[0] if left else 0
    last = _point(right, units[0], timing)[-1] if right else timing.num_frames - 1
    if first > last:
        raise ValueError(f"{text} ends before it begins (frames {first} and {last}).")
    return Span(first, last, point=False)


def _unit(text: str) -> str:
    """ "frame", "latent", "s", or "" where none is written."""
    found = _POINT.fullmatch(text.strip())
    return "" if found is None else found["unit"] or found["seconds"] or ""


def _point(text: str, other: str, timing: Timing) -> range:
    """The pixel frames of one place; other: the unit of the range's other end."""
    text = text.strip()
    if text == LAST:
        return range(timing.num_frames - 1, timing.num_frames)
    found = _POINT.fullmatch(text)
    if found is None or (found["unit"] and found["seconds"]):
        raise ValueError(f"{text!r} is no position; write {GRAMMAR}.")
    number, unit = float(found["number"]), _unit(text) or other
    if unit == "s":
        return _seconds(text, number, timing)
    if "." in found["number"]:
        raise ValueError(f"{text!r} is no whole frame; write {text}s for seconds.")
    total = timing.num_latents if unit == "latent" else timing.num_frames
    index = int(number) + (total if number < 0 else 0)
    if not 0 <= index < total:
        kind = "latent frames" if unit == "latent" else "frames"
        raise ValueError(
            f"{text} is outside a video of {total} {kind}; use 0..{total - 1} or -{total}..-1."
        )
    return timing.spec.pixel_frames(index) if unit == "latent" else range(index, index + 1)


def _seconds(text: str, seconds: float, timing: Timing) -> range:
    index = round(seconds * timing.fps) + (timing.num_frames if seconds < 0 else 0)
    if not 0 <= index < timing.num_frames:
        end = (timing.num_frames - 1) / timing.fps
        raise ValueError(
            f"{text} is outside a video of {timing.num_frames} frames at {timing.fps:g} per second;"
            f" the last one is at {end:.4g}s."
        )
    return range(index, index + 1)
