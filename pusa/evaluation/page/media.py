"""Videos and images small enough to be part of a page. Which items are worth it is said here."""

import base64
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from urllib.parse import quote

import torch
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor

from pusa.data import video
from pusa.evaluation.page.view import View
from pusa.evaluation.results import Item, Shot
from pusa.pipelines.schedule_report import colour

SIDE = 320  # pixels, at most
CRF = 26  # of H.264: for looking at, every score is of the file itself
JPEG_QUALITY = 82


@dataclass(frozen=True)
class Clip:
    """A video as data URIs. still: its last frame; width, height: pixels."""

    source: str
    still: str
    width: int
    height: int

    @property
    def size(self) -> int:
        return len(self.source) + len(self.still)


@dataclass
class Embedded:
    """What is part of the page. clips: by (system, item's index, sample); images: by index."""

    clips: dict[tuple[str, int, int], Clip] = field(default_factory=dict)
    images: dict[int, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(c.size for c in self.clips.values()) + sum(map(len, self.images.values()))


def choose(view: View, count: int) -> list[Item]:
    """The items to embed, the most wanted first.

    Half are the worst of the first column (by subject - rival); a quarter the worst of every other
    column in turn; the rest are spread over the first column's order, its best included.
    """
    if count <= 0:
        return []
    first, *others = [view.worst_first(column) for column in view.scored or (None,)]
    worst = first[: max(1, count // 2)]
    turns = [item for turn in zip_longest(*others) for item in turn if item is not None]
    distinct = [item for item in dict.fromkeys(turns) if item not in worst]
    spread = first[:: -max(1, len(first) // max(1, count // 4))]
    quarter = count // 4
    wanted = chain(worst, distinct[:quarter], spread, first)
    return list(dict.fromkeys(wanted))[:count]


def embed(view: View, items: Sequence[Item], budget: float) -> Embedded:
    """First samples of every system, item by item, and further samples while there is room.

    An item comes whole or not at all, so that its systems stand side by side. budget: bytes.
    """
    embedded = Embedded()
    samples = {
        item: [view.shots.get((item.index, s.name), ()) for s in view.result.systems]
        for item in items
    }
    for item, systems in samples.items():
        if not _add(embedded, item, [shots[0] for shots in systems if shots], budget):
            break
    for item, systems in samples.items():
        more = [shot for shots in systems for shot in shots[1:]]
        if item.index not in embedded.images or not _add(embedded, item, more, budget):
            break
    return embedded


def small_clip(path: Path) -> Clip:
    """VideoError for a file that cannot be read."""
    frames, info = video.read_frames(path)
    frames = fitted(frames)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "small.mp4"
        video.write_video(copy, frames, info.fps or 1.0, CRF)
        source = data_uri(copy.read_bytes(), "video/mp4")
    return Clip(source, _jpeg(frames[-1]), frames.shape[3], frames.shape[2])


def small_image(path: Path) -> str:
    frames, _ = video.read_frames(path, 1)
    return _jpeg(fitted(frames)[0])


def fitted(frames: Tensor) -> Tensor:
    """(T, 3, H, W) uint8 with even sides of at most SIDE; tiny ones enlarged by whole numbers, so
    that a pixel stays a square."""
    height, width = frames.shape[2:]
    zoom = SIDE // max(height, width)
    if zoom > 1:
        zoom -= zoom % 2
        return repeat(frames, "t c h w -> t c (h a) (w b)", a=zoom, b=zoom)
    scale = min(1.0, SIDE / max(height, width))
    low, narrow = (max(2, 2 * int(side * scale / 2 + 1e-6)) for side in (height, width))
    return video.fit(frames, low, narrow)


def heat_map(plan: Tensor) -> str:
    """A sigma plan (S+1, F) as a PNG of one pixel for each value, steps down."""
    colours = [[colour(min(max(float(v), 0.0), 1.0)) for v in row] for row in plan]
    return _encoded(Image.fromarray(torch.tensor(colours, dtype=torch.uint8).numpy()), "PNG")


def link(path: Path, folder: Path) -> str | None:
    """The relative address of a file from a page in `folder`; None unless it is on its disk."""
    try:
        if path.stat().st_dev == folder.stat().st_dev:
            return quote(Path(os.path.relpath(path, folder)).as_posix())
    except OSError:
        return None
    return None


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _add(embedded: Embedded, item: Item, shots: Sequence[Shot], budget: float) -> bool:
    """Whether there was room. Files that are gone are left out, as the page says of each."""
    left = budget - embedded.size
    images = dict(_image(item, embedded))
    left -= sum(map(len, images.values()))
    clips = {}
    for shot in shots:
        if left >= 0 and shot.path.is_file():
            clips[shot.system, shot.index, shot.sample] = clip = small_clip(shot.path)
            left -= clip.size
    if left < 0:
        return False
    embedded.clips.update(clips)
    embedded.images.update(images)
    return True


def _image(item: Item, embedded: Embedded) -> Iterator[tuple[int, str]]:
    if item.index not in embedded.images:
        yield item.index, small_image(item.image) if item.image.is_file() else ""


def _jpeg(pixels: Tensor) -> str:
    return _encoded(
        Image.fromarray(rearrange(pixels, "c h w -> h w c").contiguous().numpy()), "JPEG"
    )


def _encoded(picture: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    options = {"quality": JPEG_QUALITY} if kind == "JPEG" else {"optimize": True}
    picture.save(buffer, format=kind, **options)
    return data_uri(buffer.getvalue(), f"image/{kind.lower()}")
