"""Scores of videos by dimension in an append-only file, so that an interrupted run goes on.

A row is valid for the bytes of its video and reference, the prompt, the backbone's file and the way
of resizing: whatever changes is measured again. Processes that share the work write a file each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pusa.evaluation.metrics.dimension import Dimension, Reading
from pusa.evaluation.metrics.frames import FileFrames
from pusa.evaluation.score import append_rows, fingerprint, read_rows
from pusa.evaluation.suite import Progress, silent
from pusa.pipelines.parts import Part


@dataclass(frozen=True)
class Job:
    """A video to be scored. reference: its input image; prompt: its text."""

    video: Path
    reference: Path | None = None
    prompt: str = ""


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
    dimension: Dimension,
    jobs: Sequence[Job],
    path: str | Path,
    progress: Progress = silent,
    part: Part = Part(),  # noqa: B008 - frozen
) -> list[Measured]:
    """Score this part's videos, but for those that the ledger `path` (.jsonl) knows.

    The dimension is updated with every one of them, so that its compute() is the figure, gathered
    over the ranks where torch.distributed runs. Returns the rows in the order of the jobs.
    """
    path = Path(path)
    known = {
        row.key: row
        for file in (path, *sorted(path.parent.glob(f"{path.stem}.*-of-*{path.suffix}")))
        for row in read_rows(file, Measured)
    }
    if part.count > 1:
        path = path.with_stem(f"{path.stem}.{part.index}-of-{part.count}")
    rows = []
    for job in progress(part.of(list(jobs)), dimension.name):
        key = _key(dimension, job)
        if key not in known:
            score = dimension.score_video(FileFrames(job.video), job.reference, job.prompt)
            known[key] = _row(dimension, key, score)
            append_rows(path, [known[key]])
        row = known[key]
        dimension.update(Reading(row.score, row.num_frames, row.extras))
        rows.append(row)
    return rows


def _key(dimension: Dimension, job: Job) -> tuple:
    marks = [fingerprint(file) for file in (job.video, job.reference) if file is not None]
    backbone = dimension.backbone
    return (
        dimension.name, job.video.name, job.prompt, "+".join(marks),
        "" if backbone is None else backbone.id, "" if backbone is None else backbone.sha256,
        dimension.resize,
    )  # fmt: skip


def _row(dimension: Dimension, key: tuple, score: Reading) -> Measured:
    name, video, prompt, mark, backbone, sha256, resize = key
    comparable = dimension.backbone is None or dimension.backbone.comparable
    return Measured(
        name, video, prompt, mark, backbone, sha256, comparable, resize, score.score,
        score.num_frames, dict(score.extras),
    )  # fmt: skip
