"""What the tasks' evaluation makes: cases, each a task with one setting, on held-out toy clips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pusa.data import video
from pusa.evaluation.suite import ClipItem
from pusa.pipelines.placements import place_unseen
from pusa.pipelines.positions import Timing
from pusa.pipelines.sequence import Chain
from pusa.pipelines.tasks import ENCODE_AS, SEAMS, Task

Kind = Literal["given", "extension", "transition", "drift"]


@dataclass(frozen=True)
class Case:
    """group: of cases that differ in one setting, `setting`; kind: what is measured on it.

    frames: of the truth that are given, for kind "given"; overlap: frames that are shared with a
    clip, for the others. The finished video is the clip's (two clips') and what is new.
    """

    group: str
    setting: str
    kind: Kind
    task: Task
    encode_as: str = "auto"
    chain: Chain = field(default=Chain())
    frames: tuple[int, ...] = ()
    overlap: int = 0

    @property
    def name(self) -> str:
        return f"{self.group} {self.setting}".strip()


def cases_of(
    tasks: Mapping[str, Task], timing: Timing, num_keyframes: int,
    multipliers: Sequence[float], overlap: int, segments: int, chains: Sequence[Sequence[float]],
) -> list[Case]:  # fmt: skip
    """All cases; of a group, the others are compared with the first. tasks: by name, as in
    configs/task; the other arguments: see configs/suite/tasks.yaml."""
    stride = timing.spec.temporal_stride
    cases = []
    for multiplier in multipliers:
        task = tasks["i2v"].with_multipliers([multiplier])
        cases.append(Case("i2v", f"{multiplier:g}", "given", task))
    for name in ("start_end", "keyframes"):
        cases += [Case(name, way, "given", tasks[name], way) for way in ENCODE_AS if way != "auto"]
    cases.append(Case("completion", "", "given", tasks["completion"]))
    cases = [replace(case, frames=given_frames(case.task, timing, num_keyframes)) for case in cases]
    for kind in ("extension", "transition"):
        task = tasks[kind].with_overlap(overlap, stride)
        cases += [Case(kind, seam, kind, task.with_seam(seam), overlap=overlap) for seam in SEAMS]
    new = (timing.num_frames - overlap) * segments
    return cases + [_drift(tasks["extension"], timing, tuple(chain), new) for chain in chains]


def given_frames(task: Task, timing: Timing, num_keyframes: int) -> tuple[int, ...]:
    """Pixel frames that a task gives: a picture is one, whatever latent frame it stands in."""
    frames: list[int] = []
    for placement in place_unseen(task, timing, num_media=num_keyframes):
        covered = timing.frames_of(placement.latents)
        frames += [placement.at] if placement.is_picture else list(covered)
    return tuple(frames)


def _drift(task: Task, timing: Timing, multipliers: tuple[float, ...], new: int) -> Case:
    """A clip that is extended, again and again, by `new` frames in all."""
    overlap = timing.spec.num_pixel_frames(len(multipliers))
    times, rest = divmod(new, timing.num_frames - overlap)
    if rest:
        raise ValueError(
            f"suite.chains: {len(multipliers)} multipliers are {overlap} frames, which leaves "
            f"{timing.num_frames - overlap} new ones a generation; {new} in all are no multiple."
        )
    task = task.with_overlap(overlap, timing.spec.temporal_stride)
    task = replace(task, given=(replace(task.given[0], multipliers=multipliers),))
    chain = Chain(times - 1, overlap, multipliers)
    named = ", ".join(f"{m:g}" for m in multipliers)
    return Case("drift", named, "drift", task, chain=chain, overlap=overlap)


def media_of(
    case: Case, item: ClipItem, other: ClipItem, folder: Path
) -> tuple[Task, tuple[str, ...]]:
    """A case's task with the files that it takes: clips of the suite, and frames of them as images,
    written to `folder` when first needed.

    An extension goes on from the clip's first frames, as many as leave the truth to go on, too.
    """
    clip = str(item.path)
    if case.kind == "given":
        if any(row.part for row in case.task.given):
            return case.task, (clip,)
        return case.task, tuple(_picture(item, frame, folder) for frame in case.frames)
    if case.kind == "extension":
        row = replace(case.task.given[0], part=f"{case.overlap - 1}..{seam_of(case) - 1}")
        return replace(case.task, given=(row,)), (clip,)
    return case.task, (clip, str(other.path)) if case.kind == "transition" else (clip,)


def seam_of(case: Case) -> int:
    """The first new frame of an extension: it has a frame shared and one not, for each overlap."""
    return 2 * case.overlap - 1


def _picture(item: ClipItem, frame: int, folder: Path) -> str:
    path = folder / f"{item.index:04d}_{frame:02d}.png"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        video.write_image(path, item.frames()[frame])
    return str(path)
