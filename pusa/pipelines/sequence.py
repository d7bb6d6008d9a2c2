"""Videos that are more than one generation: pieces that overlap, put together as they come."""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pusa.pipelines.tasks import SEAMS
from pusa.types import LatentSpec

Pieces = Iterator[Tensor]  # uint8 (t, 3, H, W), in order


@dataclass(frozen=True)
class Chain:
    """The video goes on for `segments` more generations, each of which is given the last `overlap`
    frames (4k+1) of what is there, at the noise `multipliers` of its latent frames.

    overlap 0: as many frames as there are multipliers for, see `for_spec`. seam: see `Join`.
    """

    segments: int = 0
    overlap: int = 0
    multipliers: tuple[float, ...] = (0.0, 0.3, 0.4, 0.5)
    seam: str = "blend"

    def __post_init__(self):
        object.__setattr__(self, "multipliers", tuple(map(float, self.multipliers)))
        if self.segments < 0:
            raise ValueError(f"chain.segments must be 0 or more, got {self.segments}.")
        if self.overlap < 0 or not self.multipliers:
            raise ValueError(
                f"chain.overlap must be 0 or more frames, got {self.overlap}, with a multiplier at "
                "least."
            )
        if self.seam not in SEAMS:
            raise ValueError(f"chain.seam={self.seam!r} is unknown; use {' or '.join(SEAMS)}.")

    def for_spec(self, spec: LatentSpec) -> "Chain":
        """With the overlap that its multipliers are made for, unless it has one."""
        return replace(self, overlap=self.overlap or spec.num_pixel_frames(len(self.multipliers)))

    def num_frames(self, of_one: int) -> int:
        """Frames of all generations together."""
        return of_one + self.segments * (of_one - self.overlap)


def crossfade(old: Tensor, new: Tensor, seam: str) -> Tensor:
    """Frames (n, 3, H, W) that are there twice: "blend" goes evenly from old to new, "cut" keeps
    the old ones."""
    if seam == "cut" or not len(old):
        return old
    share = torch.arange(1, len(old) + 1) / (len(old) + 1)
    mixed = torch.lerp(old.float(), new.float(), share[:, None, None, None])
    return mixed.round().to(torch.uint8)


def after(old: Tensor, pieces: Pieces, seam: str) -> Pieces:
    """Pieces whose first frames are `old` (n, 3, H, W), too: those once, then the rest."""
    waiting, missing = [], len(old)
    for piece in pieces:
        if missing:
            waiting.append(piece[:missing])
            missing -= len(waiting[-1])
            if not missing:
                yield crossfade(old, torch.cat(waiting), seam)
            piece = piece[len(waiting[-1]) :]
        if len(piece):
            yield piece


def hold_back(pieces: Pieces, count: int) -> Generator[Tensor, Any, Tensor]:
    """All but the last `count` frames; those (count, 3, H, W) are the generator's return value."""
    held = torch.empty(0)
    for piece in pieces:
        held = torch.cat([held, piece]) if len(held) else piece
        ready = len(held) - count
        if ready > 0:
            yield held[:ready]
            held = held[ready:].clone()
    return held


def assemble(
    generate: Callable[[int, Tensor], Pieces],
    chain: Chain,
    before: tuple[Iterable[Tensor], Tensor],
    behind: tuple[Tensor, Iterable[Tensor]],
    seam: str,
) -> Pieces:
    """The whole video, a few frames at a time.

    generate: number of the generation (0: the first) and the last frames there are, which it goes
    on from -> its frames. before: what comes before, and the frames that it shares with the first
    generation, (n, 3, H, W), n = 0 for none; behind: those that the last one shares with what comes
    behind, and that. seam: of both.
    """
    earlier, old = before
    shared, later = behind
    yield from earlier
    for number in range(chain.segments + 1):
        own_seam = chain.seam if number else seam
        keep = chain.overlap if number < chain.segments else len(shared)
        old = yield from hold_back(after(old, generate(number, old), own_seam), keep)
    if len(shared):
        yield crossfade(old, shared, seam) if seam == "blend" else shared
        yield from later
