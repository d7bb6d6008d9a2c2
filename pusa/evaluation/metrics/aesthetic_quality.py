"""aesthetic_quality: how well people would like the frames, as a network predicts it."""

import torch

from pusa.evaluation.metrics.dimension import Dimension, Reading
from pusa.evaluation.metrics.frames import batches
from pusa.evaluation.metrics.resize import centre_crop, shorter_side


class AestheticQuality(Dimension):
    """Mean rating / 10 of the frames; 224 bicubic, middle 224x224."""

    name = "aesthetic_quality"
    kind = "aesthetic"

    @torch.inference_mode()
    def score_video(self, video, reference=None, prompt="") -> Reading:
        ratings = []
        for frames in batches(video, self.batch_size):
            small = shorter_side(self.ready(frames), 224, "bicubic")
            ratings += self.ask(centre_crop(small, 224) / 255.0).tolist()
        self.require_frames(len(ratings), 1)
        return Reading(sum(ratings) / len(ratings) / 10, len(ratings))
