"""Images are cut as the model would cut them, never enlarged, and written once."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pusa.data.video import fit, read_fitted, read_frames
from pusa.evaluation.input_images import fit_image


def noise(path: Path, width: int, height: int, **options) -> Path:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path, **options)
    return path


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize("size", [(120, 64), (64, 120), (64, 32), (65, 33)])
def test_a_large_image_becomes_just_what_the_model_reads_of_it(tmp_path: Path, size):
    source = noise(tmp_path / "a.png", *size)
    fit_image(source, tmp_path / "cut.png", 64, 32)
    seen = read_fitted(source, [0], 32, 64)
    assert torch.equal(read_frames(tmp_path / "cut.png")[0], seen)
    assert torch.equal(read_fitted(tmp_path / "cut.png", [0], 32, 64), seen)


@pytest.mark.parametrize(
    ("size", "cut"),
    [((40, 20), (35, 20)), ((20, 40), (20, 12)), ((1, 1), (1, 1)), ((1, 900), (1, 1))],
)
def test_a_small_image_keeps_its_pixels(tmp_path: Path, size, cut):
    source = noise(tmp_path / "a.png", *size)
    fit_image(source, tmp_path / "cut.png", 832, 480)
    assert size_of(tmp_path / "cut.png") == cut
    left, top = (size[0] - cut[0]) // 2, (size[1] - cut[1]) // 2
    whole, middle = (read_frames(path)[0] for path in (source, tmp_path / "cut.png"))
    assert torch.equal(middle, whole[..., top : top + cut[1], left : left + cut[0]])


def test_turned_transparent_and_deep_images_come_as_the_reader_shows_them(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying; upright it is 20 wide and 40 high
    turned = noise(tmp_path / "turned.jpg", 40, 20, exif=exif)
    fit_image(turned, tmp_path / "a.png", 20, 40)
    assert size_of(tmp_path / "a.png") == (20, 40)
    assert torch.equal(read_frames(tmp_path / "a.png")[0], read_frames(turned)[0])

    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    fit_image(tmp_path / "clear.png", tmp_path / "b.png", 8, 8)
    assert read_frames(tmp_path / "b.png")[0].eq(255).all()

    Image.fromarray(np.full((8, 8), 0x1234, np.uint16)).save(tmp_path / "deep.png")
    fit_image(tmp_path / "deep.png", tmp_path / "c.png", 8, 8)
    assert read_frames(tmp_path / "c.png")[0].eq(0x12).all()


def test_it_is_written_again_only_for_other_bytes_or_another_size(tmp_path: Path):
    source, target = noise(tmp_path / "a.png", 8, 8), tmp_path / "out" / "a.png"
    fit_image(source, target, 4, 4)
    os.utime(target, (0, 0))
    fit_image(source, target, 4, 4)
    assert target.stat().st_mtime == 0
    fit_image(source, target, 4, 2)
    assert size_of(target) == (4, 2)
    Image.new("RGB", (8, 8), "red").save(source)
    fit_image(source, target, 4, 2)
    expected = fit(read_frames(source)[0], 2, 4)
    assert torch.equal(read_frames(target)[0], expected)
    assert [path.name for path in target.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize("content", [b"not a picture", None])
def test_a_file_that_was_not_made_here_is_never_overwritten(tmp_path: Path, content):
    source, target = noise(tmp_path / "a.png", 8, 8), tmp_path / "b.png"
    target.write_bytes(source.read_bytes() if content is None else content)
    before = target.read_bytes()
    with pytest.raises(ValueError, match=r"b\.png: is no picture that was made here"):
        fit_image(source, target, 4, 4)
    assert target.read_bytes() == before


def test_what_is_no_image_is_named_and_leaves_nothing(tmp_path: Path):
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ValueError, match=r"a\.png: not a readable image .* export it again"):
        fit_image(tmp_path / "a.png", tmp_path / "out.png", 4, 4)
    with pytest.raises(ValueError, match="0x4 is no size of a picture"):
        fit_image(tmp_path / "a.png", tmp_path / "out.png", 0, 4)
    assert not (tmp_path / "out.png").exists()
