"""Frames of several systems' videos on one sheet."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional

from pusa.data import video

SHEET_ZOOM = 4  # the clips are tiny


def contact_sheet(
    videos: Mapping[str, Tensor], path: str | Path, frames: Sequence[int] = (0, 4, 8, 12, 16)
) -> None:
    """Write one PNG: a row per system in the order of `videos`, a column per frame number.

    videos: uint8 (T, 3, H, W) of one size. ValueError if one has too few frames.
    """
    border, rows = 2, []
    for system, clip in videos.items():
        if max(frames) >= len(clip):
            raise ValueError(
                f"contact sheet: {system!r} has {len(clip)} frames, frame {max(frames)} is wanted; "
                "ask for earlier frames."
            )
        zoomed = repeat(
            clip[list(frames)], "t c h w -> t c (h a) (w b)", a=SHEET_ZOOM, b=SHEET_ZOOM
        )
        rows.append(functional.pad(zoomed, (border,) * 4, value=255))
    video.write_image(path, rearrange(torch.stack(rows), "s t c h w -> c (s h) (t w)"))
