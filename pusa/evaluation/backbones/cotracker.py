"""CoTracker2 out of its authors' repository. Their hub entry `cotracker2` is not used: in the
current repository it makes a CoTracker3."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from pusa.evaluation.backbones.outside import checkpoint, module_in
from pusa.evaluation.backbones.registry import BACKBONES


def load(files: Sequence[Path], root: Path, device: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Tracks of a grid; the whole clip is in memory, as this network asks."""
    predictor = module_in(root / BACKBONES["cotracker2"].code, "cotracker.predictor")
    network = predictor.CoTrackerPredictor(checkpoint=None, window_len=8, v2=True)
    network.model.load_state_dict(checkpoint(files[0]))
    network = network.to(device).eval()

    def endpoints(video, grid: int) -> tuple[Tensor, Tensor]:
        clip = rearrange(torch.stack(list(video)), "t c h w -> 1 t c h w").float().to(device)
        tracks, _ = network(clip, grid_size=grid)
        return tracks[0, 0].cpu(), tracks[0, -1].cpu()

    return endpoints
