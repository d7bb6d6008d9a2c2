"""Decoding, fitting and writing of pixels."""

import io
import json
import tarfile
import zlib
from dataclasses import asdict, replace
from itertools import chain

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pusa.data import probe as probing
from pusa.data import readers, video
from pusa.data.media import Media
from tests.data.conftest import ffmpeg


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


def test_pieces_give_the_bytes_of_the_whole(tmp_path):
    frames = torch.randint(0, 256, (21, 3, 32, 48), dtype=torch.uint8)
    video.write_video(tmp_path / "whole.mp4", frames, fps=16)
    for sizes in ([1, 4, 16], [21], [5, 0, 16], [1] * 21):
        pieces = iter(frames.split(sizes))
        video.write_video(tmp_path / "pieces.mp4", pieces, fps=16)
        assert (tmp_path / "pieces.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_pieces_are_written_as_they_come(tmp_path):
    """The encoder looks ahead some frames; what it has written of the rest is on the disk."""
    sizes = []

    def pieces():
        for _ in range(40):
            yield torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
            (partial,) = tmp_path.iterdir()
            sizes.append(partial.stat().st_size)

    first = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    video.write_video(tmp_path / "a.mp4", chain([first], pieces()), fps=16)
    assert sizes[-1] > sizes[0]
    assert video.read_frames(tmp_path / "a.mp4")[1].num_frames == 161


@pytest.mark.parametrize(
    ("pieces", "options", "message"),
    [
        ([(4, 3, 32, 32), (4, 3, 32, 34)], {}, "32x34 come after frames of 32x32"),
        ([], {}, "no frames to write"),
        ([(0, 3, 32, 32)], {}, "no frames to write"),
        ([(2, 3, 31, 32)], {}, r"31x32 \(height x width\); H.264 needs even sides"),
        ([(2, 3, 32, 33)], {}, "32x33 .* even sides"),
        ([(2, 32, 32, 3)], {}, r"shape \(2, 32, 32, 3\); expected uint8 \(T, 3, H, W\)"),
        ([(2, 3, 32, 32)], {"crf": -1}, "crf=-1 .* use 0"),
        ([(2, 3, 32, 32)], {"crf": 52}, "crf=52 .* to 51"),
        ([(2, 3, 32, 32)], {"crf": "good"}, "crf='good'"),
        ([(2, 3, 32, 32)], {"fps": 0}, "fps=0 is not a rate"),
    ],
)
def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path, pieces, options, message):
    frames = (torch.zeros(shape, dtype=torch.uint8) for shape in pieces)
    with pytest.raises(ValueError, match=message):
        video.write_video(tmp_path / "a.mp4", frames, **{"fps": 8} | options)
    with pytest.raises(ValueError, match=r"torch.float32 .* expected uint8"):
        video.write_video(tmp_path / "a.mp4", torch.zeros(2, 3, 32, 32), 8)
    assert not list(tmp_path.iterdir())


def test_pieces_that_fail_leave_what_was_there(tmp_path):
    def pieces():
        yield ramp()
        raise RuntimeError("out of memory")

    (tmp_path / "a.mp4").write_bytes(b"before")
    with pytest.raises(RuntimeError, match="out of memory"):
        video.write_video(tmp_path / "a.mp4", pieces(), 8)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


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
    small = io.BytesIO()
    Image.new("L", (1, 1)).save(small, "PNG")
    huge = bytearray(small.getvalue())
    huge[16:24] = (60000).to_bytes(4, "big") * 2  # a header that promises 3.6 gigapixels
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(huge)
    for name, message in {
        "absent.mp4": "no such file", "cut.mp4": "truncated or not a video",
        "empty.mp4": "empty", "text.mp4": "not a video", "text.png": "not a readable image",
        ".": "is a folder", "bomb.png": "not a readable image",
    }.items():  # fmt: skip
        for use in (video.read_frames, video.probe):
            with pytest.raises(video.VideoError, match=message) as error:
                use(tmp_path / name)
            assert str(tmp_path / name) in str(error.value)
    with pytest.raises(video.VideoError, match="has 9 frames, 17 are needed"):
        video.read_frames(tmp_path / "good.mp4", 17)


