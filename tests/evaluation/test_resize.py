"""Sizes, crops and filters of the benchmark's transforms, by closed forms and by Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

from pusa.evaluation.metrics.resize import centre_crop, read_reference, shorter_side, to_size


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (720, 1280, (224, 398)),
        (1280, 720, (398, 224)),
        (480, 832, (224, 388)),
        (50, 50, (224, 224)),
    ],
)
def test_the_shorter_side_is_met_and_the_longer_one_cut_to_whole_pixels(height, width, expected):
    resized = shorter_side(torch.zeros(1, 3, height, width), 224, "bilinear")
    assert resized.shape[-2:] == expected


@pytest.mark.parametrize(("side", "corner"), [(8, 2), (7, 2), (5, 0), (9, 2)])
def test_a_crops_corner_is_rounded_to_the_even_neighbour(side, corner):
    pixels = torch.arange(side).expand(1, 3, side, side)
    assert centre_crop(pixels, 4)[0, 0, 0, 0] == corner


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_with_smoothing_it_is_pillows(how):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (96, 128), dtype=np.uint8)
    image = Image.fromarray(pixels.astype(np.float32), "F")
    expected = np.asarray(image.resize((32, 24), getattr(Image.Resampling, how.upper())))
    tensor = torch.from_numpy(pixels)[None, None].expand(1, 3, -1, -1)
    found = to_size(tensor, 24, 32, how, antialias=True)[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_without_smoothing_bicubic_leaves_the_range_and_is_not_brought_back():
    noise = torch.randint(0, 256, (1, 3, 96, 96), generator=torch.Generator().manual_seed(0))
    found = to_size(noise, 36, 36, "bicubic")
    assert found.min() < -10
    assert found.max() > 265


def test_a_picture_of_the_right_size_stays():
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(to_size(pixels, 32, 32, "bicubic"), pixels.float())


def test_a_reference_is_read_as_colours_in_0_to_1(tmp_path):
    Image.fromarray(np.full((60, 90), 51, np.uint8)).save(tmp_path / "grey.png")
    for crop, size in ((24, 24), (None, 32)):
        pixels = read_reference(tmp_path / "grey.png", 32, crop)
        assert pixels.shape == (1, 3, size, size)
        torch.testing.assert_close(pixels, torch.full_like(pixels, 0.2))


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(ValueError, match=r"notes.png: not a readable reference image"):
        read_reference(tmp_path / "notes.png", 32, 24)
