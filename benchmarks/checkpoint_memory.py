"""Peak memory of loading, converting and merging a sharded checkpoint, beside build-then-load.

    python benchmarks/checkpoint_memory.py --gb 8 --shard-gb 1

Makes a synthetic Wan checkpoint of 14B shape with fewer blocks (float32, random values), then runs
every job in a process of its own and reads its peak resident memory (which counts mapped file
pages, too) and its time. Needs about twice --gb of disk, and 2.2 times of memory for the
plain job (--skip-plain leaves it out).
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def run_read(folder: Path, num_layers: int) -> None:
    """Every byte once, which is the least that any job can do that looks at all of them."""
    buffer = bytearray(2**24)
    for file in sorted((folder / "base").glob("*.safetensors")):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def run_convert(folder: Path, num_layers: int) -> None:
    convert(folder / "base", Output(folder / "out", "diffusers", shard_bytes=10**9))


def run_merge(folder: Path, num_layers: int) -> None:
    loras = [(read_lora(folder / "lora.safetensors"), 1.0)]
    merge(folder / "base", loras, Output(folder / "out", shard_bytes=10**9))


JOBS = {"read": run_read, "plain": run_plain, "load as bfloat16": run_load_bfloat16,
        "load mapped": run_load_mapped, "convert to diffusers": run_convert,
        "merge a LoRA": run_merge}  # fmt: skip


def measure(job: str, folder: Path, num_layers: int) -> dict[str, float]:
    """Seconds and peak GB of one job in a process of its own, less what imports alone take."""
    command = [sys.executable, __file__, "--job", job, "--folder", str(folder),
               "--layers", str(num_layers)]  # fmt: skip
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    shutil.rmtree(folder / "out", ignore_errors=True)
    return json.loads(out.splitlines()[-1])


def run_one(job: str, folder: Path, num_layers: int) -> None:
    run_read(folder, num_layers)  # every job finds the files in the page cache
    forget_peak()
    before, start = peak_resident(), time.perf_counter()
    JOBS[job](folder, num_layers)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_gb": peak_resident() / 1e9,
                      "imports_gb": before / 1e9}))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=8.0)
    parser.add_argument("--shard-gb", type=float, default=1.0)
    parser.add_argument("--skip-plain", action="store_true")
    parser.add_argument("--folder", help="scratch folder (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        run_one(options.job, Path(options.folder), options.layers)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        num_layers = make(folder, options.gb, options.shard_gb)
        files = list((folder / "base").glob("*.safetensors"))
        sizes = [file.stat().st_size / 1e9 for file in files]
        size, largest = sum(sizes), max(sizes)
        print(f"checkpoint: {size:.2f} GB float32 in {len(files)} shards, {num_layers} blocks")
        results = {}
        for job in JOBS:
            if job == "plain" and options.skip_plain:
                continue
            results[job] = measure(job, folder, num_layers)
            one = results[job]
            print(f"{job:<22} peak {one['peak_gb']:6.2f} GB  {one['seconds']:6.1f} s", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"checkpoint_gb": size, "shard_gb": largest, "layers": num_layers,
              "shards": len(files), "torch": torch.__version__, "jobs": results}  # fmt: skip
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
