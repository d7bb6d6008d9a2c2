"""subject_consistency: whether the subject looks the same throughout, by features of an image."""

from torch import Tensor

from pusa.evaluation.metrics.dimension import Dimension, Reading
from pusa.evaluation.metrics.resize import shorter_side
from pusa.evaluation.metrics.similarity import consistency, features_of


class SubjectConsistency(Dimension):
    """Mean cosine with the first frame and the one before; 224 bilinear, not cropped."""

    name = "subject_consistency"
    kind = "features"
    by_frames = True

    def score_video(self, video, reference=None, prompt="") -> Reading:
        features = features_of(video, self._features, self.batch_size)
        self.require_frames(len(features), 2)
        return Reading(consistency(features), len(features))

    def _features(self, frames: Tensor) -> Tensor:
        return self.network(shorter_side(self.ready(frames), 224, "bilinear") / 255.0)
