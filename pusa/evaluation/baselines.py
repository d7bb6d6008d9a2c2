"""What is compared: anything that makes videos of suite items, and systems without a model.

Those frame every table: a still picture shows what a score costs nothing, the truth and the
codec's round trip show what is the most that a model behind that codec can reach.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from einops import repeat
from torch import Tensor

from pusa.data.video import read_frames
from pusa.evaluation.makers import shuffled, slow_zoom
from pusa.evaluation.suite import SuiteItem


class System(Protocol):
    """Makes videos. `seeded` is False if the seed changes nothing: then one seed is run."""

    @property
    def seeded(self) -> bool: ...

    def generate(self, items: Sequence[SuiteItem], seed: int) -> list[Tensor]:
        """Per item one uint8 video (T, 3, H, W) of its scene's size, made of (item, seed) alone."""
        ...


@dataclass(frozen=True)
class StaticCopy:
    """The condition image, repeated."""

    seeded: bool = False

    def generate(self, items: Sequence[SuiteItem], seed: int) -> list[Tensor]:
        return [
            repeat(item.condition_image(), "c h w -> t c h w", t=item.scene.num_frames)
            for item in items
        ]


@dataclass(frozen=True)
class SlowZoom:
    """The condition image, slowly growing."""

    seeded: bool = False

    def generate(self, items: Sequence[SuiteItem], seed: int) -> list[Tensor]:
        return [slow_zoom(still) for still in StaticCopy().generate(items, seed)]


@dataclass(frozen=True)
class FrameShuffle:
    """Frames of another system's video in random order. video: where that of an item is."""

    video: Callable[[SuiteItem, int], Path]
    seeded: bool = False

    def generate(self, items: Sequence[SuiteItem], seed: int) -> list[Tensor]:
        return [
            shuffled(read_frames(self.video(item, seed))[0], seed + item.index) for item in items
        ]


@dataclass(frozen=True)
class GroundTruth:
    """The true clip."""

    seeded: bool = False

    def generate(self, items: Sequence[SuiteItem], seed: int) -> list[Tensor]:
        return [item.frames() for item in items]


@dataclass(frozen=True)
class Codec:
    """The true clip through a VAE. roundtrip: uint8 (T, 3, H, W) -> uint8 (T, 3, H, W)."""

    roundtrip: Callable[[Tensor], Tensor]
    seeded: bool = False

    def generate(self, items: Sequence[SuiteItem], seed: int) -> list[Tensor]:
        return [self.roundtrip(item.frames()) for item in items]
