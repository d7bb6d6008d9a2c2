"""A system whose videos cost nothing, for the tests of comparisons."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pusa.evaluation.suite import SuiteItem
from pusa.rng import generator_for


class Interrupted(RuntimeError):
    """What stops a run in these tests, as a kill would."""


class NoisyTruth:
    """The truth with noise that depends on (item, seed). Counts its items, may stop on the way."""

    seeded = True

    def __init__(self, sigma: float, stop_after: int | None = None):
        self.sigma, self.stop_after = sigma, stop_after
        self.made: list[tuple[int, int]] = []

    def generate(self, items: Sequence[SuiteItem], seed: int) -> list[Tensor]:
        if self.stop_after is not None and len(self.made) >= self.stop_after:
            raise Interrupted
        self.made += [(item.index, seed) for item in items]
        return [self._video(item, seed) for item in items]

    def _video(self, item: SuiteItem, seed: int) -> Tensor:
        frames = item.frames().float()
        generator = generator_for(seed, "tests/noise", item.index)
        noise = self.sigma * torch.randn(frames.shape, generator=generator)
        return (frames + noise).round().clamp(0, 255).to(torch.uint8)
