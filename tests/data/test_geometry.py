"""Fitting frames to a size, and buckets."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pusa.data import geometry
from pusa.data.geometry import Bucket, aspect_buckets, choose_bucket, fit


def test_crop_covers_pad_contains_stretch_fills():
    wide = torch.zeros(1, 3, 50, 200, dtype=torch.uint8)
    wide[..., 75:125] = 200  # the centre square
    assert (fit(wide, 50, 50, "crop") == 200).all()
    padded = fit(wide, 50, 50, "pad")
    assert padded.shape == (1, 3, 50, 50)
    assert (padded[..., :17, :] == 0).all()
    assert (padded[..., 20:30, 20:30] > 150).all()
    stretched = fit(wide, 50, 50, "stretch")
    assert (stretched[..., 22:28] > 150).all()
    assert (stretched[..., :10] == 0).all()
    with pytest.raises(ValueError, match="crop, stretch, pad"):
        fit(wide, 50, 50, "zoom")


def test_fit_is_antialiased_like_pillow():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1, 3, 96, 128), dtype=torch.uint8, generator=generator)
    ours = fit(pixels, 48, 64, "stretch")[0].permute(1, 2, 0)
    pillow = Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).resize((64, 48), Image.BICUBIC)
    error = (ours.float() - torch.from_numpy(np.asarray(pillow).copy()).float()).abs()
    assert error.mean() < 0.5  # Pillow rounds to uint8 between its two passes
    assert error.max() <= 6


@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.integers(1, 70),
    st.sampled_from(geometry.FITS),
)  # fmt: skip
def test_every_size_fits_every_size(source_height, source_width, height, width, how):
    frames = torch.full((2, 3, source_height, source_width), 200, dtype=torch.uint8)
    fitted = fit(frames, height, width, how)
    assert fitted.shape == (2, 3, height, width)
    if how == "pad":  # a border on two sides at most
        assert (fitted == 200).any()
        assert (fitted == 200).all(dim=2).any() or (fitted == 200).all(dim=3).any()
    else:
        assert (fitted == 200).all()


def test_pieces_give_what_the_whole_gives(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (7, 3, 40, 60), dtype=torch.uint8, generator=generator)
    for how in geometry.FITS:
        whole = fit(frames, 16, 24, how)
        with monkeypatch.context() as patch:
            patch.setattr(geometry, "_CHUNK", 2 * frames[0].numel())
            assert torch.equal(fit(frames, 16, 24, how), whole)


BUCKETS = (Bucket(17, 480, 832), Bucket(17, 832, 480), Bucket(81, 480, 832), Bucket(81, 624, 624))


@pytest.mark.parametrize(
    ("num_frames", "height", "width", "bucket"),
    [
        (200, 1080, 1920, Bucket(81, 480, 832)),
        (200, 1000, 1000, Bucket(81, 624, 624)),
        (200, 1920, 1080, Bucket(81, 624, 624)),  # more frames come before a closer shape
        (80, 1920, 1080, Bucket(17, 832, 480)),
        (17, 100, 100, Bucket(17, 480, 832)),  # equally far: the wider
        (16, 480, 832, None),
    ],
)
def test_most_frames_then_closest_aspect(num_frames, height, width, bucket):
    for order in (BUCKETS, BUCKETS[::-1]):
        assert choose_bucket(num_frames, height, width, order) == bucket


def test_of_equal_shapes_the_larger_is_taken():
    small, large = Bucket(17, 240, 416), Bucket(17, 480, 832)
    assert choose_bucket(20, 720, 1248, (small, large)) == large


@given(
    st.integers(64 * 64, 1280 * 720), st.sampled_from([8, 16, 32]), st.floats(0.4, 2.5)
)  # fmt: skip
def test_a_family_stays_within_its_area_and_near_its_ratio(area, multiple, ratio):
    (bucket,) = aspect_buckets(area, multiple, [ratio])
    assert bucket.height % multiple == bucket.width % multiple == 0
    assert bucket.height * bucket.width <= area
    step = 1 + multiple / min(bucket.height, bucket.width)
    assert 1 / step**2 <= bucket.width / bucket.height / ratio <= step**2
    assert bucket.height * bucket.width >= area / step**4


def test_a_family_holds_the_shape_it_is_named_for():
    family = aspect_buckets(480 * 832, 16, [832 / 480, 1, 480 / 832, 1.0], num_frames=(17, 81))
    assert family == tuple(
        Bucket(frames, *shape)
        for frames in (17, 81)
        for shape in ((480, 832), (624, 624), (832, 480))
    )
    with pytest.raises(ValueError, match="raise the area"):
        aspect_buckets(100, 16, [1])
