"""Step caching: while a network's first block says that little has changed since the last full
pass, what its other blocks added then is added again, and they are not run.

The test and what is kept are the "first-block cache" of ParaAttention, a variant of TeaCache (Liu
et al. 2024, arXiv 2411.19108). Ours looks at each latent frame, for frames have times of their own:
a given one at multiplier 0 never changes, and in a mean it would hide the others.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pusa.models.base import BlockRunner

FRAMES = ("worst", "mean")
Progress = Callable[[Iterable], Iterable]


@dataclass(frozen=True)
class StepCache:
    """When the blocks behind the first are left out.

    threshold: relative change (L1) of the first block's residual since the last full pass below
    which they are; 0: never. warmup: so many first steps are full, and the last one is. frames:
    whose change it is, that of the `worst` of all frames on their way, of all samples of a batch;
    `mean`: of all frames of all samples together, as elsewhere, for comparison.

    Keeps two residual streams for each text: 1.3 GB a text for a 14B model at 480p, 81 frames
    (2 x 32,760 tokens x 5120, float32). ValueError for values that cannot be.
    """

    threshold: float = 0.1
    warmup: int = 1
    frames: str = "worst"

    def __post_init__(self):
        if not self.threshold >= 0:
            raise ValueError(f"sampler.cache.threshold={self.threshold} must be 0 or more.")
        if self.warmup < 1:
            raise ValueError(f"sampler.cache.warmup must be at least 1 step, got {self.warmup}.")
        if self.frames not in FRAMES:
            raise ValueError(
                f"sampler.cache.frames={self.frames!r} is unknown; use {', '.join(FRAMES)}."
            )


class Caching:
    """One sampling under a StepCache: which step it is at, and which frames that step moves."""

    def __init__(self, rule: StepCache):
        self.rule = rule
        self.passes = self.reused = 0  # calls of a network; those of its first block alone
        self._must_be_full = True
        self._counted: Tensor | None = None

    def follow(self, progress: Progress, levels: Tensor) -> Progress:
        """`progress` over the steps of a plan, levels (S+1, B, F), that keeps count of them."""
        counted = levels[1:] != levels[:-1]
        # A frame that has moved and stops short of 0: UniPC's corrector asks for where it stopped.
        counted[1:] |= counted[:-1] & (levels[1:-1] > 0)
        last = len(counted) - 1

        def following(steps: Iterable) -> Iterator[Any]:
            for i, step in enumerate(progress(steps)):
                self._counted = counted[i]
                self._must_be_full = i < self.rule.warmup or i == last
                yield step

        return following

    def may_reuse(self, now: Tensor, before: Tensor) -> bool:
        """Residuals of the first block (B, F, S, D), or (2B, ...) in batched guidance."""
        if self._must_be_full or self._counted is None:
            return False
        counted = None if self.rule.frames == "mean" else self._counted
        return bool(change(now, before, counted) < self.rule.threshold)


def change(now: Tensor, before: Tensor, counted: Tensor | None) -> Tensor:
    """How much a residual (B, F, S, D) has changed, relative to what it was, ().

    counted: frames (B, F), or of half the batch that is in there twice; the largest change among
    them counts, 0 if there are none. None: the mean over everything.
    """
    difference = (now - before).abs().mean((2, 3), dtype=torch.float32)  # (B, F)
    size = before.abs().mean((2, 3), dtype=torch.float32).clamp(min=1e-30)
    if counted is None:
        return difference.sum() / size.sum()
    counted = counted.repeat(len(now) // len(counted), 1)
    return torch.where(counted, difference / size, 0.0).amax()


class Branch:
    """A network under one text: runs its blocks, and keeps what they added in the last full pass.
    Right for that network and that text alone, and while its weights stay what they are."""

    def __init__(self, caching: Caching):
        self.caching = caching
        self._kept: tuple[Tensor, Tensor] | None = None  # added by the first block, by the rest

    def __call__(self, run: Callable[[Tensor, int, int | None], Tensor], x: Tensor) -> Tensor:
        """A `BlockRunner`; x: (B, F, S, D)."""
        after = run(x, 0, 1)
        first = after - x
        self.caching.passes += 1
        if self._kept is not None and self.caching.may_reuse(first, self._kept[0]):
            self.caching.reused += 1
            return after + self._kept[1]
        self._kept = None  # before there are others: they are large
        out = run(after, 1, None)
        self._kept = first, out - after
        return out


@contextmanager
def cached(network: nn.Module, runner: BlockRunner) -> Iterator[None]:
    """The network's blocks are run by `runner` meanwhile. ValueError for one that has no hook."""
    host: Any = next((m for m in network.modules() if hasattr(m, "block_runner")), None)
    if host is None:
        raise ValueError(
            f"sampler.cache needs a network whose blocks it may run (WanDiT, MochiDiT); "
            f"{type(network).__name__} is none. Use sampler.cache=null."
        )
    host.block_runner = runner
    try:
        yield
    finally:
        host.block_runner = None
