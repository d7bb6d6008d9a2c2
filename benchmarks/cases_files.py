"""Jobs with processes of their own: the VAE, the latent cache, checkpoints. Their benchmarks are
commands themselves; here they are called, and their numbers become rows."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import decoding
from benchmarks.harness import Row

FOLDER = Path(__file__).parent
FILE_JOBS = {  # job -> the least that could do it, and its result in memory, of the checkpoint
    "read": ("read", 0.0),
    "fill memory": ("read", 0.5),
    "load as bfloat16": ("read", 0.5),
    "load as bfloat16 + merge a LoRA": ("read", 0.5),
    "load mapped": ("read", 0.0),
    "read and write": ("read and write", 0.0),
    "convert to diffusers": ("read and write", 0.0),
    "merge a LoRA": ("read and write", 0.0),
}


def vae(lengths: list[int]) -> Iterator[Row]:
    """Seconds and peak resident MB of decoding and encoding, with and without tiles."""
    decoding.check_equal()
    for num_frames in lengths:
        for tiled in (False, True):
            for job in decoding.JOBS:
                found = decoding.measure(job, num_frames, tiled)
                yield {
                    "case": "vae", "detail": job, "mode": "tiles" if tiled else "whole",
                    "frames": num_frames, "job_seconds": found["seconds"], "mb": found["mb"],
                }  # fmt: skip


def run(name: str, *arguments: str) -> dict:
    """What `benchmarks/name.py` writes."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.json"
        command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments, "--out", str(out)]
        subprocess.run(command, check=True)
        return json.loads(out.read_text())


def cache(samples: int) -> Iterator[Row]:
    """Batches out of the latent cache, beside torch.load per sample."""
    found = run("cache_reading", "--samples", str(samples))
    for reader, one in found["readers"].items():
        yield {"case": "cache", "detail": reader, "samples": samples, **one}


def files(gigabytes: float) -> Iterator[Row]:
    """Loading and merging a checkpoint, beside reading its files once."""
    found = run("checkpoint_memory", "--gb", str(gigabytes), "--jobs", *FILE_JOBS)
    for cache, jobs in found["jobs"].items():
        for job, (peer, share) in FILE_JOBS.items():
            if job == peer:
                continue
            yield {
                "case": "files", "detail": job, "mode": cache, "peer": peer,
                "checkpoint_gb": found["checkpoint_gb"], "shard_gb": found["shard_gb"],
                "peak_gb": jobs[job]["peak_gb"], "imports_gb": jobs[job]["imports_gb"],
                "result_gb": share * found["checkpoint_gb"],
                "job_seconds": jobs[job]["seconds"], "read_seconds": jobs[peer]["seconds"],
                "from_disk_gb": jobs[job]["from_disk_gb"],
            }  # fmt: skip
