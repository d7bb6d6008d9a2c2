"""background_consistency: whether the scene looks the same throughout, by features of an image."""

from torch import Tensor

from pusa.evaluation.metrics.dimension import Dimension, Reading
from pusa.evaluation.metrics.resize import centre_crop, shorter_side
from pusa.evaluation.metrics.similarity import consistency, features_of


class BackgroundConsistency(Dimension):
    """Mean cosine with the first frame and the one before; 224 bicubic, middle 224x224."""

    name = "background_consistency"
    kind = "features"
    by_frames = True

    def score_video(self, video, reference=None, prompt="") -> Reading:
        features = features_of(video, self._features, self.batch_size)
        self.require_frames(len(features), 2)
        return Reading(consistency(features), len(features))

    def _features(self, frames: Tensor) -> Tensor:
        small = shorter_side(self.ready(frames), 224, "bicubic")
        return self.network(centre_crop(small, 224) / 255.0)
