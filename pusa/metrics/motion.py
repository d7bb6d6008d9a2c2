"""Motion as it was asked for, motion at all, and flicker. Nothing here sees the truth's pixels."""

from pusa.metrics.estimation import MIN_FRAMES, STRIDE, estimate_motion, moving_share
from pusa.metrics.registry import Sample, register

# A clip moves if this share of its picture does: a toy sprite alone moves 2% or more, still clips
# with noise of 16 grey levels stay under 0.7%.
DYNAMIC_SHARE = 0.01


@register("direction_accuracy")
def direction_accuracy(sample: Sample) -> float | None:
    """1 if the sprite's estimated direction is the caption's, else 0; no motion found is 0."""
    if len(sample.video) < MIN_FRAMES:
        return None
    return float(estimate_motion(sample.video).direction == sample.direction)


@register("pan_accuracy")
def pan_accuracy(sample: Sample) -> float | None:
    """1 if the camera pans as the caption asks, else 0; None where it asks for no pan."""
    if sample.pan == "none" or len(sample.video) < MIN_FRAMES:
        return None
    return float(estimate_motion(sample.video).pan == sample.pan)


@register("temporal_flickering")
def temporal_flickering(sample: Sample) -> float | None:
    """VBench's temporal flickering: (255 - mean |difference of neighbouring frames|) / 255.

    In [0, 1], and 1 for a still clip: read it beside the dynamic degree. None for one frame.
    """
    if len(sample.video) < 2:
        return None
    frames = sample.video.double()
    return (255 - float((frames[1:] - frames[:-1]).abs().mean())) / 255


@register("dynamic_degree")
def dynamic_degree(sample: Sample) -> float | None:
    """1 if more than DYNAMIC_SHARE of the picture moves, else 0. VBench asks the same of RAFT."""
    if len(sample.video) <= STRIDE:
        return None
    return float(moving_share(sample.video) > DYNAMIC_SHARE)
