"""Memory and time of the VAE: decoding by diffusers, by ours whole, by ours as a stream to a file,
and encoding.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/decoding.py

A Wan2.1 VAE of reduced width with random weights decodes random latents, or encodes random frames,
of growing length. Every job runs in a process of its own: peak resident memory above what was there
before it, and seconds of processor time. Before that the jobs' frames are compared.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from benchmarks.memory import forget_peak, peak_resident
from pusa.data import video
from pusa.models.tiling import TURN, Tiling
from pusa.models.vae import DiffusersVAE, wrap_wan

RESULTS = Path(__file__).parent / "results"
HEIGHT, WIDTH, DIM, BLOCKS = 128, 192, 8, 1
TILING = Tiling(10, 14, 6, 10)  # 2 x 2 tiles, of which 4 latents overlap
# What is freed goes back at once: else a heap in pieces is measured, not what is needed.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "100000"}


def make_vae(tiling: Tiling | None = None) -> DiffusersVAE:
    torch.manual_seed(0)
    return wrap_wan(AutoencoderKLWan(base_dim=DIM, num_res_blocks=BLOCKS).eval(), tiling)


def make_latents(num_frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (1, 16, (num_frames - 1) // 4 + 1, HEIGHT // 8, WIDTH // 8)
    return torch.randn(shape, generator=generator)


def make_pixels(num_frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, num_frames, HEIGHT, WIDTH, generator=generator) * 2 - 1


def set_tiles(vae: DiffusersVAE) -> None:
    """diffusers' own tiles, of our size, if there are any."""
    if vae.tiling is not None:
        tiling = vae.tiling
        vae.autoencoder.enable_tiling(
            tiling.height * 8, tiling.width * 8, tiling.stride_height * 8, tiling.stride_width * 8
        )


def encode_diffusers(vae: DiffusersVAE, pixels: Tensor) -> Tensor:
    set_tiles(vae)
    raw = vae.autoencoder.encode(pixels).latent_dist.mode()
    return (raw - vae._channels(vae.mean)) / vae._channels(vae.std)


def decode_diffusers(vae: DiffusersVAE, latents: Tensor) -> Tensor:
    """As a pipeline of theirs does."""
    set_tiles(vae)
    raw = latents * vae._channels(vae.std) + vae._channels(vae.mean)
    return vae.autoencoder.decode(raw).sample


def write_diffusers(vae: DiffusersVAE, latents: Tensor, file: Path) -> None:
    video.write_video(file, video.to_uint8(decode_diffusers(vae, latents))[0], 16)


def write_stream(vae: DiffusersVAE, latents: Tensor, file: Path) -> None:
    pieces = (video.to_uint8(piece)[0] for piece in vae.decode_stream(latents))
    video.write_video(file, pieces, 16)


JOBS = {
    "diffusers: decode": lambda vae, latents, file: decode_diffusers(vae, latents),
    "ours: decode": lambda vae, latents, file: vae.decode(latents),
    "diffusers: decode, write": write_diffusers,
    "ours: stream, write": write_stream,
    "diffusers: encode": lambda vae, pixels, file: encode_diffusers(vae, pixels),
    "ours: encode": lambda vae, pixels, file: vae.encode(pixels),
}


def peer(job: str) -> str:
    """diffusers' job of the same kind."""
    kind = job.split(": ")[1].replace("stream", "decode")
    return f"diffusers: {kind}"


@torch.no_grad()
def run_one(job: str, num_frames: int, tiled: bool) -> None:
    """Prints seconds and MB of one job; a first latent has set the libraries up."""
    vae = make_vae(TILING if tiled else None)
    given = make_pixels(num_frames) if "encode" in job else make_latents(num_frames)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "a.mp4"
        video.write_video(file, torch.zeros(2, 3, HEIGHT, WIDTH, dtype=torch.uint8), 16)
        make_vae().decode(make_latents(1)[..., :4, :4])
        forget_peak()
        before = peak_resident()
        start = time.process_time()
        JOBS[job](vae, given, file)
        seconds = time.process_time() - start
    print(json.dumps({"seconds": seconds, "mb": (peak_resident() - before) / 1e6}))


def measure(job: str, num_frames: int, tiled: bool) -> dict:
    command = [sys.executable, __file__, "--job", job, "--frames", str(num_frames)]
    if tiled:
        command.append("--tiled")
    out = subprocess.run(command, check=True, capture_output=True, text=True,
                         env=os.environ | MALLOC).stdout  # fmt: skip
    return {"job": job, "frames": num_frames, "tiled": tiled, **json.loads(out.splitlines()[-1])}


@torch.no_grad()
def check_equal() -> None:
    """Our frames are diffusers' bit by bit, a stream's are the whole's, in tiles as well, and our
    latents are diffusers'."""
    vae, latents = make_vae(), make_latents(33)[..., :11, :15]
    assert torch.equal(decode_diffusers(vae, latents), vae.decode(latents))
    for vae in (make_vae(), make_vae(TILING)):
        assert torch.equal(torch.cat([*vae.decode_stream(latents)], 2), vae.decode(latents))
    pixels = make_pixels(9)[..., :88, :120]
    torch.testing.assert_close(vae.encode(pixels), encode_diffusers(vae, pixels))


def table(rows: list[dict], key: str, digits: int) -> str:
    """A line per job, a column per length; in brackets the ratio to diffusers' job above."""
    lengths = sorted({row["frames"] for row in rows})
    lines = [
        "| job | tiles | " + " | ".join(f"{n} frames" for n in lengths) + " |",
        "|" + "---|" * (len(lengths) + 2),
    ]
    found = {(row["job"], row["tiled"], row["frames"]): row[key] for row in rows}
    for tiled in (False, True):
        for job in (job for job in JOBS if (job, tiled, lengths[0]) in found):
            kind, cells = peer(job), []
            for n in lengths:
                value = found[job, tiled, n]
                ratio = f" ({value / found[kind, tiled, n]:.2f})" if job != kind else ""
                cells.append(f"{value:.{digits}f}{ratio}")
            lines.append(f"| {job} | {'yes' if tiled else 'no'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(report: dict) -> str:
    facts, rows = report["options"], report["rows"]
    overlap = TILING.height - TILING.stride_height
    return f"""# Decoding and writing a video

`python benchmarks/decoding.py`: a Wan2.1 VAE of width {DIM} with {BLOCKS} block a level (the real
one has 96 and 2), random weights, {HEIGHT} x {WIDTH} pixels, float32, torch {facts["torch"]},
{facts["threads"]} thread. Tiles are {TILING.height} x {TILING.width} latents and share {overlap}
with a neighbour; in a stream each tile decodes {TURN} latents a turn. In brackets: the ratio to
diffusers' job of the same kind, below 1 is better. Without tiles the frames are diffusers' bit by
bit; a stream's are always those of `decode`.

Peak resident memory above what was there before decoding began, MB (the allocator gives back what
is freed at once):

{table(rows, "mb", 0)}

Seconds of processor time:

{table(rows, "seconds", 1)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[9, 33, 65])
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--frames", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tiled", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        run_one(options.job, options.frames, options.tiled)
        return
    check_equal()
    rows = []
    for num_frames in options.lengths:
        for tiled in (False, True):
            for job in JOBS:
                rows.append(measure(job, num_frames, tiled))
                print(rows[-1], flush=True)
    facts = {"lengths": options.lengths, "torch": torch.__version__,
             "threads": torch.get_num_threads(), "machine": platform.machine()}  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    report = {"options": facts, "rows": rows}
    (RESULTS / "decoding.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "decoding.md").write_text(page(report))


if __name__ == "__main__":
    main()
