"""Video files to RGB frames, numbered in the order in which they are shown. Two readers.

PyAV finds frames by their time stamps and notices damage. decord is fooled by edit lists, by open
groups of pictures and by MPEG-TS, hides damage, and dies of truncated AVI in memory
(tests/data/test_video_readers.py): it is for files that probe.py has proven it exact on. Both turn
the picture upright and convert colours as the ffmpeg command does.
"""

import itertools
import logging
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.metadata import version
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame

from pusa.data.media import Media
from pusa.data.packets import REMEDY, Scan, cut_short, opened, source
from pusa.data.timeline import VideoError

log = logging.getLogger(__name__)
_BATCH_BYTES = 2**26  # of frames that decord returns at once
_SEEKS = 4  # key frames to try before decoding from the file's beginning


def versions() -> dict[str, str]:
    """Version of each reader; PyAV's with the decoder library that it was built with."""
    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    return {
        "decord": version("decord"), "pyav": f"{av.__version__}/lavc{codec}",
        "image": version("pillow"),
    }  # fmt: skip


class Upright:
    """Decoded frames -> upright uint8 RGB arrays (H, W, 3) of one size."""

    def __init__(self, media: Media):
        self.media = media
        self.graphs: dict[tuple, Graph] = {}
        self.size: tuple[int, ...] = ()
        self.rotation = 0  # degrees by which pictures are turned clockwise for display

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """VideoError if the size changes within the file, or for a slanted picture."""
        look = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if look not in self.graphs:
            self.graphs[look] = _converter(*look)
        graph = self.graphs[look]
        graph.push(frame)
        pixels = graph.pull().to_ndarray()
        quarters, slant = divmod(frame.rotation, 90)
        if slant:
            raise VideoError(f"{self.media}: is turned by {frame.rotation} degrees; re-encode it.")
        self.rotation = -frame.rotation % 360
        pixels = np.rot90(pixels, quarters)
        if self.size and pixels.shape != self.size:
            sizes = " to ".join(f"{s[1]}x{s[0]}" for s in (self.size, pixels.shape))
            raise VideoError(f"{self.media}: changes its size from {sizes}; re-encode it.")
        self.size = pixels.shape
        return pixels


def _converter(width: int, height: int, name: str, colorspace: int, color_range: int) -> Graph:
    """The conversion of the ffmpeg command: its scale filter, which knows matrices, ranges and
    interlacing. frame.reformat was off by up to 25 levels on 10 bits and 70 on interlaced frames.
    """
    graph = Graph()
    arguments = (
        f"video_size={width}x{height}:pix_fmt={name}:time_base=1/1000:"
        f"colorspace={colorspace}:range={color_range}"
    )
    graph.link_nodes(
        graph.add("buffer", arguments), graph.add("scale", "flags=bicubic"),
        graph.add("format", "rgb24"), graph.add("buffersink"),
    ).configure()  # fmt: skip
    return graph


def decoded(media: Media, packets: Iterable, ignore_before: int | None = None) -> Iterator:
    """Frames of packets as the decoder gives them. VideoError at the first damaged one.

    Trouble before the time stamp ignore_before is passed over: after a jump, leading frames of an
    open group lack what they refer to.
    """
    for packet in packets:
        early = ignore_before is not None and (packet.pts or 0) < ignore_before
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            if early and packet.size:
                continue
            raise VideoError(_damaged(media, packet.pts, packet.time_base, error)) from error
        for frame in frames:
            if ignore_before is not None and frame.pts is not None and frame.pts < ignore_before:
                continue
            if frame.is_corrupt:
                raise VideoError(_damaged(media, frame.pts, frame.time_base, "damaged picture"))
            yield frame


def _damaged(media: Media, pts: int | None, tick: Fraction | None, why: object) -> str:
    place = f" at {float(pts * tick):.2f} s" if pts is not None and tick else ""
    return f"{media}: is damaged or truncated{place} ({str(why).strip()}); {REMEDY}"


def read_first(media: Media, num_frames: int | None) -> Iterator[np.ndarray]:
    """The first frames (H, W, 3), by PyAV in one pass. VideoError if there are fewer."""
    upright, found = Upright(media), 0
    with opened(media) as (container, stream):
        for frame in itertools.islice(decoded(media, container.demux(stream)), num_frames):
            found += 1
            yield upright(frame)
    if found == 0 or (num_frames is not None and found < num_frames):
        raise VideoError(cut_short(media, num_frames or 0, found))


@dataclass(frozen=True)
class Watched:
    """What decoding all frames showed. scan: corrected by it; samples: upright frames, thinned to
    about 256 pixels a side; height, width: upright, in pixels; rotation: clockwise, in degrees."""

    scan: Scan
    samples: dict[int, np.ndarray]
    height: int
    width: int
    rotation: int


