"""Images and clips as users have them: every shape of them is used rightly, or refused by name."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pusa.data import video
from pusa.data.timeline import VideoError
from pusa.pipelines.media import open_medium, read_given
from pusa.pipelines.placements import place
from pusa.pipelines.positions import Timing
from pusa.pipelines.tasks import parse_given
from pusa.types import LatentSpec

TIMING = Timing(LatentSpec(16, 4, 4), 17, 16.0)


def picture(path, height: int = 32, width: int = 32) -> Tensor:
    """A red left half and a blue right one."""
    pixels = torch.zeros(3, height, width, dtype=torch.uint8)
    pixels[0, :, : width // 2] = 200
    pixels[2, :, width // 2 :] = 200
    video.write_image(path, pixels)
    return pixels


def counted_clip(path, num_frames: int, fps: float) -> None:
    """Frame i is of grey level 8 i."""
    levels = torch.arange(num_frames, dtype=torch.uint8) * 8
    frames = levels.view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous()
    video.write_video(path, frames, fps, crf=0)


def read(text: str, *files) -> Tensor:
    """The first condition's pixels as the VAE sees them."""
    row = parse_given(text)
    medium = open_medium(row.file, TIMING.fps)
    placements = place([row], TIMING, {row.file: medium.num_frames})
    return read_given(placements, {row.file: medium}, TIMING, 32, 32, "crop")[0].frames


def levels(frames: Tensor) -> list[int]:
    return [round(float(level) / 8) for level in frames.float().mean(dim=(1, 2, 3))]


def test_an_image_of_odd_size_is_fitted(tmp_path):
    picture(tmp_path / "odd.png", 47, 101)
    frames = read(f"0={tmp_path}/odd.png")
    assert frames.shape == (1, 3, 32, 32)
    assert frames[0, 0, 16, 0] > 190
    assert frames[0, 2, 16, -1] > 190


def test_what_is_transparent_is_over_white(tmp_path):
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:, :16] = (200, 0, 0, 255)
    pixels[:, 16:] = (0, 200, 0, 0)  # the colour behind full transparency is nobody's
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    frame = read(f"0={tmp_path}/alpha.png")[0]
    assert frame[:, 0, 0].tolist() == [200, 0, 0]
    assert frame[:, 0, -1].tolist() == [255, 255, 255]


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    grey = np.full((32, 32), 128 * 257, np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    assert read(f"0={tmp_path}/deep.png").unique().tolist() == [128]


def test_a_photo_is_turned_as_its_camera_says(tmp_path):
    image = Image.new("RGB", (32, 32), (200, 0, 0))
    image.paste((0, 0, 200), (0, 16, 32, 32))  # blue below, once upright: on the left
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    frame = read(f"0={tmp_path}/turned.jpg")[0]
    assert frame[2, 16, 4] > 150
    assert frame[0, 16, -4] > 150


def test_a_gif_is_a_clip_and_a_still_one_an_image(tmp_path):
    stills = [Image.new("L", (32, 32), 80 * i) for i in range(3)]
    stills[0].save(tmp_path / "still.gif")
    stills[0].save(tmp_path / "moves.gif", save_all=True, append_images=stills[1:], duration=250)
    assert open_medium(f"{tmp_path}/still.gif", 16.0).num_frames == 1
    moves = open_medium(f"{tmp_path}/moves.gif", 16.0)
    assert moves.indices == (0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2)  # the nearest in time
    assert "4 frames per second are brought to 16 by time; some are shown more than once" in (
        moves.note
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.png", None, "no such file"),
        ("empty.png", b"", "empty"),
        ("text.png", b"this is no picture at all", "not a readable image"),
        ("text.mp4", b"this is no video at all" * 100, "text.mp4"),
    ],
)
def test_what_is_no_medium_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError, match=message):
        open_medium(f"{tmp_path}/{name}", 16.0)


def test_a_clip_of_another_rate_keeps_its_speed(tmp_path):
    counted_clip(tmp_path / "fast.mp4", 31, 32.0)
    fast = open_medium(f"{tmp_path}/fast.mp4", 16.0)
    assert fast.indices == tuple(range(0, 31, 2))
    assert "32 frames per second are brought to 16 by time" in fast.note
    counted_clip(tmp_path / "slow.mp4", 9, 8.0)
    slow = open_medium(f"{tmp_path}/slow.mp4", 16.0)
    assert slow.indices[::2] == tuple(range(9))
    assert "more than once" in slow.note
    taken = open_medium(f"{tmp_path}/slow.mp4", 16.0, "frames")
    assert taken.indices == tuple(range(9))
    assert "play 2 times as fast" in taken.note


def test_the_last_frames_of_a_clip_become_the_first_ones(tmp_path):
    counted_clip(tmp_path / "c.mp4", 24, 16.0)
    assert levels(read(f"0..4={tmp_path}/c.mp4@end")) == [19, 20, 21, 22, 23]
    assert levels(read(f"0={tmp_path}/c.mp4@-5..last")) == [19, 20, 21, 22, 23]


def test_a_later_clip_comes_behind_its_own_past(tmp_path):
    counted_clip(tmp_path / "c.mp4", 24, 16.0)
    assert levels(read(f"13..last={tmp_path}/c.mp4@13..16")) == list(range(17))
    # With less than a group and one before it, the first frame is held.
    assert levels(read(f"13..last={tmp_path}/c.mp4@2..5")) == [0, 0, 0, 0, 1, 2, 3, 4, 5]
    assert levels(read(f"13..last={tmp_path}/c.mp4@2..5:repeated")) == [2, 2, 3, 4, 5]


def test_images_past_the_first_frame(tmp_path):
    picture(tmp_path / "end.png")
    for encode_as, count in (("alone", 1), ("repeated", 5), ("context", 5), ("auto", 5)):
        assert len(read(f"last={tmp_path}/end.png:0.5:{encode_as}")) == count


def test_context_holds_what_others_give_before(tmp_path):
    counted_clip(tmp_path / "c.mp4", 24, 16.0)
    picture(tmp_path / "end.png")
    rows = [parse_given(f"0..4={tmp_path}/c.mp4"), parse_given(f"last={tmp_path}/end.png:context")]
    media = {row.file: open_medium(row.file, 16.0) for row in rows}
    placements = place(rows, TIMING, {name: m.num_frames for name, m in media.items()})
    end = read_given(placements, media, TIMING, 32, 32, "crop")[1]
    assert levels(end.frames[:13]) == [0, 1, 2, 3, *[4] * 9]
    assert (end.skip, len(end.frames)) == (4, 17)
