"""MUSIQ trained on SPAQ, by the user's `pyiqa` package."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor


def load(files: Sequence[Path], root: Path, device: str) -> Callable[[Tensor], Tensor]:
    """Qualities (N,), 0 to 100."""
    musiq = importlib.import_module("pyiqa.archs.musiq_arch").MUSIQ
    network = musiq(pretrained_model_path=str(files[0])).to(device).eval()
    return lambda pixels: network(pixels).reshape(len(pixels))
