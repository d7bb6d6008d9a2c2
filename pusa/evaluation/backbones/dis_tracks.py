"""Points that follow the flow from frame to frame: a stand-in for CoTracker."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pusa.evaluation.backbones import dis


def load(files: Sequence[Path], root: Path, device: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Where a grid of points is in the first and in the last frame; holds one pair at a time."""
    flow_between = dis.load(files, root, device)

    def endpoints(video, grid: int) -> tuple[Tensor, Tensor]:
        height, width = next(iter(video)).shape[-2:]
        first = last = grid_of_points(grid, height, width)
        for before, after in pairwise(video):
            flow = flow_between(before[None].float(), after[None].float())
            last = last + _sampled(flow, last)
        return first, last

    return endpoints


def grid_of_points(size: int, height: int, width: int) -> Tensor:
    """(size*size, 2) x, y, row by row, a 64th of the width off each border, as CoTracker's."""
    margin = width / 64
    y = torch.linspace(margin, height - margin, size)
    x = torch.linspace(margin, width - margin, size)
    return torch.cartesian_prod(y, x).flip(1)


def _sampled(flow: Tensor, points: Tensor) -> Tensor:
    """Flow (1, 2, H, W) at points (N, 2), between pixels and beyond the border."""
    height, width = flow.shape[-2:]
    place = points / torch.tensor([width - 1, height - 1]) * 2 - 1
    sampled = F.grid_sample(flow, place[None, None], padding_mode="border", align_corners=True)
    return sampled[0, :, 0].T
