"""Networks under texts that stay the same for a whole sampling."""

import logging
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pusa.diffusion.sampler import Velocity
from pusa.models.base import PreparedText, VideoBackbone
from pusa.models.experts import Experts
from pusa.pipelines.step_cache import Branch, Caching, cached
from pusa.types import Text

log = logging.getLogger(__name__)


def while_memory_allows(pair: Velocity, halves: Sequence[Velocity]) -> Velocity:
    """What `pair` gives (2B, C, F, h, w), until it runs out of the device's memory; from then on,
    the same of its halves (B, C, F, h, w), one after the other."""
    fits = True

    def velocity(x: Tensor, sigma: Tensor, step_sigma: Tensor) -> Tensor:
        nonlocal fits
        if fits:
            try:
                return pair(x, sigma, step_sigma)
            except torch.OutOfMemoryError:
                fits = False
                log.info(
                    "guidance: both passes at once do not fit into %s's memory; from here on one "
                    "after the other (sampler.guidance=sequential tries no other way).", x.device,
                )  # fmt: skip
        # Outside of the except, which holds on to all that the broken-off pass had.
        return torch.cat([half(x, sigma, step_sigma) for half in halves])

    return velocity


class Prompted:
    """Velocities of experts, for one sampling, in which weights and precision do not change.

    What a network computes from a text alone is computed once, at its first use. It is kept while
    that network works: sigmas come down, so that none works twice, and up to 0.42 GB a caption
    (14B, see `WanDiT.prepare_text`) are free for the next. Of a network whose weights come block by
    block, a pass has to compute it itself. caching: what a network computed at an
    earlier step may be used again, each text's own; it goes with the network, too.
    """

    def __init__(self, experts: Experts, caching: Caching | None = None):
        self.experts, self.caching = experts, caching
        self._at_work: nn.Module | None = None
        self._prepared: dict[int, PreparedText] = {}
        self._branches: dict[int, Branch] = {}

    def by(self, text: Text) -> Velocity:
        """text: (B, L, text_dim) on the networks' device."""

        def velocity(x: Tensor, sigma: Tensor, step_sigma: Tensor) -> Tensor:
            network = self.experts.at(step_sigma)
            prepared = self._text(network, text)
            if self.caching is None:
                return network(x, sigma, prepared)
            with cached(network, self._branches.setdefault(id(text), Branch(self.caching))):
                return network(x, sigma, prepared)

        return velocity

    def by_pair(self, both: Text) -> Velocity:
        """both: (2B, L, text_dim), two texts for each of B latents -> velocities (2B, ...)."""
        velocity = self.by(both)
        return lambda x, sigma, step: velocity(torch.cat([x, x]), torch.cat([sigma, sigma]), step)

    def _text(self, network: nn.Module, text: Text) -> Text | PreparedText:
        if network is not self._at_work:
            self._at_work, self._prepared, self._branches = network, {}, {}
        if not self.experts.whole(network):
            return text
        # By identity: `by` holds the text, so that no other can have its place.
        if id(text) not in self._prepared:
            self._prepared[id(text)] = cast(VideoBackbone, network).prepare_text(text)
        return self._prepared[id(text)]
