"""Tasks: rules that say which frames of a video are given, in pixels and seconds, and from which
media; as rows of YAML and on the command line. What they come to is in placements.py."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pusa.pipelines.positions import GRAMMAR

DEFAULT_MULTIPLIER = 0.2  # upstream's advice for image-to-video
ENCODE_AS = ("auto", "alone", "repeated", "context")
SEAMS = ("blend", "cut")
EVENLY, EACH = "evenly", "each"
END = "end"
_NUMBER = r"\d*\.?\d+"
_POINT = r"(?:(?:(?:frame|latent):)?-?\d+(?:\.\d+)?s?|last)"
_CONDITION = re.compile(
    rf"(?P<at>[^=]+)=(?P<file>.+?)(?:@(?P<part>{END}|{_POINT}(?:\.\.{_POINT}?)?|\.\.{_POINT}))?"
    rf"(?::(?P<multipliers>{_NUMBER}(?:,{_NUMBER})*))?(?::(?P<encode_as>{'|'.join(ENCODE_AS)}))?"
)


@dataclass(frozen=True)
class Given:
    """Some frames are given: one row of a task.

    at: where in the video, see `read_span`, or "evenly" for rows that are `each` medium's. From a
    point on, a clip goes on as far as it lasts. file: an image or a clip; if "", it is the user's
    medium number `medium`, or "each" of them in turn. part: which frames of it, counted in frames
    or seconds of the video's rate; "" is all, "end" its last ones, as many as the range `at` holds.
    multipliers: noise multipliers in [0, 1], one for
    each latent frame (0 = kept exactly, 1 = free); the last stands for all that follow.

    encode_as: how latent frames other than the first are encoded, each of which stands for several
    pixel frames and is one of a moving clip. "alone": an image as a clip of its own, as upstream
    does; "repeated": it is held over the latent's frames, behind one more of itself; "context":
    behind the frames before it, of its own file or given by others. "auto": a clip in its context,
    an image repeated.
    """

    at: str = "0"
    file: str = ""
    medium: int | str = 0
    part: str = ""
    multipliers: tuple[float, ...] = (DEFAULT_MULTIPLIER,)
    encode_as: str = "auto"

    def __post_init__(self):
        values = self.multipliers
        values = (values,) if isinstance(values, (int, float)) else values
        values = tuple(float(m) for m in values)
        object.__setattr__(self, "multipliers", values)
        object.__setattr__(self, "at", str(self.at))
        object.__setattr__(self, "part", str(self.part))
        if not values or not all(0 <= m <= 1 for m in values):
            raise ValueError(f"{self}: noise multipliers must be in [0, 1], at least one.")
        if self.encode_as not in ENCODE_AS:
            raise ValueError(
                f"encode_as={self.encode_as!r} is unknown; use one of {', '.join(ENCODE_AS)}."
            )
        if self.medium != EACH and not (isinstance(self.medium, int) and self.medium >= 0):
            raise ValueError(f"medium={self.medium!r} is neither a number from 0 on nor {EACH}.")

    def __str__(self) -> str:
        medium = self.file or f"medium {self.medium}"
        numbers = ",".join(f"{m:g}" for m in self.multipliers)
        return f"{self.at}={medium}{'@' + self.part if self.part else ''}:{numbers}"


@dataclass(frozen=True)
class Join:
    """The finished video is more than what is generated: the medium `before` comes before it and
    the medium `after` behind it, without what of them is given and so generated again.

    seam: over the frames that are in both, "blend" goes from one to the other, "cut" keeps the
    medium's own until they end.
    """

    before: int | None = None
    after: int | None = None
    seam: str = "blend"

    def __post_init__(self):
        if self.seam not in SEAMS:
            raise ValueError(f"seam={self.seam!r} is unknown; use {' or '.join(SEAMS)}.")


@dataclass(frozen=True)
class Task:
    """Which frames are given; configs/task/*.yaml. join: see there; None: what is generated."""

    name: str
    given: tuple[Given, ...] = ()
    join: Join | None = None

    def __post_init__(self):
        rows = (Given(**row) if isinstance(row, Mapping) else row for row in self.given)
        object.__setattr__(self, "given", tuple(rows))
        if isinstance(self.join, Mapping):
            object.__setattr__(self, "join", Join(**self.join))
        if any((row.at == EVENLY) != (row.medium == EACH) for row in self.given):
            raise ValueError(
                f"task {self.name!r}: at: {EVENLY} and medium: {EACH} belong together."
            )

    @property
    def num_media(self) -> int | None:
        """How many images or clips a user has to hand in; None: two or more."""
        numbers = [row.medium for row in self.given if not row.file]
        if EACH in numbers:
            return None
        return 1 + max((n for n in numbers if isinstance(n, int)), default=-1)

    def with_media(self, media: Sequence[str]) -> tuple[Given, ...]:
        """Its rows with files in place of numbers. ValueError if their number is wrong."""
        wanted = self.num_media
        if len(media) != wanted if wanted is not None else len(media) < 2:
            takes = "two or more images" if wanted is None else f"{wanted} image(s) or clip(s)"
            raise ValueError(f"task {self.name!r} takes {takes}, got {len(media)}.")
        rows: list[Given] = []
        for row in self.given:
            if row.medium == EACH:
                rows += [replace(row, file=file, medium=i) for i, file in enumerate(media)]
            else:
                rows.append(row if row.file else replace(row, file=media[int(row.medium)]))
        return tuple(rows)

    def with_multipliers(self, multipliers: Sequence[float]) -> "Task":
        """Other noise multipliers: one for each row, or the list of its single row."""
        if not self.given:
            raise ValueError(
                f"task {self.name!r} gives nothing that --multipliers are for; those of --at stand "
                "in it, POSITION=FILE:MULTIPLIER."
            )
        if len(self.given) == 1 and self.given[0].medium != EACH:
            return replace(self, given=(replace(self.given[0], multipliers=tuple(multipliers)),))
        if len(multipliers) == 1:
            multipliers = list(multipliers) * len(self.given)
        if len(multipliers) != len(self.given):
            raise ValueError(
                f"task {self.name!r} has {len(self.given)} conditions, got {len(multipliers)} "
                "noise multipliers; give one, or one for each."
            )
        rows = zip(self.given, multipliers, strict=True)
        return replace(self, given=tuple(replace(row, multipliers=(m,)) for row, m in rows))

    def with_overlap(self, num_frames: int, stride: int) -> "Task":
        """As many frames shared with what is joined: the last ones of what comes before, and all
        but one, since the first stands alone, of what comes behind. stride: frames of a latent.

        ValueError unless they are whole groups and one: of others some would be in no part of the
        video; and for a single frame, of which what comes behind would have none.
        """
        join, (groups, rest) = self.join or Join(), divmod(num_frames - 1, stride)
        least = 0 if join.after is None else 1
        if rest or groups < least:
            legal = max(groups, least) * stride + 1
            raise ValueError(
                f"--overlap {num_frames} is not {stride}k+1 frames, {least * stride + 1} or more; "
                f"use {legal} or {legal + stride}."
            )
        rows = list(self.given)
        for i, row in enumerate(rows):
            if row.medium == join.before:
                kept = row.multipliers[: groups + 1]
                rows[i] = replace(row, at=f"0..{num_frames - 1}", multipliers=kept)
            elif row.medium == join.after:
                kept = row.multipliers[-groups:]
                rows[i] = replace(row, at=f"-{num_frames - 1}..last", multipliers=kept)
        return replace(self, given=tuple(rows))

    def with_seam(self, seam: str) -> "Task":
        return self if self.join is None else replace(self, join=replace(self.join, seam=seam))


def as_config(task: Task) -> dict[str, Any]:
    """A task as plain values, from which it can be made again."""
    plain = asdict(task)
    plain["given"] = [row | {"multipliers": list(row["multipliers"])} for row in plain["given"]]
    return plain


def parse_given(text: str) -> Given:
    """`POSITION=FILE[@PART][:MULTIPLIER,...][:ENCODE_AS]`; ValueError for anything else."""
    found = _CONDITION.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            f"--at {text!r}: expected POSITION=FILE[@PART][:MULTIPLIER,...], as 0=photo.png:0.2; "
            f"a position is {GRAMMAR}."
        )
    numbers = found["multipliers"]
    multipliers = tuple(map(float, numbers.split(","))) if numbers else (DEFAULT_MULTIPLIER,)
    try:
        return Given(
            found["at"].strip(), found["file"], 0, found["part"] or "", multipliers,
            found["encode_as"] or "auto",
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"--at {error}") from error