@pytest.mark.parametrize(
    ("name", "reader", "reason"),
    [
        ("h264.mp4", "decord", "random order"),
        ("variable.mp4", "decord", "random order"),
        ("rotated_90.mp4", "decord", "random order"),
        ("hevc.mp4", "decord", "random order"),
        ("vp9.webm", "decord", "random order"),
        ("one.mp4", "decord", "random order"),
        ("hevc_open.mp4", "pyav", "open groups"),
        ("h264_open.mp4", "pyav", "open groups"),
        ("edit_list.mp4", "pyav", "edit list"),
        ("edit_end.mp4", "pyav", "edit list"),
        ("edit_twice.mp4", "pyav", "edit list"),
        ("vp8.webm", "pyav", "auxiliary"),
        ("av1.mp4", "pyav", "cannot decode"),
        ("hevc_10bit.mp4", "pyav", "differs by"),
        ("h264.ts", "pyav", "mpegts"),
        ("h264.avi", "pyav", "avi"),
    ],
)
def test_the_probe_chooses_the_reader_that_is_exact(clips, name, reader, reason):
    probe = video.probe(clips(name))
    assert probe.reader == reader
    assert reason in probe.reason
    assert probe.key == f"{reader}-{readers.versions()[reader]}"


def test_the_comparison_finds_a_decord_that_gives_other_frames(clips, tmp_path, monkeypatch):
    """Nothing in what the packets tell is against the file."""
    monkeypatch.setattr(probing, "_doubt", lambda packets: "")
    for name in ("h264_open.mp4", "hevc_open.mp4"):
        path = tmp_path / name
        path.write_bytes(clips(name).read_bytes())
        probe = video.probe(path)
        assert probe.reader == "pyav"
        assert "differs by" in probe.reason


def test_the_probe_knows_the_file(clips):
    plain = video.probe(clips("h264.mp4"))
    assert (plain.codec, plain.pixel_format, plain.bit_depth) == ("h264", "yuv420p", 8)
    assert (plain.num_frames, plain.fps, plain.duration) == (40, 16.0, 2.5)
    assert (plain.height, plain.width, plain.rotation) == (80, 96, 0)
    assert (plain.has_audio, plain.edit_list, plain.variable_rate) == (False,) * 3
    assert plain.size == clips("h264.mp4").stat().st_size
    assert plain.timestamps == tuple(i / 16 for i in range(40))
    assert video.probe(clips("audio.mp4")).has_audio
    assert video.probe(clips("late.mp4")).start == pytest.approx(0.5)
    assert video.probe(clips("hevc_10bit.mp4")).bit_depth == 10
    for turn, clockwise in (("90", 270), ("180", 180), ("270", 90)):  # ffmpeg's are the other way
        turned = video.probe(clips(f"rotated_{turn}.mp4"))
        assert turned.rotation == clockwise
        assert (turned.height, turned.width) == ((80, 96) if turn == "180" else (96, 80))
    for name in ("edit_list.mp4", "edit_end.mp4", "edit_twice.mp4"):
        assert video.probe(clips(name)).edit_list
    for name in ("variable.mp4", "variable.mkv", "h264_gap.mp4"):
        variable = video.probe(clips(name))
        assert variable.variable_rate
        assert len(variable.timestamps) == variable.num_frames
    assert video.probe(clips("h264.mkv")).fps == 16  # though it counts milliseconds


def test_a_probe_is_plain_values(clips):
    for name in ("h264.mp4", "variable.mp4"):
        probe = video.probe(clips(name))
        values = json.loads(json.dumps(asdict(probe)))
        assert video.Probe(**values | {"times": tuple(values["times"])}) == probe


def test_a_file_is_probed_once_until_it_changes(clips, tmp_path, monkeypatch):
    watched = []
    watch = readers.watch
    monkeypatch.setattr(readers, "watch", lambda *a: watched.append(a) or watch(*a))
    path = tmp_path / "a.mp4"
    path.write_bytes(clips("h264.mp4").read_bytes())
    first = video.probe(path)
    assert video.probe(path) == first
    video.read_at(path, [3])
    assert len(watched) == 1
    path.write_bytes(clips("hevc_open.mp4").read_bytes())
    assert video.probe(path).codec == "hevc"
    assert len(watched) == 2
    with pytest.raises(video.VideoError, match="probe it again"):
        video.read_at(path, [3], first)
    path.unlink()
    with pytest.raises(video.VideoError, match="no such file"):
        video.read_at(path, [3], first)


def test_frames_come_in_the_order_asked_for_and_with_repeats(clips):
    truth = clips.truth("h264.mp4")
    indices = [7, 3, 3, 39, 0, 7]
    for reader in ("decord", "pyav"):
        probe = replace(video.probe(clips("h264.mp4")), reader=reader)
        frames = video.read_at(clips("h264.mp4"), indices, probe)
        assert (frames.int() - truth[indices].int()).abs().max() <= 2
    for wrong in ([40], [-1], []):
        with pytest.raises(ValueError, match="has frames 0 to 39"):
            video.read_at(clips("h264.mp4"), wrong)


