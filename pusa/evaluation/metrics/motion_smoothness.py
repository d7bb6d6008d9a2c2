"""motion_smoothness: whether every other frame is what a network puts between its neighbours."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pusa.evaluation.metrics.dimension import Dimension, Reading
from pusa.evaluation.metrics.frames import windows

MULTIPLE = 16


class MotionSmoothness(Dimension):
    """(255 - mean |interpolated - true odd frame|) / 255, from the even frames, in whole levels.

    The network's output is cut off to whole levels, not rounded: so it is in the benchmark, and a
    clip without motion scores about 0.998.
    """

    name = "motion_smoothness"
    kind = "interpolation"

    @torch.inference_mode()
    def score_video(self, video, reference=None, prompt="") -> Reading:
        differences: list[float] = []
        num_frames = 1
        for frames in windows(video, 2 * self.batch_size):  # even, so that each begins evenly
            num_frames += len(frames) - 1  # the first is the last of the window before
            pairs = (len(frames) - 1) // 2
            if pairs == 0:
                continue
            even, odd = frames[0::2], frames[1::2][:pairs]
            middle = self._between(even[:pairs], even[1 : pairs + 1])
            difference = (middle.int() - odd.int()).abs().double()
            differences += difference.mean(dim=(1, 2, 3)).tolist()
        self.require_frames(num_frames, 3)
        return Reading((255.0 - sum(differences) / len(differences)) / 255.0, num_frames)

    def _between(self, first: Tensor, last: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) between two times as many, on the CPU."""
        height, width = first.shape[-2:]
        top, left = -height % MULTIPLE // 2, -width % MULTIPLE // 2
        padding = (left, -width % MULTIPLE - left, top, -height % MULTIPLE - top)
        first, last = (
            F.pad(self.ready(frames) / 255.0, padding, mode="replicate") for frames in (first, last)
        )
        middle = self.ask(first, last)[..., top : top + height, left : left + width]
        return (middle * 255.0).clamp(0, 255).to(torch.uint8).cpu()
