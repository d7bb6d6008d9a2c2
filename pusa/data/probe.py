"""What a media file is, and which reader is exact on it.

decord is the reader where nothing speaks against it and where frames that it is asked for in random
order are PyAV's; PyAV reads everything else.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps

from pusa.data import readers
from pusa.data.media import Media, as_media
from pusa.data.packets import Scan, scan, stamp
from pusa.data.timeline import VideoError
from pusa.rng import generator_for

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
TOLERANCE = 2  # grey levels; colour converters of two versions may round differently
NUM_SAMPLES = 8  # frames compared besides the first and the last
# decord loses the first frames of MPEG-TS, jumps wrongly in AVI, and a truncated AVI in memory ends
# the process.
DECORD_CONTAINERS = ("mov,mp4", "matroska,webm")

Reader = Literal["decord", "pyav", "image"]


@dataclass(frozen=True)
class Probe:
    """What a media file is, in plain values.

    fps: average frames per second (0 of an image). variable_rate: frame number and time disagree
    somewhere by more than a quarter of a frame; then `times` holds the seconds at which frames are
    shown. duration: seconds. height, width: pixels, upright. rotation: degrees (0, 90, 180, 270) by
    which the stored pictures are turned clockwise. start: seconds on the file's clock of the first
    frame. edit_list: something is cut off by one. seekable: frames can be found by their time
    stamps; else they are counted from the beginning. pixel_aspect: width / height of a pixel. size:
    bytes. reader: which one is exact, `reason`: why, `version`: its version.
    """

    codec: str
    pixel_format: str
    bit_depth: int
    num_frames: int
    fps: float
    variable_rate: bool
    times: tuple[float, ...]
    duration: float
    height: int
    width: int
    rotation: int
    pixel_aspect: float
    has_audio: bool
    start: float
    edit_list: bool
    seekable: bool
    container: str
    size: int
    reader: Reader
    reason: str
    version: str

    @property
    def key(self) -> str:
        """Reader and version, for names of what is made from the frames."""
        return f"{self.reader}-{self.version}"

    @property
    def timestamps(self) -> tuple[float, ...]:
        """Seconds at which the frames are shown; the first at 0. For choose_frames."""
        if self.variable_rate:
            return self.times
        return tuple(i / self.fps for i in range(self.num_frames)) if self.fps else (0.0,)


def probe(media: Media | str | Path) -> Probe:
    """Examine a file: every frame is decoded once, and some are compared between the readers.

    Remembered within the process until the file's size or time changes. VideoError, with the file,
    what is wrong and what to do, if it is missing, empty, truncated, damaged or not a video.
    """
    media = as_media(media)
    return _probe(media, *stamp(media))


def require_unchanged(media: Media, known: Probe) -> None:
    """VideoError if a file is no longer there, or has another size than when it was probed."""
    size, _ = stamp(media)
    if size != known.size:
        raise VideoError(
            f"{media}: has {size} bytes and had {known.size} when it was probed; probe it again."
        )


def packets_of(media: Media, known: Probe) -> Scan:
    """The packets of a file that was probed."""
    return _packets_of(media, *stamp(media), known.num_frames, known.seekable)


@lru_cache(maxsize=256)
def _packets_of(media: Media, size: int, changed: int, num_frames: int, seekable: bool) -> Scan:
    packets = scan(media)
    if not seekable:
        return packets.counted(num_frames)
    if packets.num_frames == num_frames:
        return packets
    return readers.watch(media, packets).scan


def is_image(media: Media) -> bool:
    return media.suffix in IMAGE_SUFFIXES


def read_image(media: Media) -> np.ndarray:
    """Upright RGB pixels (H, W, 3) uint8. VideoError for what is not a readable still image."""
    return _open_image(media)[0]


def _open_image(media: Media) -> tuple[np.ndarray, str, int]:
    """Pixels, Pillow's mode, and the turn that the EXIF tag asks for."""
    stamp(media)
    try:
        with media.open() as stream, Image.open(stream) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise VideoError(f"{media}: is an animation; convert it to mp4 or to a still.")
            turn = {3: 180, 6: 90, 8: 270}.get(image.getexif().get(0x0112, 1), 0)
            pixels = np.array(_as_rgb(ImageOps.exif_transpose(image)))
            return pixels, image.mode, turn
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(f"{media}: not a readable image ({error}); export it again.") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: grey levels of 16 bits by their upper half, what is transparent over white."""
    if image.mode.startswith("I;16"):  # Pillow's own conversion would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _probe_image(media: Media, size: int) -> Probe:
    pixels, mode, turn = _open_image(media)
    height, width = pixels.shape[:2]
    return Probe(
        codec="image", pixel_format=mode, bit_depth=8, num_frames=1, fps=0.0, variable_rate=False,
        times=(), duration=0.0, height=height, width=width, rotation=turn, pixel_aspect=1.0,
        has_audio=False, start=0.0, edit_list=False, seekable=False, container=media.suffix[1:],
        size=size, reader="image", reason="a still image", version=readers.versions()["image"],
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _probe(media: Media, size: int, changed: int) -> Probe:
    if is_image(media):
        return _probe_image(media, size)
    packets = scan(media)
    watched = readers.watch(media, packets, _samples(packets))
    packets = watched.scan
    doubt = _doubt(packets) or _disagreement(media, packets, watched)
    reader: Reader = "pyav" if doubt else "decord"
    fps = packets.fps
    last = packets.end * float(packets.tick) if packets.countable else 0.0
    last = last or (1 / fps if fps else 0.0)
    return Probe(
        codec=packets.codec,
        pixel_format=packets.pixel_format,
        bit_depth=packets.bit_depth,
        num_frames=packets.num_frames,
        fps=fps,
        variable_rate=packets.variable,
        times=packets.timestamps if packets.variable else (),
        duration=packets.timestamps[-1] + last,
        height=watched.height,
        width=watched.width,
        rotation=watched.rotation,
        pixel_aspect=packets.pixel_aspect,
        has_audio=packets.has_audio,
        start=float(packets.shown[0] * packets.tick) if packets.countable else 0.0,
        edit_list=packets.edited,
        seekable=packets.countable,
        container=packets.container,
        size=size,
        reader=reader,
        reason=doubt or f"{len(watched.samples)} frames in random order are PyAV's",
        version=readers.versions()[reader],
    )


def _samples(packets: Scan) -> list[int]:
    """First, last, and in between frames at random, half of them the last before a key frame.

    In random order: readers go wrong when they jump, and there.
    """
    count = packets.num_frames
    generator = generator_for(0, "probe", count)
    anywhere = torch.randint(count, (NUM_SAMPLES // 2,), generator=generator).tolist()
    keys = [packets.pts[place] for place in packets.key_places]
    edges = [i - 1 for i, p in enumerate(packets.shown) if p in set(keys) and i > 0]
    edges = edges or list(range(count))
    some = torch.randperm(len(edges), generator=generator)[: NUM_SAMPLES // 2].tolist()
    chosen = sorted({0, count - 1, *anywhere, *(edges[i] for i in some)})
    return [chosen[i] for i in torch.randperm(len(chosen), generator=generator)]


def _doubt(packets: Scan) -> str:
    """Why decord cannot be trusted with such a file; "" if nothing is known against it."""
    if not packets.container.startswith(DECORD_CONTAINERS):
        return f"decord is not used on {packets.container}"
    if packets.edited or any(packets.hidden):
        return "an edit list or auxiliary frames, which decord counts as frames"
    if not packets.countable:
        return "frames without time stamps of their own"
    if packets.open_groups:
        return "open groups of pictures, in which decord jumps to wrong frames"
    return ""


def _disagreement(media: Media, packets: Scan, watched: readers.Watched) -> str:
    """How decord's frames, asked for in random order, differ from PyAV's; "" if they do not."""
    try:
        with readers.decord_reader(media) as reader:
            if len(reader) != packets.num_frames:
                return f"decord counts {len(reader)} frames of {packets.num_frames}"
            for index, expected in watched.samples.items():
                pixels = readers.thinned(reader[index].asnumpy())
                if pixels.shape != expected.shape:
                    return "decord's frames are of another size"
                worst = np.abs(pixels.astype(np.int16) - expected).max()
                if worst > TOLERANCE:
                    return f"decord's frame {index} differs by {worst} levels"
    except VideoError:
        return "decord cannot decode it"
    return ""