@pytest.mark.parametrize("how", video.FITS)
def test_fitted_frames_are_the_fitted_ones_of_the_file(clips, how):
    for name in ("h264.mp4", "rotated_270.mp4"):
        indices = [20, 3, 20]
        whole = video.fit(video.read_at(clips(name), indices), 32, 48, how)
        assert torch.equal(video.read_fitted(clips(name), indices, 32, 48, how), whole)


def test_members_of_a_tar_are_read_where_they_are(clips, tmp_path):
    names = ["h264.mp4", "hevc_open.mp4", "edit_list.mp4", "av1.webm"]
    video.write_image(tmp_path / "a.png", ramp()[3])
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for name in names:
            shard.add(clips(name), name)
        shard.add(tmp_path / "a.png", "a.png")
    with tarfile.open(tmp_path / "shard.tar") as shard:
        members = {
            m.name: Media(tmp_path / "shard.tar", m.name, m.offset_data, m.size) for m in shard
        }
    for name in names:
        assert video.probe(members[name]) == video.probe(clips(name))
        alone, _ = video.read_frames(clips(name))
        assert torch.equal(video.read_frames(members[name])[0], alone)
        assert torch.equal(video.read_at(members[name], [9, 2]), alone[[9, 2]])
    assert torch.equal(video.read_frames(members["a.png"])[0], ramp()[3:4])


@pytest.mark.parametrize(("tag", "turn"), [(3, 180), (6, 90), (8, 270)])
def test_a_photograph_stands_upright(tmp_path, tag, turn):
    upright = torch.zeros(3, 40, 60, dtype=torch.uint8)
    upright[:, :10] = 250  # the sky
    stored = torch.rot90(upright, turn // 90, (1, 2))  # counterclockwise: to be turned clockwise
    exif = Image.Exif()
    exif[0x0112] = tag
    pixels = Image.fromarray(stored.permute(1, 2, 0).contiguous().numpy())
    pixels.save(tmp_path / "a.jpg", exif=exif, quality=95)
    frames, info = video.read_frames(tmp_path / "a.jpg")
    assert info == video.VideoInfo(1, 0.0, 40, 60)
    assert (frames[0].int() - upright.int()).abs().max() < 20
    probe = video.probe(tmp_path / "a.jpg")
    assert (probe.reader, probe.rotation, probe.height, probe.width) == ("image", turn, 40, 60)
    assert probe.timestamps == (0.0,)
    assert torch.equal(video.read_at(tmp_path / "a.jpg", [0, 0], probe), frames[[0, 0]])


def test_animations_and_covers_are_no_clips(tmp_path):
    pictures = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 200)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:])
    with pytest.raises(video.VideoError, match="animation"):
        video.read_frames(tmp_path / "a.webp")
    tone, cover = ["-f", "lavfi", "-i", "sine=d=0.1"], tmp_path / "cover.png"
    video.write_image(cover, ramp()[0])
    ffmpeg(*tone, "-c:a", "aac", tmp_path / "sound.mp4")
    ffmpeg(*tone, "-i", cover, "-map", 0, "-map", 1, "-c:a", "aac", "-c:v", "png",
           "-disposition:v", "attached_pic", tmp_path / "album.mp4")  # fmt: skip
    for name in ("sound.mp4", "album.mp4"):
        for use in (video.probe, video.read_frames):
            with pytest.raises(video.VideoError, match="no video track"):
                use(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["zwei Wörter 猫.mp4", "100%03d.mp4", "file:a.mp4", "-i.mp4", "a#b?c.mp4"]
)
def test_any_file_name_will_do(clips, tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(clips("h264.mp4").read_bytes())
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / name, name):
        assert video.probe(path).reader == "decord"
        assert len(video.read_frames(path, 3)[0]) == 3
        assert len(video.read_at(path, [2])) == 1


def test_a_huge_picture_is_resized_frame_by_frame(clips, tmp_path, monkeypatch):
    sizes = []
    fit = video.fit
    monkeypatch.setattr(video, "fit", lambda f, *a: sizes.append(f.shape) or fit(f, *a))
    frames = torch.zeros(3, 3, 2304, 4096, dtype=torch.uint8)
    frames[1] = 200
    video.write_video(tmp_path / "huge.mp4", frames, 16)
    fitted = video.read_fitted(tmp_path / "huge.mp4", [2, 1, 0], 45, 80)
    assert sizes == [(1, 3, 2304, 4096)] * 3
    assert fitted.float().mean((1, 2, 3)).tolist() == pytest.approx([0, 200, 0], abs=2)


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
