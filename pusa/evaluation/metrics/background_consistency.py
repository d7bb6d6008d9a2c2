"""background_consistency: whether the scene looks the same throughout, by features of an image."""

from torch import Tensor

from pusa.evaluation.metrics.resize import centre_crop, shorter_side
from pusa.evaluation.metrics.similarity import Consistency


class BackgroundConsistency(Consistency):
    """Of frames with the shorter side at 224, bicubic, and of these the middle 224x224."""

    name = "background_consistency"

    def prepared(self, frames: Tensor) -> Tensor:
        return centre_crop(shorter_side(frames, 224, "bicubic"), 224)
