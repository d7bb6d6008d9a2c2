"""Where a condition stands: `POSITION=FILE[:MULTIPLIER]`, in pixel frames or latent frames."""

import re
from dataclasses import dataclass
from pathlib import Path

from pusa.types import LatentSpec

_CONDITION = re.compile(r"(?P<position>[^=]+)=(?P<file>.+?)(?::(?P<multiplier>[0-9.]+))?")
DEFAULT_MULTIPLIER = 0.2  # upstream's advice for image-to-video


@dataclass(frozen=True)
class Condition:
    """A file at a latent frame with its noise multiplier."""

    latent_index: int
    file: Path
    multiplier: float

    def describe(self, spec: LatentSpec) -> str:
        """The mapping that every run prints."""
        frames = spec.pixel_frames(self.latent_index)
        shown = f"{frames[0]}" if len(frames) == 1 else f"{frames[0]}..{frames[-1]}"
        return (
            f"{self.file} -> latent frame {self.latent_index} (pixel frames {shown}), "
            f"noise multiplier {self.multiplier:g}"
        )


def parse_condition(text: str, spec: LatentSpec, num_frames: int) -> Condition:
    """Parse one condition.

    POSITION is a pixel frame (`0`, `-1` from the end), `last`, or `latent:K`. ValueError naming
    what is legal otherwise.
    """
    match = _CONDITION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"--at {text!r}: expected POSITION=FILE[:MULTIPLIER], as 0=photo.png:0.2.")
    multiplier = float(match["multiplier"] or DEFAULT_MULTIPLIER)
    if not 0 <= multiplier <= 1:
        raise ValueError(f"--at {text!r}: noise multiplier {multiplier:g} must be in [0, 1].")
    index = _latent_index(match["position"].strip(), text, spec, num_frames)
    return Condition(index, Path(match["file"]), multiplier)


def _latent_index(position: str, text: str, spec: LatentSpec, num_frames: int) -> int:
    latent = position.startswith("latent:")
    total = spec.num_latent_frames(num_frames) if latent else num_frames
    number = "-1" if position == "last" else position.removeprefix("latent:")
    if not re.fullmatch(r"-?\d+", number):
        raise ValueError(f"--at {text!r}: position {position!r} is not a frame, last or latent:K.")
    index = int(number) + (total if int(number) < 0 else 0)
    if not 0 <= index < total:
        kind = "latent frames" if latent else "frames"
        raise ValueError(
            f"--at {text!r}: {position} is outside a video of {total} {kind}; "
            f"use 0..{total - 1} or -{total}..-1."
        )
    return index if latent else spec.latent_index(index)
