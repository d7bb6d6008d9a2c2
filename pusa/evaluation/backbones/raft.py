"""RAFT, optical flow, out of its authors' repository."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from pusa.evaluation.backbones.outside import checkpoint, module_in, without_prefix
from pusa.evaluation.backbones.registry import BACKBONES

ITERATIONS = 20


def load(files: Sequence[Path], root: Path, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Flow in pixels from the first frames to the last."""
    module = module_in(root / BACKBONES["raft-things"].code, "raft")
    network = module.RAFT(Namespace(small=False, mixed_precision=False, alternate_corr=False))
    network.load_state_dict(without_prefix(checkpoint(files[0])))
    network = network.to(device).eval()
    return lambda first, last: network(first, last, iters=ITERATIONS, test_mode=True)[1]
