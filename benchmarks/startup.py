"""Memory and time of starting several processes of one machine on a checkpoint that must be cast.

    python benchmarks/startup.py --gb 4 --processes 2

Makes a synthetic Wan checkpoint of 14B shape with fewer blocks (float32), then starts the processes
together: once each casts for itself, once they map the copy that training makes first
(pusa/weights/ready.py). Every process reads all of its weights, as moving them to a GPU does, and
waits for the others; memory is the proportional set size (a page that n processes share counts 1/n
each).
"""

import argparse
import json
import multiprocessing
import re
import tempfile
import time
from pathlib import Path

import torch
from checkpoint_memory import make, meta_model

from pusa.models.wan_dit import WanDiT
from pusa.weights.files import load_weights
from pusa.weights.ready import ready_copy

RESULTS = Path(__file__).parent / "results" / "startup.json"
DTYPE = torch.bfloat16


def resident() -> float:
    """Proportional set size of this process, GB."""
    text = Path("/proc/self/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    assert found
    return int(found[1]) * 1024 / 1e9


def start(path: Path, num_layers: int, together, answers) -> None:
    torch.set_num_threads(1)
    empty = resident()
    together.wait()
    began = time.perf_counter()
    model = meta_model(num_layers)
    load_weights(model, path, DTYPE)
    for parameter in model.parameters():
        parameter.detach().sum()
    seconds = time.perf_counter() - began
    together.wait()
    answers.put((seconds, resident() - empty))
    together.wait()


def measure(path: Path, num_layers: int, processes: int) -> dict[str, float]:
    """Seconds of the slowest process, and GB of all of them together."""
    context = multiprocessing.get_context("spawn")
    together, answers = context.Barrier(processes), context.Queue()
    group = [
        context.Process(target=start, args=(path, num_layers, together, answers))
        for _ in range(processes)
    ]
    for process in group:
        process.start()
    found = [answers.get() for _ in group]
    for process in group:
        process.join()
    return {"seconds": max(s for s, _ in found), "gb": sum(gb for _, gb in found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=4.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", help="scratch folder (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        num_layers = make(folder, options.gb, 1.0)
        base = folder / "base"
        size = sum(p.stat().st_size for p in base.glob("*.safetensors")) / 1e9
        print(f"checkpoint: {size:.2f} GB float32, {num_layers} blocks", flush=True)
        results = {"each casts": measure(base, num_layers, options.processes)}
        began = time.perf_counter()
        copy = ready_copy(base, folder / "copy", DTYPE, WanDiT.keep_float32)
        results["making the copy, once"] = {"seconds": time.perf_counter() - began, "gb": 0.0}
        results["all map the copy"] = measure(copy, num_layers, options.processes)
        for name, one in results.items():
            print(f"{name:<24} {one['gb']:6.2f} GB  {one['seconds']:6.1f} s", flush=True)
    report = {"checkpoint_gb": size, "processes": options.processes, "results": results,
              "torch": torch.__version__}  # fmt: skip
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
