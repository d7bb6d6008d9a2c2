"""One media file examined: decoded once, whole, for `pusa data check`. Runs in worker processes;
what comes of it is judged in check.py."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pusa.data import video
from pusa.data.media import Media

THUMBNAIL = 32  # pixels; frames are compared at this size
CUT_RATIO = 6.0  # a cut differs so many times more than the clip's median pair of frames,
CUT_FLOOR = 10.0  # and by so many of 255 grey levels


@dataclass(frozen=True)
class Facts:
    """What a whole, readable file is. fps 0 and codec "image" of an image; duration in seconds;
    cuts: the frames that begin a new shot; looks: perceptual hashes of first, middle and last
    frame."""

    digest: str
    codec: str
    pixel_format: str
    num_frames: int
    fps: float
    variable_rate: bool
    duration: float
    height: int
    width: int
    rotation: int
    has_audio: bool
    reader: str
    cuts: tuple[int, ...]
    looks: tuple[str, ...]


@dataclass(frozen=True)
class Fault:
    """Why a file cannot be used. reason: a few words that are the same for all such files; digest:
    "" if the file could not be read to its end."""

    reason: str
    message: str
    digest: str = ""


Outcome = Facts | Fault
NO_END, DEAD_WORKER = "did not end in time", "crashed the decoder"


def examine(media: Media) -> Outcome:
    """Hash the file, decode every frame and compare neighbours."""
    if media.num_bytes() == 0 and media.path.is_file():
        return Fault("empty", f"{media}: the file is empty (0 bytes); copy or export it again.")
    digest = media.digest()
    try:
        found = video.probe(media)
        every = range(found.num_frames)
        thumbnails = video.read_fitted(media, every, THUMBNAIL, THUMBNAIL, "stretch", found).float()
    except video.VideoError as error:
        return Fault("unreadable", str(error), digest)
    first_middle_last = (0, len(thumbnails) // 2, -1)
    return Facts(
        digest, found.codec, found.pixel_format, found.num_frames, found.fps,
        found.variable_rate, found.duration, found.height, found.width, found.rotation,
        found.has_audio, found.reader, find_cuts(thumbnails),
        tuple(difference_hash(thumbnails[i]) for i in first_middle_last),
    )  # fmt: skip


def find_cuts(frames: Tensor) -> tuple[int, ...]:
    """Frames of (T, 3, h, w) in 0..255 that differ from the one before far more than is usual in
    the clip: a cut, or a flash."""
    differences = (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))  # (T - 1,)
    if not len(differences):
        return ()
    threshold = max(CUT_FLOOR, CUT_RATIO * float(differences.median()))
    return tuple((torch.nonzero(differences > threshold)[:, 0] + 1).tolist())


def difference_hash(frame: Tensor) -> str:
    """64 bits, in hex, of which of two neighbouring areas is brighter; frame: (3, h, w) in 0..255.

    The dHash of N. Krawetz (hackerfactor.com, 2013): survives scaling and re-encoding.
    """
    grey = functional.adaptive_avg_pool2d(frame.mean(0, keepdim=True)[None], (8, 9))[0, 0]
    bits = (grey[:, 1:] > grey[:, :-1]).flatten().tolist()
    return f"{sum(bit << place for place, bit in enumerate(bits)):016x}"


def examine_all(
    media: Sequence[Media],
    workers: int,
    timeout: float,
    function: Callable[[Media], Outcome] = examine,
) -> Iterator[tuple[Media, Outcome]]:
    """Examine files in worker processes, in any order; a file that kills its worker or takes longer
    than `timeout` seconds comes back as a Fault.

    ValueError if workers cannot be started at all.
    """
    from pebble import ProcessPool

    if not media:
        return
    # Not fork: decord hangs in a forked process.
    context: Any = get_context("spawn")
    pool = ProcessPool(workers, initializer=_start_worker, context=context)
    running: dict[Future, Media] = {}
    waiting = iter(media)
    try:
        while True:
            # A few per worker, so that a million clips are not a million waiting tasks.
            while len(running) < 4 * workers and (item := next(waiting, None)) is not None:
                running[pool.schedule(function, [item], timeout=timeout)] = item
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                item = running.pop(future)
                yield item, _outcome(future, item, timeout)
        pool.close()
    finally:
        pool.stop()
        pool.join()


def _outcome(future: Future, media: Media, timeout: float) -> Outcome:
    from pebble import ProcessExpired
    from pebble.pool.process import BrokenProcessPool

    try:
        return future.result()
    except TimeoutError:
        message = f"{media}: not decoded within {timeout:g} s; drop it, or raise --timeout."
        return Fault(NO_END, message)
    except ProcessExpired as error:
        message = f"{media}: the process that decoded it died (exit code {error.exitcode})."
        return Fault(DEAD_WORKER, f"{message[:-1]}; drop it or export it again.")
    except BrokenProcessPool as error:
        raise ValueError(f"worker processes cannot be started ({error}).") from error
    except Exception as error:  # whatever a library raises: it is this file's fault
        return Fault("unreadable", f"{media}: {type(error).__name__}: {error}")


def _start_worker() -> None:
    torch.set_num_threads(1)
    # Decoders print to the terminal of their own accord; what they have to say is in their errors.
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
