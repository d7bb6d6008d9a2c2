"""dynamic_degree: whether a video moves at all, by the optical flow of its fastest parts."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pusa.evaluation.metrics.dimension import Dimension, Reading
from pusa.evaluation.metrics.frames import windows

RATE = 8  # frames per second that are looked at, about
FASTEST = 0.05  # share of the pixels
MULTIPLE = 8


class DynamicDegree(Dimension):
    """1 if round(N / 4) of the pairs of N kept frames move, else 0.

    A pair moves if the mean flow of its fastest 5% of pixels is above 6 pixels per 256 of the
    shorter side. Every round(fps / 8)-th frame is kept, so a container's wrong fps changes it.
    """

    name = "dynamic_degree"
    kind = "flow"

    @torch.inference_mode()
    def score_video(self, video, reference=None, prompt="") -> Reading:
        moving, kept, shorter = 0, 1, 0
        for frames in windows(video, self.batch_size, max(1, round(video.fps / RATE))):
            shorter = min(frames.shape[-2:])
            speeds = self._speeds(self.ready(frames).float())
            moving += int((speeds > 6.0 * (shorter / 256.0)).sum())
            kept += len(speeds)
        needed = round(4 * (kept / 16.0))  # to the even neighbour at a half, as there
        # Of two frames none is needed; yet without any pair nothing moves.
        dynamic = kept > 1 and moving >= needed
        extras = {"moving_pairs": moving, "needed_pairs": needed, "kept_frames": kept}
        return Reading(float(dynamic), video.num_frames, extras)

    def _speeds(self, frames: Tensor) -> Tensor:
        """(t - 1,) pixels per pair of frames (t, 3, H, W) in 0 to 255, padding included."""
        height, width = frames.shape[-2:]
        top, left = -height % MULTIPLE // 2, -width % MULTIPLE // 2
        padding = (left, -width % MULTIPLE - left, top, -height % MULTIPLE - top)
        padded = F.pad(frames, padding, mode="replicate")
        speed = self.ask(padded[:-1], padded[1:]).square().sum(dim=1).sqrt().flatten(1)
        return speed.topk(int(speed.shape[1] * FASTEST)).values.double().mean(dim=1)
