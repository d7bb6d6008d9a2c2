"""Peak memory of loading, converting and merging a sharded checkpoint, beside build-then-load.

    python benchmarks/checkpoint_memory.py --gb 8 --shard-gb 1

Makes a synthetic Wan checkpoint of 14B shape with fewer blocks (float32, random values), then runs
every job in a process of its own and reads its peak resident memory (which counts mapped file
pages, too) and its time; with the files in the page cache (warm), and not (cold), --rounds times in
turn. Needs about twice --gb of disk, and 2.2 times of memory for the plain job (--jobs chooses
others).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import forget_peak, peak_resident
from pusa.models.variants import BACKBONES
from pusa.models.wan_dit import WanDiT
from pusa.weights.adapters import Adapter, Target
from pusa.weights.convert import Output, convert
from pusa.weights.files import load_weights
from pusa.weights.lazy import SafetensorsFiles, Tensors
from pusa.weights.lora import read_lora, write_lora
from pusa.weights.merge import merge
from pusa.weights.writing import num_bytes, write_checkpoint

SHAPE = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40}
CACHES = ("warm", "cold")
RESULTS = Path(__file__).parent / "results" / "checkpoint_memory.json"


class Synthetic(Tensors):
    """Random tensors of a model's shapes, made when they are read."""

    def __init__(self, specs: dict[str, Tensor]):
        self._specs = specs

    def __getitem__(self, key: str) -> Tensor:
        generator = torch.Generator().manual_seed(len(key))
        return torch.randn(self._specs[key].shape, generator=generator)

    def __iter__(self):
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def spec(self, key: str) -> Tensor:
        return self._specs[key]


def meta_model(num_layers: int) -> WanDiT:
    with torch.device("meta"):
        return WanDiT(**SHAPE, num_layers=num_layers)


def make(folder: Path, gigabytes: float, shard_gigabytes: float) -> int:
    """Write the checkpoint and a LoRA for it; returns the number of blocks."""
    num_layers = 1
    while sum(num_bytes(p) for p in meta_model(num_layers).parameters()) < gigabytes * 1e9:
        num_layers += 1
    model = meta_model(num_layers)
    tensors = Synthetic(dict(model.state_dict()))
    write_checkpoint(folder / "base", tensors, None, int(shard_gigabytes * 1e9))
    targets = {
        f"blocks.{i}.{name}": Target(torch.randn(64, inner), 0.01 * torch.randn(out, 64), 64.0)
        for i in range(num_layers)
        for name, out, inner in (("self_attn.q", 5120, 5120), ("ffn.0", 13824, 5120))
    }
    write_lora(Adapter(targets), folder / "lora.safetensors")
    return num_layers


def run_plain(folder: Path, num_layers: int) -> None:
    """What most codes do: build in float32, gather all shards, copy, cast."""
    model = BACKBONES["wan"](**SHAPE, num_layers=num_layers)
    state = {}
    for file in sorted((folder / "base").glob("*.safetensors")):
        state |= dict(SafetensorsFiles([file]))
    model.load_state_dict(state)
    model.to(torch.bfloat16)


def run_load_bfloat16(folder: Path, num_layers: int) -> None:
    load_weights(meta_model(num_layers), folder / "base", torch.bfloat16)


def run_load_mapped(folder: Path, num_layers: int) -> None:
    load_weights(meta_model(num_layers), folder / "base")


def run_merged(folder: Path, num_layers: int) -> None:
    """As bfloat16, in memory, with a LoRA of rank 64 in two layers of every block."""
    loras = [(read_lora(folder / "lora.safetensors"), 1.0)]
    load_weights(meta_model(num_layers), folder / "base", torch.bfloat16, loras=loras)


def run_fill(folder: Path, num_layers: int) -> None:
    """Memory of the bfloat16 model's size, written to once: no part of a goal, but it tells what
    fresh memory costs on this machine, which reading alone does not need."""
    filled = [
        torch.ones(p.shape, dtype=torch.bfloat16) for p in meta_model(num_layers).parameters()
    ]
    assert filled


def run_read(folder: Path, num_layers: int) -> None:
    """Every byte once, which is the least that any job can do that looks at all of them."""
    buffer = bytearray(2**24)
    for file in sorted((folder / "base").glob("*.safetensors")):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def run_read_write(folder: Path, num_layers: int) -> None:
    """Every byte once, in and out and onto the disk: the least that writing a checkpoint takes."""
    (folder / "out").mkdir()
    buffer = bytearray(2**24)
    for file in sorted((folder / "base").glob("*.safetensors")):
        with (
            file.open("rb", buffering=0) as opened,
            (folder / "out" / file.name).open("wb", buffering=0) as out,
        ):
            while size := opened.readinto(buffer):
                out.write(memoryview(buffer)[:size])
            os.fsync(out.fileno())


