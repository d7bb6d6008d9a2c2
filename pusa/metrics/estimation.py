"""What moves in a video, seen from its pixels alone: two-layer matching, no truth, no network.

A picture is taken as a background that the camera shifts and one sprite that moves over it. Both
are found by trying displacements between frames STRIDE apart, where the toy clips' speeds (sprite
1, camera 1/2 pixel per frame) are whole pixels. Scores are made of these estimates in `motion.py`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

STRIDE = 4  # frames between the pictures that are compared
MIN_FRAMES = 2 * STRIDE + 1
HEADINGS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (dy, dx)
PAN_STEP = 2  # pixels per STRIDE frames
SPRITE_STEPS = range(2, 7)  # pixels per STRIDE frames: half to 3/2 of the toy clips' speed
# Grey levels. The low cap keeps the sprite from outvoting a background of little contrast.
BACKGROUND_CAP, SPRITE_CAP = 4.0, 30.0
PAN_MARGIN = 0.04  # grey levels that a camera shift must explain better than rest
# Mean explained grey levels below which nothing moves: still clips with noise of 8 levels stay
# under 0.09 (of 16 levels: 0.19), the faintest of 200 moving clips with such noise has 0.41.
SPRITE_EVIDENCE = 0.25
SEARCH_RADIUS, SEARCH_WINDOW = 6, 7  # pixels, for `moving_share`
MIN_SHIFT = 2  # pixels per STRIDE frames that count as motion
# Variance ratio, and squared grey levels of noise, that a shift must beat rest by.
MOTION_FACTOR, MOTION_FLOOR = 4.0, 16.0

Shift = tuple[int, int]  # (dy, dx) in pixels per STRIDE frames


@dataclass(frozen=True)
class Motion:
    """The sprite's direction on the screen and the camera's pan: left, right, up, down or none.

    A camera that pans right moves the background to the left.
    """

    direction: str
    pan: str


def estimate_motion(video: Tensor) -> Motion:
    """Direction of the sprite and pan of the camera in uint8 frames (T, 3, H, W), T >= MIN_FRAMES.

    First the background shift that explains most pixels, then, among the pixels which it explains
    badly at both ends, the sprite shift that explains them best. A sprite that moves exactly with
    the background cannot be told from it and gives "none".
    """
    if len(video) < MIN_FRAMES:
        raise ValueError(
            f"video has {len(video)} frames, motion needs {MIN_FRAMES}; score longer videos."
        )
    frames = _smooth(video.float())
    pan = _pan(frames)
    return Motion(_direction(frames, _background_shift(pan)), pan)


def moving_share(video: Tensor) -> float:
    """Share of the picture that moves, in [0, 1], for uint8 frames (T, 3, H, W), T > STRIDE.

    Around every second pixel a zero-mean window is searched for in the picture STRIDE frames on,
    within SEARCH_RADIUS pixels; it moves if a shift explains it clearly better than rest does.
    Zero-mean windows leave flashing and fading out of account.
    """
    if len(video) <= STRIDE:
        raise ValueError(
            f"video has {len(video)} frames, motion needs {STRIDE + 1}; score longer videos."
        )
    pictures = _smooth(video.float())[::STRIDE].mean(1)  # (K, H, W) grey
    before, after = pictures[:-1], pictures[1:]
    rest = _window_variance(before, after, (0, 0))
    best = torch.full_like(rest, torch.inf)
    reach = range(-SEARCH_RADIUS, SEARCH_RADIUS + 1)
    for shift in ((dy, dx) for dy in reach for dx in reach):
        if max(map(abs, shift)) >= MIN_SHIFT and sum(s * s for s in shift) <= SEARCH_RADIUS**2:
            best = torch.minimum(best, _window_variance(before, after, shift))
    return float((rest > MOTION_FACTOR * best + MOTION_FLOOR).float().mean())


def _background_shift(pan: str) -> Shift:
    dy, dx = HEADINGS.get(pan, (0, 0))
    return -dy * PAN_STEP, -dx * PAN_STEP


def _pan(frames: Tensor) -> str:
    """The pan whose background shift leaves the smallest error; "none" unless clearly better.

    A background pixel is allowed to be found before or after, whichever fits: what the sprite hides
    in one of the two is open in the other.
    """
    middle, past, future = frames[STRIDE:-STRIDE], frames[: -2 * STRIDE], frames[2 * STRIDE :]
    errors = {}
    for pan in ("none", *HEADINGS):
        dy, dx = _background_shift(pan)
        ahead = _matching_error(middle, future, (dy, dx))
        behind = _matching_error(middle, past, (-dy, -dx))
        error = torch.minimum(ahead, behind)  # (N, H, W), infinite where both leave the picture
        errors[pan] = float(error[error.isfinite()].clamp(max=BACKGROUND_CAP).mean())
    best = min(errors, key=lambda pan: errors[pan])
    return best if errors[best] < errors["none"] - PAN_MARGIN else "none"


def _direction(frames: Tensor, background: Shift) -> str:
    """The heading with the most evidence over all its speeds; a sprite at rest counts as "none"."""
    now, later = frames[:-STRIDE], frames[STRIDE:]
    unexplained = _matching_error(now, later, background)
    unexplained = torch.where(unexplained.isfinite(), unexplained, 0).clamp(max=SPRITE_CAP)

    def evidence(shift: Shift) -> float:
        relative = (shift[0] - background[0], shift[1] - background[1])
        arrival, inside = _look_at(unexplained, relative)  # the error where the sprite would land
        both_ends = torch.minimum(unexplained, torch.where(inside, arrival, 0))
        return float((both_ends - _matching_error(now, later, shift)).clamp(min=0).mean())

    evidences = {"none": evidence((0, 0))}
    for name, (dy, dx) in HEADINGS.items():
        evidences[name] = max(evidence((dy * step, dx * step)) for step in SPRITE_STEPS)
    best = max(evidences, key=lambda name: evidences[name])
    return best if evidences[best] > SPRITE_EVIDENCE else "none"


def _matching_error(source: Tensor, target: Tensor, shift: Shift) -> Tensor:
    """3x3 mean of |source(p) - target(p + shift)|, infinite where p + shift leaves the picture.

    source, target: (N, 3, H, W); returns (N, H, W).
    """
    moved, inside = _look_at(target, shift)
    error = _box_mean((source - moved).abs().mean(1), 3)
    return torch.where(inside, error, torch.inf)


def _window_variance(source: Tensor, target: Tensor, shift: Shift) -> Tensor:
    """Variance of source(p) - target(p + shift) in windows around every second pixel.

    source, target: (N, H, W); infinite where p + shift leaves the picture.
    """
    moved, inside = _look_at(target, shift)
    difference = source - moved
    mean_square = _box_mean(difference.square(), SEARCH_WINDOW, 2)
    variance = mean_square - _box_mean(difference, SEARCH_WINDOW, 2).square()
    return torch.where(inside[::2, ::2], variance, torch.inf)


def _look_at(pictures: Tensor, shift: Shift) -> tuple[Tensor, Tensor]:
    """pictures(p + shift) for every p, edges repeated, and a bool (H, W): where it exists."""
    height, width = pictures.shape[-2:]
    rows, columns = torch.arange(height) + shift[0], torch.arange(width) + shift[1]
    inside_rows, inside_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    moved = pictures[..., rows.clamp(0, height - 1), :][..., columns.clamp(0, width - 1)]
    return moved, inside_rows[:, None] & inside_columns[None]


def _box_mean(pictures: Tensor, window: int, stride: int = 1) -> Tensor:
    """Mean over windows of pictures (N, H, W), cut at the border."""
    return functional.avg_pool2d(pictures, window, stride, window // 2, count_include_pad=False)


def _smooth(frames: Tensor) -> Tensor:
    """Two passes of the 3x3 binomial filter over frames (T, 3, H, W): a Gaussian of sigma 1."""
    line = torch.tensor([1.0, 2.0, 1.0]) / 4
    channels = frames.shape[1]
    kernel = (line[:, None] * line).expand(channels, 1, 3, 3)
    for _ in range(2):
        padded = functional.pad(frames, (1, 1, 1, 1), mode="replicate")
        frames = functional.conv2d(padded, kernel, groups=channels)
    return frames
