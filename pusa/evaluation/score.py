"""Scores of video files, kept in an append-only scores.jsonl: one row per video and metric.

A row is valid for the file it was measured on (`fingerprint`), so an interrupted run goes on where
it stopped, a video that was made again is scored again, and an added metric fills in its rows.
Processes that share the work write a file each beside it, scores.I-of-N.jsonl.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pusa.data import toy, video
from pusa.evaluation.suite import Progress, SuiteItem, silent
from pusa.metrics import registry
from pusa.metrics.registry import Sample
from pusa.pipelines.parts import Part

R = TypeVar("R")
TAIL = 2**16  # bytes looked at together for the last whole line


@dataclass(frozen=True)
class Row:
    """One number. `value` is None where the metric does not apply to the clip."""

    system: str
    seed: int
    index: int
    metric: str
    value: float | None
    fingerprint: str

    @property
    def key(self) -> tuple:
        return self.system, self.seed, self.index, self.metric, self.fingerprint


@dataclass(frozen=True)
class VideoFile:
    """A system's video of a suite item."""

    system: str
    seed: int
    item: SuiteItem
    path: Path


def score_videos(
    path: str | Path,
    videos: Sequence[VideoFile],
    progress: Progress = silent,
    part: Part = Part(),  # noqa: B008 - frozen
) -> list[Row]:
    """Every metric of every video; what no file of the parts holds yet is added to `path`, or to
    the file of this part.

    path: scores.jsonl. Returns the rows of `videos` alone, in their order. Raises VideoError for a
    missing video.
    """
    path = Path(path)
    known = {
        row.key: row
        for file in (path, *sorted(path.parent.glob(f"{path.stem}.*-of-*{path.suffix}")))
        for row in read_rows(file)
    }
    if part.count > 1:
        path = path.with_stem(f"{path.stem}.{part.index}-of-{part.count}")
    wanted = [(file, _keys(file)) for file in videos]
    pending = [(file, keys) for file, keys in wanted if any(key not in known for key in keys)]
    for file, keys in progress(pending, "score"):
        sample = sample_of(file)
        missing = [key for key in keys if key not in known]
        rows = [_measure(sample, key) for key in missing]
        append_rows(path, rows)
        known.update({row.key: row for row in rows})
    return [known[key] for _, keys in wanted for key in keys]


def sample_of(file: VideoFile) -> Sample:
    """The decoded video beside its item's truth."""
    scene, truth = file.item.scene, file.item.frames()
    rendering = toy.render(scene)
    frames, _ = video.read_frames(file.path)
    return Sample(frames, truth, rendering.sprite, rendering.determined, scene.direction, scene.pan)


def fingerprint(path: str | Path) -> str:
    """Size and hash of a file's bytes; VideoError if it is not there."""
    path = Path(path)
    if not path.is_file():
        raise video.VideoError(f"{path}: no such file; run the comparison again to make it.")
    content = path.read_bytes()
    return f"{len(content)}-{hashlib.blake2b(content, digest_size=8).hexdigest()}"


def read_rows(path: str | Path, kind: type[R] = Row) -> list[R]:
    """All rows of a scores.jsonl in the order of writing; none if it is not there.

    kind: the dataclass whose fields a line holds.

    A last line without its newline is the trace of an interrupted run and is left out. ValueError
    names any other line that is not a row.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text().split("\n")[:-1], start=1):
        try:
            rows.append(kind(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}:{number}: not a score ({error}); delete that line, it is measured again."
            ) from error
    return rows


def append_rows(path: str | Path, rows: Sequence[Any]) -> None:
    """Add rows, dataclasses, to the end of a scores.jsonl in one write; a half-written last line is
    cut off."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.truncate(_whole_lines(file))
        file.write("".join(json.dumps(asdict(row)) + "\n" for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())


def _whole_lines(file: BinaryIO) -> int:
    """Bytes up to the last newline. Read from the end, since a ledger grows by many appends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = file.seek(max(0, end - TAIL))
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _keys(file: VideoFile) -> list[tuple]:
    mark = fingerprint(file.path)
    return [(file.system, file.seed, file.item.index, name, mark) for name in registry.names()]


def _measure(sample: Sample, key: tuple) -> Row:
    system, seed, index, metric, mark = key
    return Row(system, seed, index, metric, registry.lookup(metric).function(sample), mark)