def watch(media: Media, scan: Scan, samples: Sequence[int] = ()) -> Watched:
    """Decode every frame once, with PyAV. VideoError for damage."""
    upright, wanted, stamps = Upright(media), {0, *samples}, []
    kept: dict[int, np.ndarray] = {}
    with opened(media) as (container, stream):
        for index, frame in enumerate(decoded(media, container.demux(stream))):
            stamps.append(frame.pts)
            if index in wanted:
                kept[index] = thinned(upright(frame))
    if not kept:
        raise VideoError(f"{media}: no frame can be decoded, it is truncated or not a video.")
    height, width = upright.size[:2]
    if stamps != list(scan.shown):  # some codecs have packets that show nothing
        log.debug("%s: %d frames of %d packets.", media, len(stamps), scan.num_frames)
        scan = _corrected(scan, stamps)
    return Watched(scan, kept, height, width, upright.rotation)


def _corrected(scan: Scan, stamps: list[int | None]) -> Scan:
    known = [p for p in stamps if p is not None]
    ascend = len(known) == len(stamps) and all(a < b for a, b in itertools.pairwise(known))
    if ascend and scan.countable and {*known} <= {*scan.pts}:
        return replace(scan, hidden=tuple(p not in {*known} for p in scan.pts))
    return scan.counted(len(stamps))


def thinned(pixels: np.ndarray) -> np.ndarray:
    """Every n-th row and column of (H, W, 3), so that many large frames can be kept."""
    rows, columns = (max(1, side // 256) for side in pixels.shape[:2])
    return pixels[::rows, ::columns].copy()


def read_pyav(media: Media, scan: Scan, indices: Iterable[int]) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) of ascending indices, without repeats. VideoError for damage."""
    upright = Upright(media)
    with _Cursor(media, scan) as cursor:
        for index in indices:
            yield upright(cursor.frame(index))


class _Cursor:
    """Where a file is being read: goes forward, and jumps where that skips a key frame."""

    def __init__(self, media: Media, scan: Scan):
        self.media, self.scan = media, scan
        self.file = ExitStack()
        self._restart()

    def __enter__(self) -> "_Cursor":
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self.file.__exit__(*error)

    def frame(self, index: int) -> VideoFrame:
        """A frame later than the last one that was asked for."""
        if not self.scan.countable:
            frame = next(itertools.islice(self.frames, index - self.num_passed, None), None)
            self.num_passed = index + 1
        else:
            stamp = self.scan.shown[index]
            start = self.scan.start_of(stamp)
            if start > self.place:
                self._jump(start)
            frame = self._forward(stamp)
            if frame is None:  # a key frame that does not stand on its own
                self._restart()
                frame = self._forward(stamp)
        if frame is None:
            raise VideoError(f"{self.media}: frame {index} is missing, it is damaged; {REMEDY}")
        return frame

    def _forward(self, stamp: int) -> VideoFrame | None:
        for frame in self.frames:
            if frame.pts is not None and frame.pts >= stamp:
                return frame if frame.pts == stamp else None
        return None

    def _restart(self) -> None:
        self.file.close()
        self.container, self.stream = self.file.enter_context(opened(self.media))
        self.place = 0  # of the next packet, in the order of decoding
        self.num_passed = 0
        self.frames = decoded(self.media, self._count(self.container.demux(self.stream)))

    def _count(self, packets: Iterable) -> Iterator:
        for packet in packets:
            self.place += 1
            yield packet

    def _jump(self, start: int) -> None:
        """Go to the key frame at a place. Containers differ in whether they seek by the time of
        decoding or of display, so the landing is looked up, and an earlier key frame tried."""
        keys = self.scan.key_places
        after = bisect_right(keys, start)
        for place in reversed(keys[max(0, after - _SEEKS) : after]):
            packets = self._seek(place)
            landing = next(packets, None)
            found = None if landing is None else self.scan.places.get(landing.pts)
            if found is not None and found <= start:
                self.place = found
                packets = self._count(itertools.chain([landing], packets))
                self.frames = decoded(self.media, packets, ignore_before=self.scan.pts[start])
                return
        self._restart()

    def _seek(self, place: int) -> Iterator:
        try:
            self.container.seek(self.scan.pts[place] or 0, stream=self.stream)
        except av.FFmpegError:  # formats without an index
            return iter(())
        return iter(self.container.demux(self.stream))


def read_decord(
    media: Media, indices: Sequence[int], height: int, width: int
) -> Iterator[np.ndarray]:
    """Frames (height, width, 3) of ascending indices. Only for files that were proven."""
    size = max(1, _BATCH_BYTES // (3 * height * width))
    with decord_reader(media) as reader:
        for start in range(0, len(indices), size):
            yield from reader.get_batch(indices[start : start + size]).asnumpy()


@contextmanager
def decord_reader(media: Media) -> Iterator[Any]:
    """An open decord reader. Opened where it is used: one made before a fork hangs after it."""
    # Imported late: decord starts native threads, and only processes that decode should pay.
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        yield decord.VideoReader(source(media), num_threads=1)
    except (decord.DECORDError, RuntimeError, IndexError, AssertionError) as error:
        first_line = next(iter(str(error).strip().splitlines()), repr(error))
        raise VideoError(f"{media}: decord cannot decode it ({first_line}); {REMEDY}") from error