def run_convert(folder: Path, num_layers: int) -> None:
    convert(folder / "base", Output(folder / "out", "diffusers", shard_bytes=10**9))


def run_merge(folder: Path, num_layers: int) -> None:
    loras = [(read_lora(folder / "lora.safetensors"), 1.0)]
    merge(folder / "base", loras, Output(folder / "out", shard_bytes=10**9))


JOBS = {"read": run_read, "fill memory": run_fill, "load as bfloat16": run_load_bfloat16,
        "load as bfloat16 + merge a LoRA": run_merged, "load mapped": run_load_mapped,
        "read and write": run_read_write, "convert to diffusers": run_convert,
        "merge a LoRA": run_merge, "plain": run_plain}  # fmt: skip


def drop_pages(folder: Path) -> None:
    """Put the checkpoint's files, which are on the disk, out of the page cache."""
    for file in (folder / "base").glob("*.safetensors"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def from_disk() -> int:
    """Bytes that this process had fetched from a disk so far. Linux only."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def measure(job: str, folder: Path, num_layers: int, cache: str) -> dict[str, float]:
    """Seconds (and those of the CPU), peak GB and GB from the disk of one job in a process of its
    own; imports_gb is what it held before."""
    command = [sys.executable, __file__, "--job", job, "--folder", str(folder),
               "--layers", str(num_layers), "--cache", cache]  # fmt: skip
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    shutil.rmtree(folder / "out", ignore_errors=True)
    return json.loads(out.splitlines()[-1])


def run_one(job: str, folder: Path, num_layers: int, cache: str) -> None:
    if cache == "warm":
        run_read(folder, num_layers)  # every job finds the files in the page cache
    else:
        drop_pages(folder)
    forget_peak()
    before, fetched = peak_resident(), from_disk()
    start, cpu = time.perf_counter(), time.process_time()
    JOBS[job](folder, num_layers)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_gb": peak_resident() / 1e9,
                      "imports_gb": before / 1e9,
                      "from_disk_gb": (from_disk() - fetched) / 1e9}))  # fmt: skip


def median_of(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The median of every number but the peak, of which it is the largest."""
    found = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    return found | {"peak_gb": max(one["peak_gb"] for one in rounds)}


def measure_all(
    folder: Path, num_layers: int, jobs: Sequence[str], rounds: int
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """cache -> job -> every round; rounds of all jobs follow each other, so that each job has its
    share of the machine's good and bad minutes."""
    found = {cache: {job: [] for job in jobs} for cache in CACHES}
    for _ in range(rounds):
        for cache in CACHES:
            for job in jobs:
                one = measure(job, folder, num_layers, cache)
                found[cache][job].append(one)
                print(f"{cache} {job:<32} peak {one['peak_gb']:6.2f} GB  {one['seconds']:6.1f} s, "
                      f"CPU {one['cpu_seconds']:6.1f} s, from disk {one['from_disk_gb']:5.2f} GB",
                      flush=True)  # fmt: skip
    return found


def measured(folder: Path, num_layers: int, jobs: Sequence[str], rounds: int) -> dict[str, Any]:
    """The report on a checkpoint that `make` wrote: medians, and every round."""
    sizes = [file.stat().st_size / 1e9 for file in (folder / "base").glob("*.safetensors")]
    print(f"checkpoint: {sum(sizes):.2f} GB float32 in {len(sizes)} shards, {num_layers} blocks")
    found = measure_all(folder, num_layers, jobs, rounds)
    medians = {
        cache: {job: median_of(each) for job, each in of_jobs.items()}
        for cache, of_jobs in found.items()
    }
    return {"checkpoint_gb": sum(sizes), "shard_gb": max(sizes), "layers": num_layers,
            "shards": len(sizes), "torch": torch.__version__, "load": os.getloadavg()[2],
            "jobs": medians, "rounds": found}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gb", type=float, default=8.0)
    parser.add_argument("--shard-gb", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--folder", help="scratch folder (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cache", choices=CACHES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        run_one(options.job, Path(options.folder), options.layers, options.cache)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        num_layers = make(folder, options.gb, options.shard_gb)
        report = measured(folder, num_layers, options.jobs, options.rounds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
