"""temporal_flickering: how little neighbouring frames differ. Asks no network."""

from itertools import pairwise

import numpy as np
from torch import Tensor

from pusa.evaluation.metrics.dimension import Dimension, Reading
from pusa.evaluation.metrics.frames import windows


class TemporalFlickering(Dimension):
    """(255 - mean over pairs of the mean absolute difference) / 255; 1 where nothing moves."""

    name = "temporal_flickering"
    kind = None

    def score_video(self, video, reference=None, prompt="") -> Reading:
        differences = []
        for frames in windows(video, self.batch_size):
            pixels = _as_opencv(frames)
            differences += [np.mean(np.abs(b - a)) for a, b in pairwise(pixels)]
        self.require_frames(len(differences) + 1, 2)
        score = (255.0 - np.mean(np.array(differences)).item()) / 255.0
        return Reading(score, len(differences) + 1)


def _as_opencv(frames: Tensor) -> np.ndarray:
    """float32 (t, H, W, 3) in OpenCV's order of channels: means in float32 depend on the order of
    summation, and this one's agree with the benchmark's to the last bit."""
    return np.ascontiguousarray(frames.flip(1).movedim(1, -1).numpy(), dtype=np.float32)
