"""Scores of videos by dimension in an append-only file, so that an interrupted run goes on.

A row is valid for the bytes of its video and reference, the prompt, the backbone's file and the way
of resizing: whatever changes is measured again. Processes that share the work write a file each.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pusa.data.video import VideoError
from pusa.evaluation import scoring
from pusa.evaluation.metrics.dimension import Dimension, Reading
from pusa.evaluation.metrics.frames import HELD_BYTES, Frames, open_frames
from pusa.evaluation.score import append_rows, fingerprint, read_rows
from pusa.evaluation.suite import Progress, silent
from pusa.evaluation.vbench_suite import few
from pusa.pipelines.parts import Part


@dataclass(frozen=True)
class Job:
    """A video to be scored. reference: its input image, None where no dimension asks for it;
    prompt: its text; dimensions: that it is scored in."""

    video: Path
    reference: Path | None
    prompt: str
    dimensions: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """One number and what it stands on. fingerprint: of the video, and of its reference."""

    dimension: str
    video: str
    prompt: str
    fingerprint: str
    backbone: str
    sha256: str
    comparable: bool
    resize: str
    score: float
    num_frames: int
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple:
        return (
            self.dimension, self.video, self.prompt, self.fingerprint, self.backbone, self.sha256,
            self.resize,
        )  # fmt: skip


def measure(
    dimensions: Mapping[str, Dimension],
    jobs: Sequence[Job],
    path: str | Path,
    progress: Progress = silent,
    part: Part = Part(),  # noqa: B008 - frozen
    held_bytes: int = HELD_BYTES,
) -> list[Measured]:
    """Score this part's videos in what the ledger `path` (.jsonl) does not know of them.

    Video by video, so that each is decoded once for all its dimensions (see open_frames for
    held_bytes); its rows are written together. Every dimension is updated with all of them, so that
    its compute() is the figure, gathered over the ranks where torch.distributed runs.

    Returns the rows in the order of the jobs and their dimensions. ValueError, before anything is
    measured, for an unknown dimension and files that are not there; and, with what was measured
    before it on file, for a video that cannot be read or is too short, a missing reference, and a
    score that is not finite. Each names the video.
    """
    path, jobs = Path(path), part.of(list(jobs))
    _require(dimensions, jobs)
    known = {
        row.key: row
        for file in (path, *sorted(path.parent.glob(f"{path.stem}.*-of-*{path.suffix}")))
        for row in read_rows(file, Measured)
    }
    if part.count > 1:
        path = path.with_stem(f"{path.stem}.{part.index}-of-{part.count}")
    mark = functools.cache(fingerprint)  # of a file once, whoever asks
    rows = []
    for job in progress(jobs, "score"):
        keys = {name: _key(dimensions[name], job, mark) for name in job.dimensions}
        missing = {name: key for name, key in keys.items() if key not in known}
        if missing:
            found = _measure_video(dimensions, job, missing, path, held_bytes)
            known.update({row.key: row for row in found})
        for name, key in keys.items():
            row = known[key]
            dimensions[name].update(Reading(row.score, row.num_frames, row.extras))
            rows.append(row)
    return rows


def video_scores(
    rows: Sequence[Measured], videos: Mapping[str, tuple[str, int]]
) -> list[scoring.VideoScore]:
    """Rows as means, intervals and tests take them. videos: file name -> its prompt's stem and its
    sample. ValueError for a row of another video."""
    strange = sorted({row.video for row in rows} - videos.keys())
    if strange:
        raise ValueError(
            f"{few(strange, 'scored videos')} of no prompt of the suite; score its own videos."
        )
    return [
        scoring.VideoScore(row.dimension, *videos[row.video], row.score, row.num_frames)
        for row in rows
    ]


def _require(dimensions: Mapping[str, Dimension], jobs: Sequence[Job]) -> None:
    unknown = sorted({name for job in jobs for name in job.dimensions} - dimensions.keys())
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)}: asked for, but not among {', '.join(dimensions) or 'none'}; "
            "build it, or leave it out of the jobs."
        )
    files = [file for job in jobs for file in (job.video, job.reference) if file is not None]
    absent = sorted({str(file) for file in files if not file.is_file()})
    if absent:
        raise ValueError(f"{few(absent, 'files')} not there; make them, or leave out their jobs.")


def _measure_video(
    dimensions: Mapping[str, Dimension],
    job: Job,
    keys: Mapping[str, tuple],
    path: Path,
    held_bytes: int,
) -> list[Measured]:
    """Rows of the keys, by dimension. Where one fails, those before it are written, too."""
    frames, rows = open_frames(job.video, held_bytes), []
    try:
        for name, key in keys.items():
            rows.append(_row(dimensions[name], key, _read(dimensions[name], job, frames)))
    finally:
        append_rows(path, rows)
    return rows


def _read(dimension: Dimension, job: Job, frames: Frames) -> Reading:
    """ValueError that names the video."""
    try:
        reading = dimension.score_video(frames, job.reference, job.prompt)
    except VideoError:
        raise
    except ValueError as error:
        raise ValueError(f"{job.video}: {error}") from error
    if not math.isfinite(reading.score):
        backbone = "no backbone" if dimension.backbone is None else dimension.backbone.id
        raise ValueError(
            f"{job.video}: {dimension.name} ({backbone}) gives {reading.score}, which is no score; "
            "look at the video and the network's precision."
        )
    return reading


def _key(dimension: Dimension, job: Job, mark: Callable[[Path], str]) -> tuple:
    marks = [mark(file) for file in (job.video, job.reference) if file is not None]
    backbone = dimension.backbone
    return (
        dimension.name, job.video.name, job.prompt, "+".join(marks),
        "" if backbone is None else backbone.id, "" if backbone is None else backbone.sha256,
        dimension.resize,
    )  # fmt: skip


def _row(dimension: Dimension, key: tuple, reading: Reading) -> Measured:
    name, video, prompt, mark, backbone, sha256, resize = key
    comparable = dimension.backbone is None or dimension.backbone.comparable
    return Measured(
        name, video, prompt, mark, backbone, sha256, comparable, resize, reading.score,
        reading.num_frames, dict(reading.extras),
    )  # fmt: skip
