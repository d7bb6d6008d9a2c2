"""subject_consistency: whether the subject looks the same throughout, by features of an image."""

from torch import Tensor

from pusa.evaluation.metrics.resize import shorter_side
from pusa.evaluation.metrics.similarity import Consistency


class SubjectConsistency(Consistency):
    """Of frames with the shorter side at 224, bilinear, not cropped."""

    name = "subject_consistency"

    def prepared(self, frames: Tensor) -> Tensor:
        return shorter_side(frames, 224, "bilinear")
