"""OpenAI's CLIP, by the user's `clip` package."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from pusa.evaluation.backbones.normalised import CLIP, Normalised


def load(files: Sequence[Path], root: Path, device: str) -> Normalised:
    """Image embeddings; CLIP's own half precision on CUDA."""
    network, _ = importlib.import_module("clip").load(str(files[0]), device=device)
    return Normalised(network.eval().encode_image, *CLIP)
