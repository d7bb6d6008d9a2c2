"""imaging_quality: sharpness, noise and exposure of the frames, as a network predicts them."""

import torch
from torch import Tensor

from pusa.evaluation.metrics.dimension import Dimension, Reading
from pusa.evaluation.metrics.frames import batches
from pusa.evaluation.metrics.resize import to_size

LONGER_SIDE = 512


class ImagingQuality(Dimension):
    """Mean quality / 100 of the frames; those with a longer side above 512 are resized to it.

    A video's own score is a fraction here. VBench writes 0 to 100 for a video and 0 to 1 for all.
    """

    name = "imaging_quality"
    kind = "quality"

    @torch.inference_mode()
    def score_video(self, video, reference=None, prompt="") -> Reading:
        qualities = []
        for frames in batches(video, self.batch_size):
            qualities += self.ask(_limited(self.ready(frames)) / 255.0).tolist()
        self.require_frames(len(qualities), 1)
        return Reading(sum(qualities) / len(qualities) / 100, len(qualities))


def _limited(frames: Tensor) -> Tensor:
    height, width = frames.shape[-2:]
    if max(height, width) <= LONGER_SIDE:
        return frames.float()
    scale = LONGER_SIDE / max(height, width)  # the product may fall just short of 512, as theirs
    return to_size(frames, int(scale * height), int(scale * width), "bilinear")
