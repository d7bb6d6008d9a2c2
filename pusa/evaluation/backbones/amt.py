"""AMT-S, a network for frames in between, out of its authors' repository."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pusa.evaluation.backbones.outside import checkpoint, module_in
from pusa.evaluation.backbones.registry import BACKBONES


def load(files: Sequence[Path], root: Path, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The frame half way, unscaled whatever the device's memory, as the benchmark's script runs."""
    module = module_in(root / BACKBONES["amt-s"].code, "networks.AMT-S")
    network = module.Model(corr_radius=3, corr_lvls=4, num_flows=3)
    state = checkpoint(files[0])
    network.load_state_dict(state.get("state_dict", state))
    network = network.to(device).eval()
    half = torch.full((1, 1, 1, 1), 0.5, device=device)

    def between(first: Tensor, last: Tensor) -> Tensor:
        time = half.expand(len(first), 1, 1, 1)
        return network(first, last, time, scale_factor=1.0, eval=True)["imgt_pred"]

    return between
