"""Batches out of the latent cache, beside a plain reader that does torch.load per sample.

    python benchmarks/cache_reading.py --samples 10000

Writes the same random latents and captions as our cache (loose, then packed) and as one .pth file
per sample, then reads one epoch of batches in the same shuffled order, readers taking turns.
Prints samples per second (median), the ratio to the plain reader, the time to the first batch from
opening the index on, and peak memory.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.memory import peak_resident
from pusa.data.cache import Entry, LatentCache
from pusa.data.care import pack
from pusa.data.latents import LatentDataModule, collate
from pusa.data.order import CountedBatches

RESULTS = Path(__file__).parent / "results" / "cache_reading.json"
SHAPE, TEXT = (16, 5, 8, 8), (12, 64)  # of the replica's clips
BATCH = 8


class PlainDataset(Dataset):
    """One torch file per sample, as upstream's caches are."""

    def __init__(self, folder: Path, count: int):
        self.files = [folder / f"{i}.pth" for i in range(count)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int):
        sample = torch.load(self.files[index], weights_only=True)
        return sample["latents"].float(), sample["text"].float(), index


def make(folder: Path, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    cache, plain = LatentCache(folder / "cache"), folder / "plain"
    plain.mkdir()
    entries = []
    for i in range(count):
        latents = torch.randn(SHAPE, generator=generator).bfloat16()
        text = torch.randn(TEXT, generator=generator).bfloat16()
        key = f"{i * 7919 % 2**32:08x}"
        cache.write("latents", key, latents)
        cache.write("text", key, text)
        torch.save({"latents": latents, "text": text}, plain / f"{i}.pth")
        entries.append(Entry(f"{i}", f"caption {i}", key, key, SHAPE))
    cache.write_index("set", "0" * 32, entries)


def ours(folder: Path, steps: int, **options) -> Iterable:
    module = LatentDataModule(folder / "cache", "set", batch_size=BATCH, num_steps=steps, **options)
    return module.train_dataloader()


def plain(folder: Path, count: int, steps: int) -> Iterable:
    order = CountedBatches(count, BATCH, 0, 0, steps)
    return DataLoader(PlainDataset(folder / "plain", count), batch_sampler=order,
                      collate_fn=collate)  # fmt: skip


def epoch(make_loader: Callable[[], Iterable]) -> dict[str, float]:
    gc.collect()
    start = time.perf_counter()
    first = None
    samples = 0
    for batch in make_loader():
        first = first or time.perf_counter() - start
        samples += len(batch.index)
    return {"samples_per_s": samples / (time.perf_counter() - start), "first_batch_s": first or 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="scratch folder (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    count, steps = options.samples, options.samples // BATCH
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        start = time.perf_counter()
        make(folder, count)
        print(
            f"wrote {count} samples three ways in {time.perf_counter() - start:.0f} s", flush=True
        )
        readers = {
            "torch.load per sample": lambda: plain(folder, count, steps),
            "cache, loose files": lambda: ours(folder, steps),
        }
        runs = rounds(readers, options.rounds)
        pack(LatentCache(folder / "cache"), LatentCache(folder / "cache").read_index("set"))
        packed = {
            "torch.load per sample (again)": readers["torch.load per sample"],
            "cache, packed": readers["cache, loose files"],
            "cache, packed, kept in memory": lambda: ours(folder, steps, in_memory=True),
        }
        runs |= rounds(packed, options.rounds)
    report(runs, count, options.out)


def rounds(readers: dict[str, Callable], count: int) -> dict[str, list[dict[str, float]]]:
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in readers}
    for _ in range(count):
        for name, make_loader in readers.items():
            runs[name].append(epoch(make_loader))
    return runs


def report(runs: dict[str, list[dict[str, float]]], count: int, out: Path) -> None:
    medians = {
        name: {key: statistics.median(run[key] for run in some) for key in some[0]}
        for name, some in runs.items()
    }
    for name, one in medians.items():
        again = "packed" in name or "again" in name
        peer = medians["torch.load per sample" + (" (again)" if again else "")]
        ratio = one["samples_per_s"] / peer["samples_per_s"]
        one["ratio"] = ratio
        print(f"{name:<32} {one['samples_per_s']:9.0f} samples/s  x {ratio:5.2f}   "
              f"first batch {one['first_batch_s']:.3f} s")  # fmt: skip
    peak = peak_resident() / 1e9
    print(f"peak memory of all together {peak:.2f} GB")
    out.parent.mkdir(parents=True, exist_ok=True)
    value = {"samples": count, "peak_gb": peak, "readers": medians}
    out.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
