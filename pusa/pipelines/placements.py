"""What the rows of a task come to in a video of some length: which frames of which file stand for
which latent frames. Reads no file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pusa.pipelines.positions import Span, Timing, read_span
from pusa.pipelines.tasks import END, EVENLY, Given, Task

CONTEXT_GROUPS = 4  # groups of frames before a condition that its encoding looks back on


@dataclass(frozen=True)
class Placement:
    """What a row comes to: frames of its medium stand for latent frames of the video.

    multipliers: one for each of the latents. at: the video's pixel frame that was asked for.
    frames: of the medium, shown at the latents' pixel frames (a picture's is repeated); before:
    those of it that its encoding looks back on. encode_as is decided. note: what was rounded or
    left out.
    """

    given: Given
    latents: range
    multipliers: tuple[float, ...]
    at: int
    frames: tuple[int, ...]
    before: tuple[int, ...]
    encode_as: str
    note: str = ""

    @property
    def is_picture(self) -> bool:
        return len(set(self.frames)) == 1


def place(
    rows: Sequence[Given], timing: Timing, lengths: Mapping[str, int], encode_as: str = "auto"
) -> list[Placement]:
    """The placements of rows with files.

    lengths: of each file, in frames at the video's rate; 1: a picture. encode_as: of pictures whose
    row leaves it open. ValueError for a position that does not exist, a clip that is too short, or
    a latent frame that is given twice.
    """
    placed: list[Placement] = []
    holders: dict[int, Given] = {}
    counts: dict[str, int] = {}
    for row in rows:
        order = (counts.get(row.at, 0), sum(other.at == EVENLY for other in rows))
        counts[row.at] = order[0] + 1
        try:
            placement = _place(row, timing, lengths[row.file], order, encode_as)
        except ValueError as error:
            raise ValueError(f"--at {row}: {error}") from error
        for latent in placement.latents:
            if latent in holders:
                raise ValueError(
                    f"--at {row}: latent frame {latent} of {timing.num_latents} is given twice, "
                    f"{holders[latent]} has it, too. A latent frame holds one condition: move one, "
                    "make clips shorter (--overlap) or the video longer (--num-frames)."
                )
            holders[latent] = row
        placed.append(placement)
    return placed


def place_unseen(
    task: Task, timing: Timing, more: Sequence[Given] = (), num_media: int = 3
) -> list[Placement]:
    """The placements of a task, and of more rows, whose media are not there: a row with a range or
    a part is taken for a clip as long as the video, any other for a picture; of `each`, there are
    num_media."""
    count = num_media if task.num_media is None else task.num_media
    rows = (*task.with_media([f"medium {i}" for i in range(count)]), *more)
    named = [replace(row, file=f"{row.file}, row {i}") for i, row in enumerate(rows)]
    lengths = {row.file: timing.num_frames if row.part or ".." in row.at else 1 for row in named}
    return place(named, timing, lengths)


def multipliers_of(placements: Sequence[Placement]) -> dict[int, float]:
    """Latent frame -> noise multiplier, of all that are given."""
    return {
        latent: multiplier
        for placement in placements
        for latent, multiplier in zip(placement.latents, placement.multipliers, strict=True)
    }


def _place(
    row: Given, timing: Timing, length: int, order: tuple[int, int], picture_as: str
) -> Placement:
    if row.at == EVENLY:
        number, count = order
        frame = round(number * (timing.num_frames - 1) / max(1, count - 1))
        span = Span(frame, frame, point=True)
    else:
        span = read_span(row.at, timing)
    start, stop = _part(row, span, replace(timing, num_frames=length))
    if stop - start == 1:
        latents = range(*(timing.spec.latent_index(f) for f in (span.first, span.last)))
        latents = range(latents.start, latents.stop + 1)
        if row.encode_as == "auto":
            row = replace(row, encode_as=picture_as)
        return _picture(row, span.first, latents, timing, start, length)
    return _clip(row, span, timing, start, stop)


def _part(row: Given, span: Span, medium: Timing) -> tuple[int, int]:
    """The frames of a medium that a row takes: from, up to but without."""
    if row.part == END:
        return max(0, medium.num_frames - span.num_frames), medium.num_frames
    if not row.part:
        return 0, medium.num_frames
    part = read_span(row.part, medium)
    return part.first, part.last + 1


def _picture(
    row: Given, at: int, latents: range, timing: Timing, frame: int, length: int
) -> Placement:
    """One frame, held over its latents; of a clip, its own past may be its context."""
    frames = (frame,) * len(timing.frames_of(latents))
    encode_as = "repeated" if row.encode_as == "auto" else row.encode_as
    before = _before(frame, timing) if encode_as == "context" and length > 1 else ()
    return Placement(row, latents, _each(row, latents), at, frames, before, encode_as)


def _clip(row: Given, span: Span, timing: Timing, start: int, stop: int) -> Placement:
    if row.encode_as == "alone":
        raise ValueError("encode_as=alone is for single images; a clip is repeated or in context.")
    spec, has = timing.spec, stop - start
    if not span.point and has < span.num_frames:
        raise ValueError(
            f"the clip has {has} frames ({has / timing.fps:.4g} s at {timing.fps:g} per second) "
            f"there, the range takes {span.num_frames}; shorten it, or name its first frame alone "
            f"to take what there is."
        )
    room = timing.num_frames - span.first if span.point else span.num_frames
    last = span.first + min(has, room) - 1
    latents = _whole_groups(span.first, last, timing)
    frames = timing.frames_of(latents)
    offset = start - span.first
    used = tuple(frame + offset for frame in frames)
    notes = []
    if frames[0] != span.first or frames[-1] != last:
        notes.append(
            f"frames {span.first}..{last} rounded to whole groups of {spec.temporal_stride}"
        )
    if has > room:
        notes.append(f"the clip's other {has - room} frames are left out")
    encode_as = "context" if row.encode_as == "auto" else row.encode_as
    before = _before(used[0], timing) if encode_as == "context" and latents[0] else ()
    return Placement(
        row, latents, _each(row, latents), frames[0], used, before, encode_as, "; ".join(notes)
    )


def _whole_groups(first: int, last: int, timing: Timing) -> range:
    """Latent frames all of whose pixel frames are in first..last."""
    spec = timing.spec
    begin, end = spec.latent_index(first), spec.latent_index(last)
    begin += spec.pixel_frames(begin)[0] != first
    end -= spec.pixel_frames(end)[-1] != last
    if begin > end:
        stride = spec.temporal_stride
        raise ValueError(
            f"frames {first}..{last} hold no whole latent frame; these are 0, 1..{stride}, "
            f"{stride + 1}..{2 * stride} and so on."
        )
    return range(begin, end + 1)


def _before(frame: int, timing: Timing) -> tuple[int, ...]:
    """Frames of a clip before one of it, as many as its encoding looks back on, at most."""
    return tuple(range(max(0, frame - CONTEXT_GROUPS * timing.spec.temporal_stride - 1), frame))


def _each(row: Given, latents: range) -> tuple[float, ...]:
    if len(row.multipliers) > len(latents):
        raise ValueError(
            f"{len(row.multipliers)} noise multipliers for {len(latents)} latent frames "
            f"({latents[0]}..{latents[-1]}); leave the others out."
        )
    missing = len(latents) - len(row.multipliers)
    return row.multipliers + row.multipliers[-1:] * missing


def mapping(placements: Sequence[Placement], timing: Timing) -> str:
    """What every run prints: what stands where, and how noisy it starts."""
    rows = [("given", "video frames", "latent frames", "noise multiplier", "encoded")]
    for placement in placements:
        latents, frames = placement.latents, timing.frames_of(placement.latents)
        encoded = placement.encode_as if latents[0] else "from 0 on"
        rows.append(
            (
                _source(placement), _written(frames), _written(latents),
                _numbers(placement.multipliers), encoded,
            )
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines += [f"{p.given.file}: {p.note}." for p in placements if p.note]
    return "\n".join(lines)


def _source(placement: Placement) -> str:
    frames = placement.frames
    if placement.is_picture:
        return placement.given.file + (f" frame {frames[0]}" if frames[0] else "")
    return f"{placement.given.file} frames {_written(range(frames[0], frames[-1] + 1))}"


def _written(numbers: range) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}..{numbers[-1]}"


def _numbers(multipliers: Sequence[float]) -> str:
    """0, 0.3, 0.5; what the last one repeats is left out."""
    shown = list(multipliers)
    while len(shown) > 1 and shown[-1] == shown[-2]:
        shown.pop()
    return ", ".join(f"{m:g}" for m in shown)
