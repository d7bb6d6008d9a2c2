"""What the tasks' evaluation measures on each finished video, read from its file."""

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from pusa.data import toy, video
from pusa.evaluation.score import Row, fingerprint
from pusa.evaluation.suite import ClipItem, SuiteItem
from pusa.evaluation.tasks_cases import Case, seam_of
from pusa.evaluation.tasks_systems import Work
from pusa.metrics.continuity import largest_step_ratio, mean_step_ratio, roughness
from pusa.metrics.drift import color_shift, contrast_ratio, detail_ratio
from pusa.metrics.fidelity import psnr

SLOPE = "per second"


def measure(work: Work, segments: int, fps: float) -> list[Row]:
    """All numbers of a video. segments: parts in which drift is told; fps: of the video.

    VideoError if the video is not there.
    """
    frames, _ = video.read_frames(work.path)
    case, mark = work.case, fingerprint(work.path)
    if case.kind == "given":
        values = _of_given(frames, work.item.frames(), case.frames)
    elif case.kind == "extension":
        values = _of_extension(frames, work.item.frames(), case)
    elif case.kind == "transition":
        values = _of_transition(frames, work.item.frames(), work.other.frames())
    else:
        values = _of_drift(frames, work.item, case, segments, fps)
    return [
        Row(work.system, work.seed, work.item.index, f"{case.name}/{name}", value, mark)
        for name, value in values.items()
    ]


def _of_given(frames: Tensor, truth: Tensor, given: Sequence[int]) -> dict[str, float | None]:
    between = [t for t in range(len(truth)) if t not in given]
    edges = [t for t in range(1, len(truth)) if (t in given) != (t - 1 in given)]
    return {
        "given, dB": psnr_of(frames, truth, given),
        "between, dB": psnr_of(frames, truth, between),
        "worst frame, dB": min(psnr_of(frames, truth, [t]) for t in range(len(truth))),
        "flicker": mean_step_ratio(frames, edges),
    }


def _of_extension(frames: Tensor, truth: Tensor, case: Case) -> dict[str, float | None]:
    seam, shared = seam_of(case), range(case.overlap - 1, seam_of(case))
    frames, zone = frames[: len(truth)], range(shared[0], seam + 1)
    return {
        "shared, dB": psnr_of(frames, truth, shared),
        "first new, dB": psnr_of(frames, truth, [seam]),
        "new, dB": psnr_of(frames, truth, range(seam, len(truth))),
        "seam": mean_step_ratio(frames, [seam], apart=zone),
        "largest step": largest_step_ratio(frames, zone),
    }


def _of_transition(frames: Tensor, first: Tensor, second: Tensor) -> dict[str, float | None]:
    """A hard cut has nothing between, so that nothing is said of it."""
    between = frames[len(first) : len(frames) - len(second)]
    clips = torch.cat([first, second])
    return {
        "roughness": roughness(frames),
        "contrast": contrast_ratio(between, clips) if len(between) else None,
        "detail": detail_ratio(between, clips) if len(between) else None,
    }


def _of_drift(
    frames: Tensor, item: ClipItem, case: Case, segments: int, fps: float
) -> dict[str, float | None]:
    """Each number for each segment, and its rise per second, beginning with the clip itself."""
    clip = item.frames()
    length = (len(frames) - len(clip)) // segments
    seams = range(len(clip), len(frames), len(clip) - case.overlap)
    pieces = [range(len(clip) + i * length, len(clip) + (i + 1) * length) for i in range(segments)]
    times = [(piece.start + piece.stop) / 2 / fps for piece in (range(len(clip)), *pieces)]
    background = _background(item)
    values: dict[str, float | None] = {}
    for name, function, at_first in (
        ("color shift", color_shift, 0.0), ("contrast", contrast_ratio, 1.0),
        ("detail", detail_ratio, 1.0),
    ):  # fmt: skip
        series = [function(frames[piece.start : piece.stop], clip) for piece in pieces]
        slope = statistics.linear_regression(times, [at_first, *series]).slope
        values |= {f"{name}/{i}": value for i, value in enumerate(series, 1)}
        values[f"{name}/{SLOPE}"] = slope
    for number, piece in enumerate(pieces, 1):
        there = frames[piece.start : piece.stop]
        values[f"background, dB/{number}"] = _background_psnr(there, clip, background)
        here = [seam for seam in seams if seam in piece]
        values[f"seam/{number}"] = mean_step_ratio(frames, here, apart=seams)
    return values


def _background(item: ClipItem) -> Tensor | None:
    """Pixels (H, W) that the sprite never crosses, not even going on; None if the camera pans,
    and of clips of which that is not known."""
    if not isinstance(item, SuiteItem) or item.scene.pan != "none":
        return None
    touched = toy.render(item.scene).sprite.amax(0) > 0
    horizontal = item.scene.direction in ("left", "right")
    band = touched.any(1)[:, None] if horizontal else touched.any(0)[None]
    return ~band.expand_as(touched)


def _background_psnr(frames: Tensor, clip: Tensor, background: Tensor | None) -> float | None:
    """Against the clip's mean, which is its encoder's noise averaged away."""
    if background is None:
        return None
    still = clip.double().mean(0).round().to(torch.uint8)
    region = background.expand(len(frames), -1, -1)
    return psnr(frames, still.expand_as(frames), region)


def psnr_of(frames: Tensor, truth: Tensor, chosen: Sequence[int]) -> float:
    """Over whole frames, also where nothing says what they show: what a sprite uncovers, what a pan
    brings in."""
    there, known = frames[list(chosen)], truth[list(chosen)]
    return psnr(there, known, torch.ones(len(there), *there.shape[2:], dtype=torch.bool))
