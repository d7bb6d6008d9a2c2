"""Conditions as the page's table holds them: rows of text, and what they mean in the language of
`pusa generate`. Knows no page."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from pusa.pipelines.placements import Placement, place
from pusa.pipelines.positions import Span, Timing, read_span
from pusa.pipelines.tasks import EVENLY, Given, Task, parse_given

COLUMNS = ("position", "file", "part", "multipliers", "encode as")


@dataclass(frozen=True)
class Row:
    """A line of the table. file: the name of an upload, "" where one is still missing; the others
    are written as for --at."""

    at: str
    file: str = ""
    part: str = ""
    multipliers: str = "0.2"
    encode_as: str = "auto"

    def written(self, file: str) -> str:
        """As the argument of --at, with `file` in place of the name."""
        part = f"@{self.part}" if self.part else ""
        multipliers = f":{self.multipliers}" if self.multipliers else ""
        return f"{self.at}={file}{part}{multipliers}:{self.encode_as or 'auto'}"


def read_table(cells: Sequence[Sequence[Any]]) -> tuple[Row, ...]:
    """The table's cells, spaces and empty lines left out."""
    lines = [[_text(cell) for cell in line] for line in cells]
    return tuple(Row(*line) for line in lines if any(line))


def as_table(rows: Sequence[Row]) -> list[list[str]]:
    return [[row.at, row.file, row.part, row.multipliers, row.encode_as] for row in rows]


def fill(task: Task, files: Sequence[str], timing: Timing) -> tuple[Row, ...]:
    """The rows of a task for the uploads there are: its media in turn, "" for what is missing.

    Evenly spread images get positions, so that they can be moved.
    """
    wanted = max(2, len(files)) if task.num_media is None else task.num_media
    names = [files[i] if i < len(files) else "" for i in range(wanted)]
    numbers = [f"medium {i}" for i in range(wanted)]
    given = task.with_media(numbers)
    evenly = [row for row in given if row.at == EVENLY]
    spread = iter(place(evenly, timing, dict.fromkeys(numbers, 1)))
    rows = []
    for row in given:
        at = str(next(spread).at) if row.at == EVENLY else row.at
        multipliers = ",".join(f"{m:g}" for m in row.multipliers)
        name = names[numbers.index(row.file)]
        rows.append(Row(at, name, row.part, multipliers, row.encode_as))
    return tuple(rows)


def uploaded(
    rows: Sequence[Row], before: Sequence[str], now: Sequence[str], task: Task, timing: Timing
) -> tuple[Row, ...]:
    """The rows once the uploads have changed: those of what is gone are empty, what is new fills
    empty ones, then the widest gaps; images that a task spreads evenly are spread again."""
    if task.num_media is None and tuple(rows) == fill(task, before, timing):
        return fill(task, now, timing)
    kept = [row if row.file in now else replace(row, file="") for row in rows]
    unused = [name for name in now if name not in {row.file for row in kept}]
    for i, row in enumerate(kept):
        if not row.file and unused:
            kept[i] = replace(row, file=unused.pop(0))
    if task.join is None:
        for name in unused:
            kept.append(Row(str(_widest_gap(kept, timing)), name))
    return tuple(kept)


def moved(row: Row, frame: int, timing: Timing) -> Row:
    """The row from pixel frame `frame` on; an image goes there exactly, what covers latent frames
    to the one that holds it, since these cannot be divided, and keeps their number.

    What would leave the video stops at its ends. ValueError if its position cannot be read.
    """
    span = read_span(row.at, timing)
    frame = min(max(frame, 0), timing.num_frames - 1)
    if span.point and not row.part and not row.at.startswith("latent:"):
        return replace(row, at=str(frame))
    covers = 0 if span.point else _latent(span.last, timing) - _latent(span.first, timing)
    start = min(_latent(frame, timing), timing.num_latents - 1 - covers)
    return replace(row, at=f"latent:{start}" + (f"..{start + covers}" if covers else ""))


