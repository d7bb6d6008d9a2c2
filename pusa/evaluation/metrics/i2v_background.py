"""i2v_background: how like the input image the scene stays, by features tuned to human likeness."""

from torch import Tensor

from pusa.evaluation.metrics.dimension import Dimension, Reading
from pusa.evaluation.metrics.resize import read_reference, to_size
from pusa.evaluation.metrics.similarity import conformity, features_of, unit


class I2VBackground(Dimension):
    """As i2v_subject, but the whole picture is squashed to 224x224, bicubic."""

    name = "i2v_background"
    kind = "features"

    def score_video(self, video, reference=None, prompt="") -> Reading:
        if reference is None:
            raise ValueError(f"{self.name} compares with the input image; give a reference.")
        image = unit(self.network(self.ready(read_reference(reference, 224, crop=None))))
        features = features_of(video, self._features, self.batch_size)
        self.require_frames(len(features), 2)
        return Reading(conformity(features, image), len(features))

    def _features(self, frames: Tensor) -> Tensor:
        small = to_size(self.ready(frames), 224, 224, "bicubic", self.resize == "modern")
        return self.network(small / 255.0)
