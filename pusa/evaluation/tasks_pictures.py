"""Pictures of the tasks' evaluation: systems as rows, frames as columns, given frames framed."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pusa.atomic import replacing

ZOOM, GAP, TOP = 3, 4, 18  # pixels
INK, PAPER, MARK = (28, 33, 38), (255, 255, 255), (235, 110, 0)


def write_sheet(
    path: Path, videos: Mapping[str, Tensor], columns: Sequence[int],
    given: Mapping[str, Collection[int]], heads: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """One .png.

    videos: uint8 (T, 3, H, W) of one size, by the name of the row. columns: frame numbers; where a
    video has ended, nothing is drawn. given: by row, frames that get a frame. heads: of the
    columns, by default their numbers.
    """
    height, width = (side * ZOOM for side in next(iter(videos.values())).shape[2:])
    font = ImageFont.load_default(13)
    labels = 3 * GAP + int(max(font.getlength(name) for name in videos))
    size = labels + len(columns) * (width + GAP), TOP + len(videos) * (height + GAP)
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    for column, frame in enumerate(columns):
        place = labels + column * (width + GAP) + width // 2, TOP // 2
        head = str(frame) if heads is None else heads[column]
        draw.text(place, head, INK, font, anchor="mm")
    for row, (name, frames) in enumerate(videos.items()):
        top = TOP + row * (height + GAP)
        draw.text((GAP, top + height // 2), name, INK, font, anchor="lm")
        for column, frame in enumerate(columns):
            if frame >= len(frames):
                continue
            left = labels + column * (width + GAP)
            pixels = np.ascontiguousarray(frames[frame].permute(1, 2, 0).numpy())
            tile = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
            picture.paste(tile, (left, top))
            if frame in given.get(name, ()):
                around = left - 2, top - 2, left + width + 1, top + height + 1
                draw.rectangle(around, outline=MARK, width=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        picture.save(partial, format="PNG", optimize=True)
