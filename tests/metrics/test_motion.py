"""Motion metrics on extremes by construction, and the estimator on clips whose motion is known."""

import dataclasses

import pytest
import torch

from pusa.data import toy
from pusa.metrics.estimation import MIN_FRAMES, Motion, estimate_motion, moving_share
from pusa.metrics.motion import (
    direction_accuracy,
    dynamic_degree,
    pan_accuracy,
    temporal_flickering,
)
from pusa.rng import generator_for
from tests.metrics.samples import degraded, sample_of_scene, scene, still

INDICES = range(25)


def flashing(frames: torch.Tensor) -> torch.Tensor:
    """Frame 0, every four frames 60 levels brighter or darker, without saturation."""
    base = still(frames).float() * 0.6 + 20
    bright = (torch.arange(len(frames)) // 4 % 2)[:, None, None, None]
    return (base + 60 * bright).to(torch.uint8)


@pytest.mark.parametrize("split", toy.SPLITS)
def test_the_estimate_is_the_truth_on_rendered_clips(split):
    clips = [scene(index, split) for index in INDICES]
    found = [estimate_motion(toy.render(clip).frames) for clip in clips]
    right = sum(
        motion.direction == clip.direction for motion, clip in zip(found, clips, strict=True)
    )
    assert right >= 0.97 * len(clips)
    right = sum(motion.pan == clip.pan for motion, clip in zip(found, clips, strict=True))
    assert right >= 0.95 * len(clips)


def test_the_direction_survives_blur_and_noise():
    clips = [scene(index) for index in INDICES]
    found = [estimate_motion(degraded(toy.render(clip).frames, clip.index)) for clip in clips]
    right = sum(
        motion.direction == clip.direction for motion, clip in zip(found, clips, strict=True)
    )
    assert right >= 0.9 * len(clips)


@pytest.mark.parametrize("index", range(6))
def test_a_still_clip_moves_nowhere_even_under_noise(index):
    copy = still(sample_of_scene(index).truth)
    for video in (copy, degraded(copy, index)):
        assert estimate_motion(video) == Motion("none", "none")
        sample = sample_of_scene(index, video)
        assert direction_accuracy(sample) == 0
        assert dynamic_degree(sample) == 0


@pytest.mark.parametrize("index", range(6))
def test_a_clip_played_backwards_goes_the_other_way(index):
    sample = sample_of_scene(index)
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    motion = estimate_motion(sample.truth.flip(0))
    assert motion.direction == opposite[sample.direction]


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_estimate_turns_with_the_picture(turns):
    order = ["up", "left", "down", "right"]  # a quarter turn to the left takes each to the next
    for index in range(4):
        sample = sample_of_scene(index)
        turned = estimate_motion(torch.rot90(sample.truth, turns, (2, 3)))
        expected = order[(order.index(sample.direction) + turns) % 4]
        assert turned.direction == expected


def test_shuffled_frames_do_not_keep_the_direction():
    right = 0.0
    for index in INDICES:
        truth = sample_of_scene(index).truth
        order = torch.randperm(len(truth), generator=generator_for(0, "tests/shuffle", index))
        right += direction_accuracy(sample_of_scene(index, truth[order])) or 0.0
    assert right < 0.65 * len(INDICES)


@pytest.mark.parametrize("index", range(6))
def test_flashing_is_flicker_and_not_motion(index):
    truth = sample_of_scene(index).truth
    sample = sample_of_scene(index, flashing(truth))
    assert moving_share(sample.video) < 0.01
    assert dynamic_degree(sample) == 0
    assert temporal_flickering(sample) == pytest.approx(1 - 60 * 4 / 16 / 255)


def test_toy_clips_are_dynamic_and_still_ones_do_not_flicker():
    for index in range(8):
        sample = sample_of_scene(index)
        assert dynamic_degree(sample) == 1
        assert temporal_flickering(sample_of_scene(index, still(sample.truth))) == 1


def test_black_and_white_in_turn_is_the_worst_flicker():
    frames = torch.zeros(17, 3, 32, 32, dtype=torch.uint8)
    frames[1::2] = 255
    assert temporal_flickering(sample_of_scene(0, frames)) == 0


def test_pan_accuracy_applies_to_panning_clips_alone():
    for index in range(12):
        sample = sample_of_scene(index)
        expected = None if sample.pan == "none" else 1.0
        assert pan_accuracy(sample) == expected


def test_short_clips_are_not_applicable_to_the_metrics_and_an_error_to_the_estimates():
    sample = sample_of_scene(0)
    cut = {name: getattr(sample, name)[:1] for name in ("video", "truth", "sprite", "determined")}
    short = dataclasses.replace(sample, **cut)
    for metric in (direction_accuracy, pan_accuracy, temporal_flickering, dynamic_degree):
        assert metric(short) is None
    with pytest.raises(ValueError, match=f"has 1 frames, motion needs {MIN_FRAMES}"):
        estimate_motion(short.video)
    with pytest.raises(ValueError, match="motion needs 5"):
        moving_share(short.video)
