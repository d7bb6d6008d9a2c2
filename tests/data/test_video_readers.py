"""Every frame is the frame that ffmpeg gives for its number, whatever the file and the order."""

import io
import random
import subprocess
import sys
from dataclasses import replace

import av
import pytest
import torch
from torch import Tensor

from pusa.data import readers, video
from tests.data.conftest import NAMES, true_frames

TOLERANCE = 2  # grey levels, as in the probe


def numbers_of(frames: Tensor, truth: Tensor) -> list[int]:
    """The number of the true frame that each frame resembles most."""
    distances = (frames[:, None].float() - truth[None].float()).abs().mean((2, 3, 4))
    return distances.argmin(1).tolist()


def largest_error(frames: Tensor, truth: Tensor) -> int:
    return int((frames.int() - truth.int()).abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_frames_in_any_order_are_those_of_ffmpeg(clips, name):
    truth = clips.truth(name)
    path, order = clips(name), random.Random(name)
    probe = video.probe(path)
    assert probe.num_frames == len(truth)
    for reader in {probe.reader, "pyav"}:
        for count in (1, 2, 12):
            indices = [order.randrange(len(truth)) for _ in range(count)]
            frames = video.read_at(path, indices, replace(probe, reader=reader))
            assert numbers_of(frames, truth) == indices
            assert largest_error(frames, truth[indices]) <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_all_frames_in_one_pass_are_those_of_ffmpeg(clips, name):
    truth = clips.truth(name)
    frames, info = video.read_frames(clips(name))
    assert frames.shape == truth.shape
    assert info.num_frames == len(truth)
    assert largest_error(frames, truth) <= TOLERANCE
    first, _ = video.read_frames(clips(name), max(1, len(truth) // 2))
    assert torch.equal(first, frames[: len(first)])


def test_the_counter_frames_are_told_apart(clips):
    """The proof above is none if neighbours look alike."""
    truth = clips.truth("h264.mp4").float()
    assert (truth[1:] - truth[:-1]).abs().mean((1, 2, 3)).min() > 3
    assert numbers_of(truth, truth) == list(range(len(truth)))


@pytest.mark.parametrize(
    "name",
    ["bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4", "carphone_distorted.mp4"],
)
def test_real_clips_give_the_frames_of_ffmpeg(real_clips, name):
    path = real_clips[name]
    probe = video.probe(path)
    truth = true_frames(path, probe.height, probe.width)
    assert probe.num_frames == len(truth)
    for reader in ("decord", "pyav"):
        indices = [len(truth) - 1, 0, 63, 62, 17]
        frames = video.read_at(path, indices, replace(probe, reader=reader))
        assert largest_error(frames, truth[indices]) <= TOLERANCE


def decord_frames(path, indices: list[int]) -> Tensor:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(str(path), num_threads=1)
    pixels = [reader[index].asnumpy() for index in indices if index < len(reader)]
    return torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pixels])


@pytest.mark.parametrize(
    "name", ["h264_open.mp4", "hevc_open.mp4", "edit_list.mp4", "h264.ts", "mpeg4.avi"]
)
def test_why_decord_is_not_trusted_everywhere(clips, name):
    """It gives other frames than were asked for, without an error, on the files it is kept from."""
    truth, path = clips.truth(name), clips(name)
    indices = list(range(len(truth)))
    random.Random(0).shuffle(indices)
    if numbers_of(decord_frames(path, indices), truth) == indices:
        pytest.skip(f"decord reads {name} right; the probe may be too careful")
    assert video.probe(path).reader == "pyav"


def damaged(data: bytes, name: str, width: int = 100) -> bytes:
    """Three holes of `width` bytes in the middle of a file."""
    order, broken = random.Random(name), bytearray(data)
    for _ in range(3):
        start = order.randrange(len(data) // 4, len(data) // 2)
        broken[start : start + width] = bytes(width)
    return bytes(broken)


@pytest.mark.parametrize(
    "name", ["h264.mp4", "h264.mkv", "av1.mp4", "mpeg4.avi", "prores.mov", "h264.ts"]
)
def test_damage_is_an_error(clips, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(damaged(clips(name).read_bytes(), name))
    for use in (video.probe, video.read_frames):
        with pytest.raises(video.VideoError, match=r"damaged|truncated"):
            use(path)


def test_why_damage_is_looked_for_with_pyav(clips, tmp_path):
    """decord hides it: wrong frames come without an error."""
    path = tmp_path / "damaged.mp4"
    path.write_bytes(damaged(clips("h264.mp4").read_bytes(), "h264.mp4", width=2))
    truth = clips.truth("h264.mp4")
    frames = decord_frames(path, list(range(len(truth))))
    assert largest_error(frames, truth) > 20
    with pytest.raises(video.VideoError):
        video.read_frames(path)


def test_why_decord_gets_no_avi(clips, tmp_path):
    """A truncated one in memory, as a tar member is read, ends the process."""
    path = tmp_path / "cut.avi"
    path.write_bytes(clips("mpeg4.avi").read_bytes()[:15000])
    code = f"import decord; decord.VideoReader(open({str(path)!r}, 'rb'), num_threads=1)"
    died = subprocess.run([sys.executable, "-c", code], capture_output=True).returncode < 0
    if not died:
        pytest.skip("this decord survives a truncated AVI")
    with pytest.raises(video.VideoError, match="truncated"):
        video.probe(path)


# Formats that say how long they are; others, cut between two frames, are shorter clips.
PROMISING = [
    "h264_fast.mp4", "h264_fragments.mp4", "h264.mkv", "vp9.webm", "mpeg4.avi", "counter.gif",
]  # fmt: skip
ENDLESS = ["h264.ts", "h264.flv"]


@pytest.mark.parametrize("name", [*PROMISING, *ENDLESS])
def test_a_truncated_file_gives_true_frames_or_an_error(clips, tmp_path, name):
    """Cut at any byte: what can be read is whole frames, in order."""
    data, truth = clips(name).read_bytes(), clips.truth(name)
    order, path, errors = random.Random(name), tmp_path / name, []
    for length in [1, len(data) - 1, *(order.randrange(2, len(data) - 1) for _ in range(14))]:
        path.write_bytes(data[:length])
        for read in (read_all_at_random, read_in_one_pass):
            try:
                frames = read(path)
            except video.VideoError as error:
                errors.append(str(error))
                continue
            numbers = numbers_of(frames, truth)
            assert numbers == sorted(set(numbers))
            assert largest_error(frames, truth[numbers]) <= TOLERANCE
            assert name not in PROMISING or length == len(data) - 1
    assert errors
    for error in errors:
        assert str(path) in error
        assert "truncated" in error or "damaged" in error


def read_in_one_pass(path) -> Tensor:
    return video.read_frames(path)[0]


def read_all_at_random(path) -> Tensor:
    probe = video.probe(path)
    order = list(range(probe.num_frames))
    random.Random(0).shuffle(order)
    frames = torch.empty_like(video.read_at(path, order, probe))
    frames[order] = video.read_at(path, order, probe)
    return frames


def test_the_error_names_promised_and_whole_frames(clips, tmp_path):
    data = clips("h264_fast.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(video.VideoError, match=r"promises 40 frames, \d+ are whole"):
        video.probe(tmp_path / "cut.mp4")


def test_a_size_that_changes_within_the_file_is_an_error(clips, tmp_path):
    """Two sequences one after the other, as a broadcast has them."""
    path = tmp_path / "sizes.mkv"
    with av.open(str(path), "w") as output:
        streams = []
        for number, name in enumerate(("vp9.webm", "vp9_odd.webm")):
            with av.open(io.BytesIO(clips(name).read_bytes())) as source:
                track = source.streams.video[0]
                streams = streams or [output.add_stream_from_template(track)]
                for packet in source.demux(track):
                    if packet.size and packet.pts is not None:
                        packet.stream = streams[0]
                        packet.pts = packet.dts = packet.pts + 2500 * number
                        output.mux(packet)
    for use in (video.probe, video.read_frames):
        with pytest.raises(video.VideoError, match="changes its size from 96x80 to 95x77"):
            use(path)


def test_jumps_do_not_begin_again_at_the_beginning(clips, monkeypatch):
    """Frames before the key frame of an open group are decoded from the key frame before."""
    restarts = []
    begin = readers._Cursor._restart
    monkeypatch.setattr(readers._Cursor, "_restart", lambda c: restarts.append(c) or begin(c))
    for name in ("h264_open.mp4", "hevc_open.mp4", "edit_list.mp4", "h264.ts", "h264.mkv"):
        probe = replace(video.probe(clips(name)), reader="pyav")
        for index in range(probe.num_frames):
            restarts.clear()
            video.read_at(clips(name), [index], probe)
            assert len(restarts) == 1  # the opening
