"""i2v_subject: how like the input image the video's subject stays, by features of an image."""

from pathlib import Path

from torch import Tensor

from pusa.evaluation.metrics.resize import centre_crop, read_reference, shorter_side
from pusa.evaluation.metrics.similarity import Conformity


class I2VSubject(Conformity):
    """Of frames with the shorter side at 256, bicubic, and of these the middle 224x224."""

    name = "i2v_subject"

    def prepared(self, frames: Tensor) -> Tensor:
        small = shorter_side(frames, 256, "bicubic", antialias=self.resize == "modern")
        return centre_crop(small, 224)

    def prepared_image(self, reference: str | Path) -> Tensor:
        return read_reference(reference, 256, crop=224)
