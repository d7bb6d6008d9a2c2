"""Run systems over a suite: write their videos, then score what the files hold. Resumable.

Every system is judged by its decoded mp4, the truth included: that is what a user's own videos
would get, and a run that stopped half way gives the same numbers as one that did not.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from pusa.atomic import write_json
from pusa.data import video
from pusa.evaluation.baselines import System
from pusa.evaluation.score import Row, VideoFile, fingerprint, score_videos
from pusa.evaluation.suite import Progress, SuiteItem, silent
from pusa.pipelines.parts import Part

FPS = 16.0
CRF = 4  # visually lossless: the file format is not what is measured
BATCH_SIZE = 16  # items per call of a system
SYSTEM_NAME = re.compile(r"\w[\w .+-]*")  # the name is a folder


def compare(
    systems: Mapping[str, System],
    suite: Sequence[SuiteItem],
    seeds: Sequence[int],
    folder: str | Path,
    progress: Progress = silent,
    part: Part = Part(),  # noqa: B008 - frozen
) -> list[Row]:
    """Rows of every system, seed, item and metric; videos and scores.jsonl are kept in `folder`.

    Videos and scores that are there are kept: name a system whose weights changed differently, or
    delete its videos. A system that is not seeded runs with the first seed alone. part: of the
    batches, which other processes may share in the same folder at once; the rows are of this part.
    ValueError for empty arguments, a name that is no folder name, a folder of another suite, or a
    wrong video.
    """
    _check(systems, suite, seeds)
    folder = Path(folder)
    _claim(folder, suite)
    # The suite's batches are the unit of work, whoever does it: rounding may depend on who is in a
    # batch with whom, and numbers must not depend on parts and interruptions. A part has a batch
    # of all systems, because some make theirs from another's.
    own = part.of([(seed, items) for seed in seeds for items in _batched(suite)])
    batches = [
        [VideoFile(name, seed, i, video_path(folder, name, seed, i.index)) for i in items]
        for name, system in systems.items()
        for seed, items in own
        if system.seeded or seed == seeds[0]
    ]
    missing = [batch for batch in batches if not all(file.path.exists() for file in batch)]
    for batch in progress(missing, "generate"):
        _write_batch(systems[batch[0].system], batch)
    return score_videos(folder / "scores.jsonl", list(chain(*batches)), progress, part)


def video_path(folder: str | Path, system: str, seed: int, index: int) -> Path:
    """Where a comparison keeps a system's video."""
    return Path(folder) / "videos" / system / f"seed{seed}" / f"{index:04d}.mp4"


def _batched(suite: Sequence[SuiteItem]) -> list[Sequence[SuiteItem]]:
    return [suite[start : start + BATCH_SIZE] for start in range(0, len(suite), BATCH_SIZE)]


def _write_batch(system: System, files: Sequence[VideoFile]) -> None:
    videos = system.generate([file.item for file in files], files[0].seed)
    if len(videos) != len(files):
        raise ValueError(
            f"system {files[0].system!r} made {len(videos)} videos of {len(files)} items; "
            "its generate() must return one per item."
        )
    for file, frames in zip(files, videos, strict=True):
        _check_video(file, frames)
        if not file.path.exists():
            video.write_video(file.path, frames, FPS, crf=CRF)


def _check_video(file: VideoFile, frames: Tensor) -> None:
    scene = file.item.scene
    expected = (scene.num_frames, 3, scene.height, scene.width)
    if tuple(frames.shape) != expected or frames.dtype != torch.uint8:
        raise ValueError(
            f"system {file.system!r}, item {file.item.index}: video is {tuple(frames.shape)} "
            f"{frames.dtype}, expected {expected} torch.uint8; mend its generate()."
        )


def _check(systems: Mapping[str, System], suite: Sequence[SuiteItem], seeds: Sequence[int]) -> None:
    for name, value in (("systems", systems), ("suite", suite), ("seeds", seeds)):
        if not len(value):
            raise ValueError(f"{name} is empty; compare() needs at least one.")
    for name in systems:
        if not SYSTEM_NAME.fullmatch(name):
            raise ValueError(
                f"system name {name!r} cannot be a folder; use letters, digits, space and . + - _"
            )


def _claim(folder: Path, suite: Sequence[SuiteItem]) -> None:
    """Note which clips the folder's videos continue, and refuse if they were others.

    A suite may grow or shrink between runs; an item may not change.
    """
    path = folder / "suite.json"
    held = json.loads(path.read_text()) if path.exists() else {}
    ours = {str(item.index): [item.caption, fingerprint(item.path)] for item in suite}
    for index, clip in ours.items():
        if held.get(index, clip) != clip:
            raise ValueError(
                f"{folder} holds videos of another suite (item {index}: {held[index][0]!r}, now "
                f"{clip[0]!r}); compare into another folder or delete this one."
            )
    write_json(path, held | ours)
