"""What the packets of a video file tell before anything is decoded: when frames are shown, where
decoding can begin, whether the file is whole. Pictures are made in readers.py."""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any, BinaryIO, NamedTuple

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from pusa.data import wholeness
from pusa.data.media import Media
from pusa.data.timeline import VideoError, is_variable, rate

BARE = frozenset({"h264", "hevc", "vvc", "obu", "m4v", "mpegvideo"})
REMEDY = "copy or export it again, or drop it."


@dataclass(frozen=True)
class Scan:
    """What the packets of a video stream tell without decoding.

    rate: the container's word, 0 if it gives none. pts, keys, hidden: time stamps, key frames, and
    packets that show nothing (cut off by an edit list, or auxiliary), in the order of decoding.
    edited: an edit list cuts something off. end: the last frame's display time in ticks.
    """

    container: str
    codec: str
    pixel_format: str
    bit_depth: int
    rate: float
    tick: Fraction
    has_audio: bool
    pixel_aspect: float
    edited: bool
    end: int
    pts: tuple[int | None, ...]
    keys: tuple[bool, ...]
    hidden: tuple[bool, ...]

    @cached_property
    def countable(self) -> bool:
        """Whether frames can be told by their time stamps."""
        return None not in self.pts and len(set(self.pts)) == len(self.pts)

    def counted(self, num_frames: int) -> "Scan":
        """Without time stamps: frames are counted from the beginning of the file."""
        return replace(
            self, pts=(None,) * num_frames, keys=(False,) * num_frames,
            hidden=(False,) * num_frames,
        )  # fmt: skip

    @cached_property
    def shown(self) -> tuple[int, ...]:
        """Time stamps, in ticks, of the frames in the order in which they are shown."""
        stamps = [p for p, hidden in zip(self.pts, self.hidden, strict=True) if not hidden]
        return tuple(sorted(p for p in stamps if p is not None))

    @property
    def num_frames(self) -> int:
        return len(self.hidden) - sum(self.hidden)

    @cached_property
    def open_groups(self) -> bool:
        """Whether frames shown before a key frame are stored after it."""
        latest = None
        for stamp, key in zip(self.pts, self.keys, strict=True):
            if key:
                latest = stamp
            elif latest is not None and stamp is not None and stamp < latest:
                return True
        return False

    @cached_property
    def timestamps(self) -> tuple[float, ...]:
        """Seconds at which frames are shown; the first at 0."""
        if not self.countable:
            return tuple(i / (self.rate or 1.0) for i in range(self.num_frames))
        return tuple(float((p - self.shown[0]) * self.tick) for p in self.shown)

    @property
    def fps(self) -> float:
        """Average rate; the container's word where it agrees with the time stamps."""
        measured = rate(self.timestamps)
        off = abs(self.rate / measured - 1) * (self.num_frames - 1) if measured else 0.0
        return self.rate if self.rate and off < 0.25 and not self.variable else measured

    @property
    def variable(self) -> bool:
        return is_variable(self.timestamps)

    @cached_property
    def places(self) -> dict[int, int]:
        """Time stamp -> place in the order of decoding."""
        return {p: i for i, p in enumerate(self.pts) if p is not None}

    @cached_property
    def key_places(self) -> list[int]:
        return [i for i, key in enumerate(self.keys) if key]

    def start_of(self, stamp: int) -> int:
        """The place of the key frame from which on decoding gives the frame of a time stamp.

        In an open group, frames shown before the key frame need the one before.
        """
        before = bisect_right(self.key_places, self.places[stamp])
        for place in reversed(self.key_places[:before]):
            key = self.pts[place]
            if key is not None and key <= stamp:
                return place
        return 0


def scan(media: Media) -> Scan:
    """Read all packets. VideoError if the file is missing, empty, cut short or not a video."""
    size, changed = stamp(media)
    return _scan(media, size, changed)


def stamp(media: Media) -> tuple[int, int]:
    """Size in bytes and time of change in ns. VideoError if there is nothing to read."""
    if media.path.is_dir():
        raise VideoError(f"{media}: is a folder, not a video; name the file in it.")
    if not media.path.is_file():
        raise VideoError(f"{media}: no such file; check the path or the manifest that names it.")
    if media.num_bytes() == 0:
        raise VideoError(f"{media}: the file is empty (0 bytes); copy or export it again.")
    return media.num_bytes(), media.path.stat().st_mtime_ns


class _Packet(NamedTuple):
    """What is kept of a packet; its data would be the whole file."""

    pts: int | None
    dts: int | None
    duration: int
    key: bool
    discarded: bool
    hidden: bool
    corrupt: bool


