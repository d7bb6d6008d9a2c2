"""Who makes the videos of the tasks' evaluation: a model as its users run it, and controls without
one, which show what a number costs."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from pusa.data import video
from pusa.data.hashing import content_key, file_digest
from pusa.evaluation.compare import CRF
from pusa.evaluation.quiet import quiet
from pusa.evaluation.suite import ClipItem
from pusa.evaluation.tasks_cases import Case, media_of, seam_of
from pusa.pipelines.build import Model
from pusa.pipelines.generate import Sampler
from pusa.pipelines.loras import Strength
from pusa.pipelines.produce import Description, produce
from pusa.pipelines.studio import Studio

SEEDS_APART = 10_000  # clips of one seed differ in their noise, and never meet those of another


@dataclass(frozen=True)
class Work:
    """One video: a system's, of a case, for a clip, and for another where a task takes two."""

    system: str
    case: Case
    item: ClipItem
    other: ClipItem
    seed: int
    path: Path


@dataclass(frozen=True)
class Producer:
    """A model with its LoRAs, run by `produce` from files to a file. key: of its weights and
    settings, so that a video of others is made again; media: where pictures are kept."""

    model: Model
    studio: Studio
    sampler: Sampler
    lora: tuple[str, ...]
    strength: Strength
    key: str
    media: Path

    def make(self, work: Work) -> None:
        """The video, unless it is there."""
        case = work.case
        task, files = media_of(case, work.item, work.other, self.media)
        what = Description(
            (work.item.caption,), work.seed * SEEDS_APART + work.item.index, self.model.num_frames,
            self.model.height, self.model.width, self.model.fps, str(work.path), task, files,
            encode_as=case.encode_as, lora=self.lora, strength=self.strength, chain=case.chain,
            crf=CRF,
        )  # fmt: skip
        key = content_key(self.key, repr(replace(what, output="")), *map(file_digest, set(files)))
        if _made_with(work.path, key):
            return
        # What they say of every video is the same for all clips of a case.
        with quiet("pusa.pipelines"):
            produce(self.model, self.sampler, what, {"key": key}, studio=self.studio)


def _made_with(path: Path, key: str) -> bool:
    sidecar = path.with_suffix(".json")
    return (
        path.is_file()
        and sidecar.is_file()
        and json.loads(sidecar.read_text())["recipe"].get("key") == key
    )


Control = Callable[[Case, ClipItem, ClipItem], Tensor]


@dataclass(frozen=True)
class Controlled:
    """A control's frames as a file, like a model's."""

    control: Control
    fps: float

    def make(self, work: Work) -> None:
        video.write_video(work.path, self.control(work.case, work.item, work.other), self.fps, CRF)


def controls_of(case: Case, roundtrip: Callable[[Tensor], Tensor]) -> dict[str, Control]:
    """The controls that a kind of case has. roundtrip: (T, 3, H, W) uint8 through the VAE."""

    def through_codec(case: Case, item: ClipItem, other: ClipItem) -> Tensor:
        return roundtrip(item.frames())

    def recoded(case: Case, item: ClipItem, other: ClipItem) -> Tensor:
        return _recoded(item.frames(), case.overlap, case.chain.segments + 1, roundtrip)

    if case.kind == "given":
        blended = {"crossfade": _crossfade} if len(case.frames) > 1 else {}
        return {"hold": _hold, **blended, "codec": through_codec, "truth": _truth}
    if case.kind == "extension":
        return {"hold": _hold_last, "codec": through_codec, "truth": _truth}
    if case.kind == "transition":
        return {"hard cut": _hard_cut, "crossfade": _crossfade_clips}
    return {"recoded": recoded}


def _truth(case: Case, item: ClipItem, other: ClipItem) -> Tensor:
    return item.frames()


def _hold(case: Case, item: ClipItem, other: ClipItem) -> Tensor:
    """The nearest given frame before, held."""
    truth = item.frames()
    return truth[[max(g for g in case.frames if g <= t) for t in range(len(truth))]]


def _crossfade(case: Case, item: ClipItem, other: ClipItem) -> Tensor:
    """From each given frame to the next one, evenly."""
    truth = item.frames()
    frames = truth.clone()
    given = sorted(case.frames)
    for first, last in pairwise(given):
        frames[first : last + 1] = _blend(truth[first], truth[last], last - first + 1)
    return frames


def _hold_last(case: Case, item: ClipItem, other: ClipItem) -> Tensor:
    """The last frame of what is extended, held."""
    truth = item.frames()
    return truth[[min(t, seam_of(case) - 1) for t in range(len(truth))]]


def _hard_cut(case: Case, item: ClipItem, other: ClipItem) -> Tensor:
    return torch.cat([item.frames(), other.frames()])


def _crossfade_clips(case: Case, item: ClipItem, other: ClipItem) -> Tensor:
    """As long as a transition: the last frame goes evenly to the other clip's first one."""
    first, second = item.frames(), other.frames()
    new = len(first) - 2 * case.overlap + 1
    between = _blend(first[-1], second[0], new + 2)[1:-1]
    return torch.cat([first, between, second])


def _blend(first: Tensor, last: Tensor, count: int) -> Tensor:
    """Frames (count, 3, H, W) from one to the other, both included."""
    share = torch.linspace(0, 1, count)[:, None, None, None]
    return torch.lerp(first.float(), last.float(), share).round().to(torch.uint8)


def _recoded(
    clip: Tensor, overlap: int, times: int, roundtrip: Callable[[Tensor], Tensor]
) -> Tensor:
    """A clip, and its end after one round trip through the codec, after two and so on: what coding
    alone does to a chain."""
    frames, coded = [clip], clip
    for _ in range(times):
        coded = roundtrip(coded)
        frames.append(coded[overlap:])
    return torch.cat(frames)


def all_work(
    made: Sequence[tuple[str, Case]], items: Sequence[ClipItem], seeds: Sequence[int],
    folder: Path,
) -> list[Work]:  # fmt: skip
    """Every video of pairs of a system and a case; a clip's other one is the next of the suite."""
    return [
        Work(
            system, case, item, items[(number + 1) % len(items)], seed,
            folder / "videos" / system / case.name / f"seed{seed}" / f"{item.index:04d}.mp4",
        )
        for system, case in made
        for seed in seeds
        for number, item in enumerate(items)
    ]  # fmt: skip
