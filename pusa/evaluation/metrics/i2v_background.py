"""i2v_background: how like the input image the scene stays, by features tuned to human likeness."""

from pathlib import Path

from torch import Tensor

from pusa.evaluation.metrics.resize import read_reference, to_size
from pusa.evaluation.metrics.similarity import Conformity


class I2VBackground(Conformity):
    """Of whole frames, squashed to 224x224, bicubic."""

    name = "i2v_background"

    def prepared(self, frames: Tensor) -> Tensor:
        return to_size(frames, 224, 224, "bicubic", antialias=self.resize == "modern")

    def prepared_image(self, reference: str | Path) -> Tensor:
        return read_reference(reference, 224, crop=None)
