"""Steps between neighbouring frames, against a video's usual step: seams, flicker, transitions.

Frames are uint8 (T, 3, H, W). A step is the mean absolute difference of a frame from the one before
it, in grey levels, and is called by the number of the later one. Motion makes steps, too, so a step
is judged by the median of the video's other steps: 1 is as usual. None where nothing moves there.
"""

from collections.abc import Collection

from torch import Tensor

# Grey levels: a still picture's steps, which are an encoder's, stay below, moving toy clips' above.
STILL = 0.25


def steps(frames: Tensor) -> Tensor:
    """(T - 1,) double; entry t - 1 is the step into frame t."""
    values = frames.double()
    return (values[1:] - values[:-1]).abs().mean((1, 2, 3))


def mean_step_ratio(
    frames: Tensor, into: Collection[int], apart: Collection[int] = ()
) -> float | None:
    """Mean of the steps into some frames over the median of all others but those `apart`.

    ValueError if no step is left on one of the sides.
    """
    chosen, usual = _divided(frames, into, apart)
    return None if usual < STILL else float(chosen.mean()) / usual


def largest_step_ratio(frames: Tensor, into: Collection[int]) -> float | None:
    """Largest of the steps into some frames over the median of all others.

    ValueError if no step is left on one of the sides.
    """
    chosen, usual = _divided(frames, into, ())
    return None if usual < STILL else float(chosen.max()) / usual


def roughness(frames: Tensor) -> float | None:
    """Largest step of a video over its median step: 1 is a video that changes evenly."""
    every = steps(frames)
    usual = float(every.quantile(0.5))
    return None if usual < STILL else float(every.max()) / usual


def _divided(frames: Tensor, into: Collection[int], apart: Collection[int]) -> tuple[Tensor, float]:
    """The steps into some frames, and the median of the others."""
    every = steps(frames)
    chosen = [frame - 1 for frame in into]
    others = [i for i in range(len(every)) if i not in chosen and i + 1 not in apart]
    if not chosen or not others:
        raise ValueError(
            f"of {len(every)} steps {len(chosen)} are chosen and {len(others)} left to compare "
            "with; choose some and leave some."
        )
    return every[chosen], float(every[others].quantile(0.5))
