"""Cosines between the features of frames: what four dimensions are made of.

Features have length 1, and a negative cosine counts as 0. The four differ in how the network is
shown a frame; each says that in a file of its own.
"""

from abc import abstractmethod
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pusa.evaluation.metrics.dimension import Dimension, Reading
from pusa.evaluation.metrics.frames import Frames, batches

MAX_WEIGHT, MEAN_WEIGHT, MIN_WEIGHT = 0.4, 0.3, 0.3  # VBench-I2V's


class ByFeatures(Dimension):
    """What consistency and conformity share: features of all frames, at least two."""

    kind = "features"

    @abstractmethod
    def prepared(self, frames: Tensor) -> Tensor:
        """uint8 frames (t, 3, H, W) -> (t, 3, h, w) in 0 to 255, as the network is to see them."""

    def features(self, video: Frames) -> Tensor:
        """(T, D) of length 1. ValueError for a single frame."""
        found = torch.cat([
            self.seen(self.prepared(self.ready(frames)) / 255.0)
            for frames in batches(video, self.batch_size)
        ])  # fmt: skip
        self.require_frames(len(found), 2)
        return found

    def seen(self, pixels: Tensor) -> Tensor:
        """Features (N, D) of length 1 of pixels (N, 3, h, w) in [0, 1], float32 on the CPU."""
        return F.normalize(self.ask(pixels).float(), dim=-1).cpu()


class Consistency(ByFeatures):
    """Mean over the frames after the first of their cosines with the one before and the first."""

    by_frames = True

    @torch.inference_mode()
    def score_video(self, video, reference=None, prompt="") -> Reading:
        features = self.features(video)
        both = _cosines(features[:-1], features[1:]) + _cosines(features[:1], features[1:])
        return Reading((both / 2).mean().item(), len(features))


class Conformity(ByFeatures):
    """0.4 max cos(image, frame) + 0.3 mean + 0.3 min cos(neighbours)."""

    @abstractmethod
    def prepared_image(self, reference: str | Path) -> Tensor:
        """The input image (1, 3, h, w) in [0, 1]; ValueError if it cannot be read."""

    @torch.inference_mode()
    def score_video(self, video, reference=None, prompt="") -> Reading:
        if reference is None:
            raise ValueError(f"{self.name} compares with the input image; give a reference.")
        image = self.seen(self.ready(self.prepared_image(reference)))
        features = self.features(video)
        likeness = _cosines(image, features)
        neighbours = _cosines(features[:-1], features[1:])
        score = (
            MAX_WEIGHT * likeness.max() + MEAN_WEIGHT * neighbours.mean()
            + MIN_WEIGHT * neighbours.min()
        )  # fmt: skip
        return Reading(score.item(), len(features))


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    return F.cosine_similarity(first, second).double().clamp(min=0)
