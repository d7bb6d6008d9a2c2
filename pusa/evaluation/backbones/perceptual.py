"""DreamSim's ensemble, by the user's `dreamsim` package."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

REQUIRED = "ensemble_lora"


def load(files: Sequence[Path], root: Path, device: str) -> Callable[[Tensor], Tensor]:
    """Embeddings (N, 1792) of pixels in [0, 1]. ValueError if it would have to download."""
    if not (files[0] / REQUIRED).exists():
        raise ValueError(
            f"dreamsim-ensemble: {files[0] / REQUIRED} is missing; run dreamsim(pretrained=True, "
            f"cache_dir={str(files[0])!r}) once where the network is."
        )
    dreamsim = importlib.import_module("dreamsim").dreamsim
    network, _ = dreamsim(pretrained=True, cache_dir=str(files[0]), device=device)
    return network.eval().embed
