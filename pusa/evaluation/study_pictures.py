"""A picture of a study: the truth and its runs on the first held-out clips, frame by frame."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pusa.evaluation.study_measure import KEYFRAMES, Setting, Tools, sampled
from pusa.evaluation.tasks_cases import given_frames
from pusa.evaluation.tasks_pictures import write_sheet

STRIDE = 4  # of the frames that are shown where there are several clips


@dataclass(frozen=True)
class Picture:
    """For each task, a row for the truth and for each variant (title -> name, seed 0).

    clips: how many, the first ones; of several every fourth frame is shown. What is given has a
    frame.
    """

    tasks: Sequence[str]
    variants: Mapping[str, str]
    clips: int = 1
    strength: float = 1.0


def write_picture(
    path: Path, picture: Picture, tools: Tools, results: Mapping[str, Path | None], plain: Setting
) -> None:
    """results: of each variant, None for the base; plain: the setting that the picture's task and
    strength go into."""
    few = replace(tools, items=tools.items[: picture.clips])
    stride = STRIDE if picture.clips > 1 else 1
    rows: dict[str, Tensor] = {}
    marked: dict[str, Collection[int]] = {}
    for task in picture.tasks:
        setting = replace(plain, task=task, strength=picture.strength)
        made = {"truth": few.truths}
        for title, variant in picture.variants.items():
            result = results[variant]
            made[title] = sampled(few, variant, result, setting)
        given = given_frames(few.task(setting.of("", True)), few.timing, KEYFRAMES)
        length = len(range(0, few.model.num_frames, stride))
        for title, videos in made.items():
            name = title if len(picture.tasks) == 1 else f"{task.replace('_', ' ')}: {title}"
            rows[name] = torch.cat([video[::stride] for video in videos])
            if title != "truth":
                marked[name] = [
                    clip * length + frame // stride
                    for clip in range(len(videos))
                    for frame in given
                    if frame % stride == 0
                ]
    heads = [str(frame) for frame in range(0, few.model.num_frames, stride)] * len(few.items)
    write_sheet(path, rows, range(len(heads)), marked, heads)