def given_of(rows: Sequence[Row], files: Mapping[str, str]) -> tuple[Given, ...]:
    """The rows in the language. files: name of an upload -> its path. ValueError for a row without
    a file, a file that is none of the uploads, and whatever the language refuses."""
    result = []
    for i, row in enumerate(rows, 1):
        if not row.file:
            raise ValueError(f"condition {i}, at {row.at}, has no file; upload an image or clip.")
        if row.file not in files:
            known = ", ".join(files) or "none yet"
            raise ValueError(f"condition {i}: {row.file!r} is no upload; there are: {known}.")
        result.append(parse_given(row.written(files[row.file])))
    return tuple(result)


def condition_words(
    task: Task, rows: Sequence[Row], files: Mapping[str, str], timing: Timing
) -> list[str]:
    """Arguments of `pusa generate` that give what the rows give: the task's name where they are as
    it fills them, a changed one where media are joined to the video, else --at for each.

    files: name -> path of all uploads, in order. ValueError: see `given_of`.
    """
    given = given_of(rows, files)
    used = max((list(files).index(row.file) + 1 for row in rows), default=0)
    names, paths = list(files)[:used], list(files.values())[:used]
    if task.given and _fits(task, used) and tuple(rows) == fill(task, names, timing):
        return ["--task", task.name, *paths]
    if task.join is None:
        return [f"--at={row.written(files[row.file])}" for row in rows]
    if not _fits(task, used):
        raise ValueError(
            f"{task.name} joins {task.num_media} clip(s) to the video, the conditions use {used} "
            "of the uploads; name each of the first ones once."
        )
    numbered = ",".join(
        "{" + f"at:{_quoted(row.at)},medium:{names.index(line.file)},part:{_quoted(row.part)},"
        f"multipliers:[{','.join(f'{m:g}' for m in row.multipliers)}],encode_as:{row.encode_as}"
        + "}"
        for row, line in zip(given, rows, strict=True)
    )  # fmt: skip
    return ["--task", task.name, *paths, "--set", f"task.given=[{numbered}]"]


def where(rows: Sequence[Row], lengths: Mapping[str, int], timing: Timing) -> list[Placement]:
    """What the rows come to, also while files are missing: such a one is taken for a clip as long
    as the video where a range or part is asked for, else for an image.

    lengths: of the uploads, in frames at the video's rate. ValueError as of `place`.
    """
    given, known = [], {}
    for i, row in enumerate(rows, 1):
        name = row.file if row.file in lengths else f"missing{i}"
        unseen = timing.num_frames if row.part or ".." in row.at else 1
        known[name] = lengths.get(row.file, unseen)
        given.append(parse_given(row.written(name)))
    return place(given, timing, known)


def span_of(row: Row, timing: Timing) -> Span | None:
    """The pixel frames that a row's position names; None if it names none."""
    try:
        return read_span(row.at, timing)
    except ValueError:
        return None


def _widest_gap(rows: Sequence[Row], timing: Timing) -> int:
    """The frame in the middle of the longest stretch without a condition; 0 if there is none."""
    spans = [span for span in (span_of(row, timing) for row in rows) if span is not None]
    if not spans:
        return 0
    taken = sorted({frame for span in spans for frame in (span.first, span.last)})
    edges = [-1, *taken, timing.num_frames]
    left, right = max(pairwise(edges), key=lambda gap: gap[1] - gap[0])
    return min(max((left + right) // 2, 0), timing.num_frames - 1)


def _fits(task: Task, count: int) -> bool:
    return count >= 2 if task.num_media is None else count == task.num_media


def _latent(frame: int, timing: Timing) -> int:
    return timing.spec.latent_index(frame)


def _text(cell: Any) -> str:
    """A cell as text; None and NaN, which an empty one may come as, are nothing."""
    return "" if cell is None or cell != cell else str(cell).strip()


def _quoted(text: str) -> str:
    return "'" + re.sub(r"(['\\])", r"\\\1", text) + "'"
