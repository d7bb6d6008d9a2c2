"""The toy suite: captioned clips with known truth, read from a folder of `toy.write_dataset`.

A stand-in: it is not VBench, and no number of it may be called one.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor

from pusa.data import toy, video

SUITE_NAME = "toy suite (stand-in), not VBench"
T = TypeVar("T")


class Progress(Protocol):
    """Shows how a list of work goes by; `rich.progress.track` is one."""

    def __call__(self, sequence: Sequence[T], description: str, /) -> Iterable[T]: ...


def silent(sequence: Sequence[T], description: str, /) -> Iterable[T]:
    """The progress display that shows nothing."""
    return sequence


@dataclass(frozen=True)
class ClipItem:
    """One clip to be continued: its number, its caption, its truth as an mp4 of so many frames."""

    index: int
    caption: str
    path: Path
    num_frames: int

    def frames(self) -> Tensor:
        """The true clip, decoded: uint8 (T, 3, H, W)."""
        return video.read_frames(self.path, self.num_frames)[0]

    def condition_image(self) -> Tensor:
        """Frame 0 of the decoded mp4: uint8 (3, H, W)."""
        return video.read_frames(self.path, 1)[0][0]


@dataclass(frozen=True)
class SuiteItem(ClipItem):
    """A toy clip, of which everything is known."""

    scene: toy.Scene


def toy_suite(folder: str | Path, num_clips: int) -> list[SuiteItem]:
    """The first `num_clips` clips of a folder that `toy.write_dataset` made.

    ValueError if it holds fewer, or if its metadata.csv does not belong to its truth.jsonl.
    """
    folder = Path(folder)
    scenes = toy.read_truth(folder)
    if not 1 <= num_clips <= len(scenes):
        raise ValueError(
            f"num_clips={num_clips}, but {folder} holds {len(scenes)} clips; "
            f"use 1 to {len(scenes)} or make more with `pusa toy`."
        )
    with (folder / "metadata.csv").open(newline="") as file:
        entries = list(csv.DictReader(file))
    if [entry["text"] for entry in entries] != [scene.caption for scene in scenes]:
        raise ValueError(
            f"{folder}: metadata.csv and truth.jsonl tell of different clips; "
            "make the folder again with `pusa toy`."
        )
    listed = list(zip(scenes, entries, strict=True))[:num_clips]
    files = [folder / "train" / entry["file_name"] for _, entry in listed]
    return [
        SuiteItem(scene.index, scene.caption, file, scene.num_frames, scene)
        for (scene, _), file in zip(listed, files, strict=True)
    ]
