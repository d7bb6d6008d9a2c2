"""PSNR and SSIM against closed forms and against scikit-image."""

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pusa.metrics.fidelity import (
    PSNR_CAP,
    psnr,
    psnr_continuation,
    psnr_first_frame,
    ssim_continuation,
    ssim_first_frame,
    ssim_map,
)
from tests.metrics.samples import degraded, sample_of_scene, still


def pair():
    sample = sample_of_scene(1)
    return degraded(sample.truth, 0), sample.truth


def test_psnr_of_a_constant_error_is_the_closed_form():
    truth = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    everywhere = torch.ones(2, 8, 8, dtype=torch.bool)
    assert psnr(truth + 5, truth, everywhere) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(truth, truth, everywhere) == PSNR_CAP


def test_psnr_agrees_with_skimage():
    video, truth = pair()
    ours = psnr(video, truth, torch.ones_like(truth[:, 0], dtype=torch.bool))
    assert ours == pytest.approx(peak_signal_noise_ratio(truth.numpy(), video.numpy()))


def test_ssim_agrees_with_skimage_where_the_window_is_whole():
    video, truth = pair()
    ours = ssim_map(video, truth)
    for frame in (0, 9):
        _, reference = structural_similarity(
            truth[frame].numpy(), video[frame].numpy(), channel_axis=0, full=True, data_range=255,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        expected = torch.from_numpy(reference).mean(0)[5:-5, 5:-5]
        assert torch.allclose(ours[frame, 5:-5, 5:-5], expected, atol=1e-9)


def test_ssim_of_flat_pictures_is_the_luminance_term_up_to_the_border():
    dark, bright = torch.full((1, 3, 12, 12), 50), torch.full((1, 3, 12, 12), 150)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 50 * 150 + c1) / (50**2 + 150**2 + c1)
    scores = ssim_map(dark, bright)
    assert torch.allclose(scores, torch.full_like(scores, expected), atol=1e-6)


def test_undetermined_pixels_and_later_frames_do_not_count():
    truth = sample_of_scene(1).truth
    sample = sample_of_scene(1)
    spoiled = torch.where(sample.determined[:, None], truth, 255 - truth)
    spoiled[0] = truth[0]
    spoiled = sample_of_scene(1, spoiled)
    assert psnr_continuation(spoiled) == PSNR_CAP
    assert psnr_first_frame(sample_of_scene(1, still(truth))) == PSNR_CAP
    assert ssim_first_frame(sample_of_scene(1, still(truth))) == pytest.approx(1)


def test_a_still_copy_continues_worse_than_a_blurred_truth():
    truth = sample_of_scene(1).truth
    copy, blurred = sample_of_scene(1, still(truth)), sample_of_scene(1, degraded(truth, 0, 0))
    for metric in (psnr_continuation, ssim_continuation):
        assert metric(copy) < metric(blurred)


def test_nothing_determined_is_not_applicable():
    sample = sample_of_scene(1)
    sample.determined[1:] = False
    assert psnr_continuation(sample) is None
    assert ssim_continuation(sample) is None
