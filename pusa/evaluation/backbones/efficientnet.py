"""EfficientNet-Lite0 of ImageNet, a small stand-in for DINO, CLIP and DreamSim."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pusa.evaluation.backbones.normalised import Normalised
from pusa.evaluation.backbones.outside import checkpoint

MEAN, DEVIATION = [127 / 255] * 3, [128 / 255] * 3  # of the Lite family


class Pooled(nn.Module):
    """The last feature map, averaged: (N, 3, h, w) -> (N, 1280)."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network
        self.features = network.extract_features

    def forward(self, pixels: Tensor) -> Tensor:
        return self.features(pixels).mean(dim=(2, 3))


def load(files: Sequence[Path], root: Path, device: str) -> Normalised:
    """Features (N, 1280). ImportError if the package with the network is missing."""
    package = importlib.import_module("efficientnet_lite_pytorch")
    # No image size: frames are not always square.
    network = package.EfficientNet.from_name("efficientnet-lite0", image_size=None)
    network.load_state_dict(checkpoint(files[0]))
    return Normalised(Pooled(network).to(device).eval(), MEAN, DEVIATION)
