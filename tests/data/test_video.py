"""Decoding, fitting and writing of pixels."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pusa.data import video


def ramp(num_frames: int = 9, height: int = 48, width: int = 64) -> torch.Tensor:
    """Smooth frames that brighten with time, so that an off-by-one frame shows."""
    y = torch.linspace(0, 60, height)[:, None] + torch.linspace(0, 60, width)[None]
    return torch.stack([(y + 10 * t).expand(3, -1, -1) for t in range(num_frames)]).to(torch.uint8)


def test_written_frames_come_back_in_order(tmp_path):
    frames = ramp()
    video.write_video(tmp_path / "a.mp4", frames, fps=16, crf=4)
    decoded, info = video.read_frames(tmp_path / "a.mp4")
    assert info == video.VideoInfo(9, 16.0, 48, 64)
    assert (decoded.float() - frames.float()).abs().mean() < 2
    with av.open(str(tmp_path / "a.mp4")) as container:  # an independent decoder
        reference = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    decoded = decoded.permute(0, 2, 3, 1).float()
    difference = decoded - torch.from_numpy(reference).float()
    assert difference.abs().max() <= 2  # two colour converters round differently
    assert len(video.read_frames(tmp_path / "a.mp4", 5)[0]) == 5


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 40)])
def test_the_same_frames_give_the_same_bytes(tmp_path, height, width):
    """With x264's macroblock tree on, one in ten of such small clips came out other."""
    frames = torch.randint(0, 256, (17, 3, height, width), dtype=torch.uint8)
    written = set()
    for _ in range(40):
        video.write_video(tmp_path / "a.mp4", frames, fps=16)
        written.add((tmp_path / "a.mp4").read_bytes())
    assert len(written) == 1


def test_an_image_is_a_clip_of_one_frame(tmp_path):
    video.write_image(tmp_path / "a.png", ramp()[3])
    frames, info = video.read_frames(tmp_path / "a.png")
    assert torch.equal(frames, ramp()[3:4])
    assert info.num_frames == 1


def test_bad_files_are_named_with_the_remedy(tmp_path):
    video.write_video(tmp_path / "good.mp4", ramp(), fps=16)
    whole = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "text.png").write_text("not an image")
    for name, message in {
        "absent.mp4": "no such file", "cut.mp4": "truncated or not a video",
        "empty.mp4": "empty", "text.mp4": "not a video", "text.png": "not a readable image",
    }.items():  # fmt: skip
        with pytest.raises(video.VideoError, match=message) as error:
            video.read_frames(tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(video.VideoError, match="has 9 frames, 17 are needed"):
        video.read_frames(tmp_path / "good.mp4", 17)


def test_crop_covers_pad_contains_stretch_fills():
    wide = torch.zeros(1, 3, 50, 200, dtype=torch.uint8)
    wide[..., 75:125] = 200  # the centre square
    assert (video.fit(wide, 50, 50, "crop") == 200).all()
    padded = video.fit(wide, 50, 50, "pad")
    assert padded.shape == (1, 3, 50, 50)
    assert (padded[..., :17, :] == 0).all()
    assert (padded[..., 20:30, 20:30] > 150).all()
    stretched = video.fit(wide, 50, 50, "stretch")
    assert (stretched[..., 22:28] > 150).all()
    assert (stretched[..., :10] == 0).all()
    with pytest.raises(ValueError, match="crop, stretch, pad"):
        video.fit(wide, 50, 50, "zoom")


def test_fit_is_antialiased_like_pillow():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1, 3, 96, 128), dtype=torch.uint8, generator=generator)
    ours = video.fit(pixels, 48, 64, "stretch")[0].permute(1, 2, 0)
    pillow = Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).resize((64, 48), Image.BICUBIC)
    error = (ours.float() - torch.from_numpy(np.asarray(pillow).copy()).float()).abs()
    assert error.mean() < 0.5  # Pillow rounds to uint8 between its two passes
    assert error.max() <= 6


def test_signed_and_uint8_are_inverse():
    frames = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, -1, -1)
    assert torch.equal(video.to_uint8(video.to_signed(frames)), frames)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", _fail)
    for write in (
        lambda: video.write_video(tmp_path / "a.mp4", ramp(), 16),
        lambda: video.write_image(tmp_path / "a.png", ramp()[0]),
    ):
        with pytest.raises(OSError, match="disk"):
            write()
    assert not list(tmp_path.iterdir())


def _fail(*_):
    raise OSError("disk")
