"""Dense inverse search, OpenCV's classical optical flow: a stand-in for RAFT."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor


def load(files: Sequence[Path], root: Path, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Flow in pixels from the first frames to the last, found in grey."""
    search: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def flow(first: Tensor, last: Tensor) -> Tensor:
        pairs = zip(_grey(first), _grey(last), strict=True)
        found = np.stack([search.calc(a, b, None) for a, b in pairs])
        return torch.from_numpy(found).movedim(-1, 1).to(first.device)

    return flow


def _grey(frames: Tensor) -> list[np.ndarray]:
    pixels = frames.round().clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu().numpy()
    return [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in pixels]
