"""camera_motion: whether the camera does what the prompt asks, by where a grid of points goes."""

from collections.abc import Set

import torch
from einops import rearrange
from torch import Tensor

from pusa.evaluation.metrics.dimension import Dimension, Reading

GRID = 10
EDGE = 5  # of 10 rows or columns: off the middle, as in the benchmark, so a zoom may be a pan, too
MOVES = {
    "camera pans left": "pan_left",
    "camera pans right": "pan_right",
    "camera tilts up": "tilt_up",
    "camera tilts down": "tilt_down",
    "camera zooms in": "zoom_in",
    "camera zooms out": "zoom_out",
    "camera static": "static",
}
# What both points of a pair of opposite edges do -> what the camera does.
TOGETHER = {"left": "pan_right", "right": "pan_left", "down": "tilt_up", "up": "tilt_down"}


class CameraMotion(Dimension):
    """1 if the asked move is among those that the clip shows from its first to its last frame.

    Several moves may be seen at once, and any of them counts: so it is in the benchmark.
    """

    name = "camera_motion"
    kind = "tracking"

    @torch.inference_mode()
    def score_video(self, video, reference=None, prompt="") -> Reading:
        asked = asked_move(prompt)
        first, last = self.ask(video, GRID)
        shorter = min(next(iter(video)).shape[-2:])
        # Whole pixels, cut off: the benchmark turns positions into integers first.
        seen = moves(first.long(), last.long(), shorter)
        extras = {"asked": asked, "seen": sorted(seen)}
        return Reading(float(asked in seen), video.num_frames, extras)


def asked_move(prompt: str) -> str:
    """The move that a prompt (or a file's name) asks for. ValueError if it asks for none."""
    for words, move in MOVES.items():
        if words in prompt:
            return move
    raise ValueError(
        f"camera_motion: {prompt!r} asks for no move; use prompts with one of {', '.join(MOVES)}."
    )


def moves(first: Tensor, last: Tensor, shorter: int) -> Set[str]:
    """Moves of a camera. first, last: (100, 2) x, y of a 10x10 grid of points, row by row, in
    whole pixels; shorter: the video's shorter side. Empty if the edges agree on nothing."""
    paths = rearrange(last - first, "(row column) xy -> row column xy", row=GRID)
    top, bottom = (_directions(paths[row, EDGE], shorter) for row in (0, -1))
    left, right = (_directions(paths[EDGE, column], shorter) for column in (0, -1))
    seen = _pair_moves(top, bottom, ("up", "down")) | _pair_moves(left, right, ("left", "right"))
    return seen - {"static"} if len(seen) > 1 else seen


def _directions(path: Tensor, shorter: int) -> Set[str]:
    threshold = shorter * 0.005
    x, y = path.tolist()
    found = {"right": x > threshold, "left": x < -threshold, "down": y > threshold}
    found["up"] = y < -threshold
    return {name for name, is_so in found.items() if is_so} or {"static"}


def _pair_moves(first: Set[str], second: Set[str], outward: tuple[str, str]) -> Set[str]:
    """What two opposite edges say. outward: where they go when the camera comes closer."""
    seen = {TOGETHER[way] for way in first & second if way != "static"}
    if "static" in first and "static" in second:
        seen.add("static")
    if outward[0] in first and outward[1] in second:
        seen.add("zoom_in")
    if outward[1] in first and outward[0] in second:
        seen.add("zoom_out")
    return seen