@lru_cache(maxsize=256)
def _scan(media: Media, size: int, changed: int) -> Scan:
    with opened(media) as (container, stream):
        name = container.format.name
        if name in BARE:
            raise VideoError(
                f"{media}: is a bare stream that knows neither times nor its end; put it into a "
                "container (ffmpeg -i bare.h264 -c copy clip.mp4)."
            )
        if stream is None:
            raise VideoError(f"{media}: no video track, it is truncated or not a video; {REMEDY}")
        packets = _packets(container, stream)
        edited = _require_whole(media, name, stream, packets)
        pixels = stream.codec_context.format
        return Scan(
            container=name,
            codec=stream.codec.canonical_name,
            pixel_format=pixels.name if pixels else "",
            bit_depth=max((c.bits for c in pixels.components), default=0) if pixels else 0,
            rate=float(stream.average_rate or 0),
            tick=stream.time_base or Fraction(1),
            has_audio=bool(container.streams.audio),
            pixel_aspect=float(stream.sample_aspect_ratio or 1),
            edited=edited,
            end=packets[-1].duration,
            # AVI knows the order of decoding only: its time stamps are wrong with B frames.
            pts=tuple(None if name == "avi" else p.pts for p in packets),
            keys=tuple(p.key for p in packets),
            hidden=tuple(p.discarded or p.hidden for p in packets),
        )


def _packets(container: InputContainer, stream: VideoStream) -> list[_Packet]:
    vp8 = stream.codec.canonical_name == "vp8"
    return [
        _Packet(
            p.pts, p.dts, p.duration or 0, p.is_keyframe, p.is_discard,
            # Alternate references of VP8 show nothing: bit 4 is 0 (RFC 6386, section 9.1).
            vp8 and not bytes(p)[0] & 0x10, p.is_corrupt,
        )
        for p in container.demux(stream)
        if p.size
    ]  # fmt: skip


def _require_whole(media: Media, name: str, stream: VideoStream, packets: list[_Packet]) -> bool:
    """VideoError if something is missing. Returns whether an edit list cuts something off."""
    found, promised = len(packets), stream.frames
    broken = next((i for i, p in enumerate(packets) if p.corrupt), found)
    if broken < found - 1:
        raise VideoError(f"{media}: packet {broken} of {found} is damaged; {REMEDY}")
    if broken < found:
        raise VideoError(cut_short(media, promised, found - 1))
    edited = any(p.discarded for p in packets)
    if name == "avi" and packets and packets[-1].dts is not None:
        found = max(found, packets[-1].dts + 1)  # frames that repeat the last one are left out
    if found < promised:
        edited = found < _count_unedited(media) == promised
        if not edited:
            raise VideoError(cut_short(media, promised, found))
    missing = wholeness.shortfall(media)
    if missing:
        raise VideoError(f"{media}: is truncated ({missing}); {REMEDY}")
    if all(p.discarded or p.hidden for p in packets):
        raise VideoError(f"{media}: holds no frame, it is truncated or not a video; {REMEDY}")
    return edited


def _count_unedited(media: Media) -> int:
    with opened(media, {"ignore_editlist": "1"}) as (container, stream):
        return sum(1 for p in container.demux(stream) if p.size)


def cut_short(media: Media, promised: int, found: int) -> str:
    promise = f"its header promises {promised} frames, {found} are whole" if promised else ""
    return f"{media}: is truncated ({promise or f'{found} frames are whole'}); {REMEDY}"


def source(media: Media) -> str | BinaryIO:
    """What decoders open: the absolute path (a relative one may look like a URL) or a stream."""
    return media.open() if media.member else str(media.path.absolute())


@contextmanager
def opened(
    media: Media, options: dict[str, str] | None = None
) -> Iterator[tuple[InputContainer, VideoStream | Any]]:
    """The container and its best video stream (None without one); errors become VideoErrors."""
    try:
        with av.open(
            source(media), "r", options=options or {}, metadata_errors="replace"
        ) as container:
            stream: Any = container.streams.best("video")
            if stream is not None and (
                stream.codec_context is None  # a codec that this build does not know
                or stream.disposition & Disposition.attached_pic  # the cover of a record
            ):
                stream = None
            if stream is not None:
                # Errors then come with the packet that has them, and data loaders have workers.
                stream.thread_type = "NONE"
                stream.codec_context.thread_count = 1
            yield container, stream
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, VideoError):
            raise
        what = getattr(error, "strerror", None) or error
        raise VideoError(
            f"{media}: cannot be decoded, it is truncated or not a video ({what}); {REMEDY}"
        ) from error
