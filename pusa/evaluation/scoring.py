"""VBench-I2V's arithmetic: from scores of videos to dimensions, and from those to its three totals.

All scores are fractions: what VBench prints as 95.23 is 0.9523 here. Constants and formulas are
those of VBench's scripts/constant.py and scripts/cal_i2v_final_score.py, with two deviations: a
missing dimension is an error (theirs counts as 0, which normalises to less than nothing), and
temporal_flickering, which their script fails on, is known and belongs to no total.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Group = Literal["I2V", "Quality"]
QUANTITIES = ("Quality", "I2V", "Total")
NOT_PERCENT = 1.01  # a cosine may exceed 1 by rounding; a percentage that low is no benchmark's


@dataclass(frozen=True)
class Scale:
    """How a dimension counts. low, high: normalised to 0 and 1. weight: within its group.

    by_frames: its mean is over all pairs of frames of all videos, so that longer ones weigh more.
    """

    low: float
    high: float
    weight: float
    group: Group
    by_frames: bool = False

    def normalise(self, score: float) -> float:
        """Not clipped, as in VBench: a motion smoothness above 0.9975 is more than 1."""
        return (score - self.low) / (self.high - self.low)


SCALES: Mapping[str, Scale] = {
    "i2v_subject": Scale(0.1462, 1.0, 1.0, "I2V"),
    "i2v_background": Scale(0.2615, 1.0, 1.0, "I2V"),
    "camera_motion": Scale(0.0, 1.0, 0.1, "I2V"),
    "subject_consistency": Scale(0.1462, 1.0, 1.0, "Quality", by_frames=True),
    "background_consistency": Scale(0.2615, 1.0, 1.0, "Quality", by_frames=True),
    "motion_smoothness": Scale(0.7060, 0.9975, 1.0, "Quality"),
    "dynamic_degree": Scale(0.0, 1.0, 0.5, "Quality"),
    "aesthetic_quality": Scale(0.0, 1.0, 1.0, "Quality"),
    "imaging_quality": Scale(0.0, 1.0, 1.0, "Quality"),
}
FLICKERING = "temporal_flickering"  # measured by VBench, part of no total
KNOWN = (*SCALES, FLICKERING)


@dataclass(frozen=True)
class VideoScore:
    """What one dimension says of one video.

    prompt: its stem in the suite; sample: 0 to 4 in VBench; num_frames: 0 where nobody knows.
    """

    dimension: str
    prompt: str
    sample: int
    value: float
    num_frames: int = 0


def dimension_score(scores: Sequence[VideoScore]) -> float:
    """The mean of one dimension over its videos, by `weights_of`.

    ValueError if there are none, or of several dimensions.
    """
    names = {score.dimension for score in scores}
    if len(names) != 1:
        found = ", ".join(sorted(names)) or "none"
        raise ValueError(f"scores of one dimension are averaged at a time, not of: {found}.")
    weights = weights_of(scores)
    total = math.fsum(w * s.value for w, s in zip(weights, scores, strict=True))
    return total / math.fsum(weights)


def dimension_scores(scores: Sequence[VideoScore]) -> dict[str, float]:
    """Every dimension's mean, in VBench's order."""
    by_name = {name: [s for s in scores if s.dimension == name] for name in KNOWN}
    check_names({score.dimension for score in scores}, ())
    return {name: dimension_score(videos) for name, videos in by_name.items() if videos}


def weights_of(scores: Sequence[VideoScore]) -> list[float]:
    """How much each video counts in its dimension's mean.

    1, but for subject and background consistency: there VBench sums over the frames after each
    video's first (vbench/subject_consistency.py and background_consistency.py), hence T - 1. Where
    the length of no video is known, they are taken to be equal. ValueError if some are known, or
    for a length below 2.
    """
    name = scores[0].dimension
    if name not in SCALES or not SCALES[name].by_frames:
        return [1.0] * len(scores)
    lengths = [score.num_frames for score in scores]
    if not any(lengths):
        return [1.0] * len(scores)
    for score in scores:
        if score.num_frames < 2:
            raise ValueError(
                f"{name}: {score.prompt!r}, sample {score.sample}, has num_frames="
                f"{score.num_frames}; the mean is over pairs of frames, so give each video's "
                "length (2 or more), or no video's if all are equally long."
            )
    return [length - 1.0 for length in lengths]


def totals(scores: Mapping[str, float], camera: bool = True) -> dict[str, float]:
    """Quality, I2V and Total of the nine dimensions (fractions).

    camera: False for models that take no text, which cannot be told to move the camera (SVD): then
    there is a Quality score alone, as on VBench's board. temporal_flickering may be there and is
    ignored. ValueError names dimensions that are missing or unknown, and scores that are not
    finite or look like percentages.
    """
    wanted = [name for name in SCALES if camera or name != "camera_motion"]
    check_names(scores, wanted)
    if not camera and "camera_motion" in scores:
        raise ValueError("camera_motion was measured, so it counts; leave camera at True.")
    for name, score in scores.items():
        if not abs(score) <= NOT_PERCENT:
            raise ValueError(f"{name}={score} is no fraction; VBench's 95.23 is 0.9523 here.")
    quantities = QUANTITIES if camera else ("Quality",)
    return {
        quantity: math.fsum(
            share * SCALES[name].normalise(scores[name])
            for name, share in _shares(quantity).items()
        )
        for quantity in quantities
    }


def coefficients(quantity: str) -> dict[str, float]:
    """How much a total moves per unit of each dimension; of a dimension itself, 1.

    Everything VBench reports is linear in the means of its dimensions. ValueError for a name that
    is neither a total nor a dimension.
    """
    if quantity in KNOWN:
        return {quantity: 1.0}
    if quantity not in QUANTITIES:
        raise ValueError(f"{quantity!r} is none of {', '.join((*QUANTITIES, *KNOWN))}.")
    return {
        name: share / (SCALES[name].high - SCALES[name].low)
        for name, share in _shares(quantity).items()
    }


def check_names(found: Collection[str], wanted: Collection[str]) -> None:
    """ValueError if a dimension of `wanted` is missing, or one of `found` unknown."""
    unknown = [name for name in found if name not in KNOWN]
    missing = [name for name in wanted if name not in found]
    faults = ["unknown: " + ", ".join(unknown)] * bool(unknown)
    faults += ["missing: " + ", ".join(missing)] * bool(missing)
    if faults:
        raise ValueError(
            f"dimensions of VBench-I2V, {'; '.join(faults)}. The totals need each of "
            f"{', '.join(SCALES)}; a dimension that was not measured is not 0."
        )


def _shares(quantity: str) -> dict[str, float]:
    """Share of each normalised dimension in a total; they add up to 1."""
    if quantity == "Total":
        return {n: s / 2 for group in ("Quality", "I2V") for n, s in _shares(group).items()}
    weights = {n: d.weight for n, d in SCALES.items() if d.group == quantity}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}
