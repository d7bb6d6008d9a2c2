"""i2v_subject: how like the input image the video's subject stays, by features of an image."""

from torch import Tensor

from pusa.evaluation.metrics.dimension import Dimension, Reading
from pusa.evaluation.metrics.resize import centre_crop, read_reference, shorter_side
from pusa.evaluation.metrics.similarity import conformity, features_of, unit


class I2VSubject(Dimension):
    """0.4 max cos(image, frame) + 0.3 mean + 0.3 min cos(neighbours); 256 bicubic, crop 224."""

    name = "i2v_subject"
    kind = "features"

    def score_video(self, video, reference=None, prompt="") -> Reading:
        if reference is None:
            raise ValueError(f"{self.name} compares with the input image; give a reference.")
        image = unit(self.network(self.ready(read_reference(reference, 256, crop=224))))
        features = features_of(video, self._features, self.batch_size)
        self.require_frames(len(features), 2)
        return Reading(conformity(features, image), len(features))

    def _features(self, frames: Tensor) -> Tensor:
        antialias = self.resize == "modern"
        small = shorter_side(self.ready(frames), 256, "bicubic", antialias)
        return self.network(centre_crop(small, 224) / 255.0)
