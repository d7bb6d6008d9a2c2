"""Drift on pictures that are brightened, faded, blurred by known amounts."""

import pytest
import torch
from torch.nn import functional

from pusa.data import toy
from pusa.metrics.drift import color_shift, contrast_ratio, detail_ratio


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    return toy.render(toy.make_scene(3, "heldout", 0)).frames.clamp(60, 190)


def test_a_clip_has_not_drifted_from_itself_or_its_own_frames_in_another_order(clip):
    for other in (clip, clip.flip(0)):
        assert color_shift(other, clip) == pytest.approx(0)
        assert contrast_ratio(other, clip) == pytest.approx(1)
        assert detail_ratio(other, clip) == pytest.approx(1)


def test_color_shift_is_the_mean_of_the_channels_shifts_and_no_contrast(clip):
    shift = torch.tensor([9, -6, 0])[:, None, None]
    moved = (clip.int() + shift).to(torch.uint8)
    assert color_shift(moved, clip) == pytest.approx(5)
    assert contrast_ratio(moved, clip) == pytest.approx(1)
    assert detail_ratio(moved, clip) == pytest.approx(1)


def test_fading_to_half_halves_contrast_and_detail(clip):
    faded = (clip.float() / 2 + 64).round().to(torch.uint8)
    assert contrast_ratio(faded, clip) == pytest.approx(0.5, abs=0.02)
    assert detail_ratio(faded, clip) == pytest.approx(0.5, abs=0.06)


def test_blur_takes_more_of_the_detail_than_of_the_contrast(clip):
    blurred = functional.avg_pool2d(clip.float(), 3, 1, 1, count_include_pad=False)
    blurred = blurred.round().to(torch.uint8)
    assert detail_ratio(blurred, clip) < 0.5
    assert contrast_ratio(blurred, clip) > 0.75
