"""What step caching saves and what it costs, frame by frame.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/step_cache.py

The trained replica (wan_tiny) under a VTA LoRA samples held-out toy clips, one at a time, with and
without `sampler.cache`. Against the uncached result: relative L2 of each latent frame, PSNR of each
decoded frame (of the mean squared error over the clips). Two rules decide, at a ladder of
thresholds: the worst frame on its way, and the mean over all frames. At equal savings they are
compared clip by clip; beside them stands Euler with as many steps as the savings leave.
"""

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pusa.cli import compose_config
from pusa.data import toy, video
from pusa.diffusion.conditioning import Conditioning
from pusa.entry import build
from pusa.models.experts import Experts
from pusa.pipelines.build import Model
from pusa.pipelines.encode import encode_frames
from pusa.pipelines.generate import Request, Sampler, decode_latents, sample_latents
from pusa.pipelines.loras import place_loras
from pusa.pipelines.step_cache import FRAMES, StepCache

RESULTS = Path(__file__).parent / "results"
LORA = "outputs/replica/independent/seed0/lora.safetensors"
LADDER = (0.03, 0.05, 0.1, 0.14, 0.2, 0.28, 0.4)
THRESHOLDS = {"worst": (0.0, *LADDER, 1e9), "mean": LADDER}  # 0 and 1e9: either rule's are the same
STEPS = (10, 30)
FEWER = (0.4, 0.5, 0.7, 0.9)  # of the steps, without a cache
# Latent frame -> noise multiplier.
TASKS: dict[str, dict[int, float]] = {
    "t2v": {},
    "i2v, 0.2": {0: 0.2},
    "four of five kept": {0: 0.0, 1: 0.0, 3: 0.0, 4: 0.0},
}


@dataclass(frozen=True)
class Clip:
    """A request and what may be given of its clip, clean latents (1, C, F, h, w)."""

    request: Request
    latents: Tensor


@dataclass(frozen=True)
class Run:
    """A sampled clip: evaluated blocks, latents (C, F, h, w), decoded frames (T, 3, H, W)."""

    blocks: int
    latents: Tensor
    frames: Tensor


@dataclass(frozen=True)
class Found:
    """Against the uncached run: blocks saved, as a share; relative L2 by latent frame (F,); mean
    squared error by pixel frame (T,), of values to 255."""

    saved: float
    latent_error: Tensor
    squared_error: Tensor


class Bench:
    """The replica, and a count of its blocks' evaluations."""

    def __init__(self, num_clips: int):
        self.model: Model = build(
            compose_config("generate", ["model=wan_tiny", "prompt=-", "output=-"]).model
        )
        self.lora = LORA if Path(LORA).is_file() else None
        loras = place_loras([self.lora] if self.lora else [], self.model.experts())
        self.experts: Experts = self.model.build_experts(loras)
        self.vae, encoder = self.model.build_vae(), self.model.build_text_encoder()
        self.evaluated = 0
        network: Any = self.experts.networks[0][1]
        for block in network.blocks:
            block.register_forward_hook(self._count)
        self.clips = []
        for i in range(num_clips):
            scene = toy.make_scene(0, "heldout", i)
            latents = encode_frames(self.vae, video.to_signed(toy.render(scene).frames)[None])
            self.clips.append(Clip(Request(encoder.encode([scene.caption]), seed=i), latents))

    def _count(self, *_: Any) -> None:
        self.evaluated += 1

    def sample(self, clip: Clip, given: dict[int, float], sampler: Sampler) -> Run:
        conditioning = Conditioning.free(clip.latents.shape).given(
            {f: (clip.latents[:, :, f], m) for f, m in given.items()}
        )
        self.evaluated = 0
        latents = sample_latents(
            self.experts, self.model.flow, sampler, conditioning, [clip.request]
        )
        return Run(self.evaluated, latents[0], decode_latents(self.vae, latents)[0])


def compare(run: Run, truth: Run) -> Found:
    off = (run.latents - truth.latents).square().sum((0, 2, 3)).sqrt()
    size = truth.latents.square().sum((0, 2, 3)).sqrt()
    squares = (run.frames.float() - truth.frames.float()).square().mean((1, 2, 3))
    return Found(1 - run.blocks / truth.blocks, off / size, squares)


def summary(found: Sequence[Found], given: Sequence[int]) -> dict[str, Any]:
    """Over clips: the share saved, errors by frame, and given frames apart from the others."""
    latent = torch.stack([f.latent_error for f in found]).mean(0)
    squares = torch.stack([f.squared_error for f in found]).mean(0)
    pixels = {frame for k in given for frame in covered(k)}
    free = [k for k in range(len(latent)) if k not in given]
    free_pixels = [t for t in range(len(squares)) if t not in pixels]
    return {
        "saved": round(statistics.mean(f.saved for f in found), 4),
        "latent_error": [round(x, 5) for x in latent.tolist()],
        "psnr": [psnr(x) for x in squares.tolist()],
        "given": averages(latent[list(given)], squares[sorted(pixels)]) if given else None,
        "free": averages(latent[free], squares[free_pixels]),
    }


def averages(latent: Tensor, squares: Tensor) -> dict[str, Any]:
    return {
        "latent_error": round(float(latent.mean()), 5),
        "latent_error_worst": round(float(latent.max()), 5),
        "psnr": psnr(float(squares.mean())),
        "psnr_worst": psnr(float(squares.max())),
    }


def covered(latent: int) -> range:
    """Pixel frames of a latent frame: 0, 1..4, 5..8, ..."""
    return range(1) if latent == 0 else range(4 * latent - 3, 4 * latent + 1)


def psnr(squared_error: float) -> float | None:
    """dB; None: the very same frames."""
    return round(10 * math.log10(255**2 / squared_error), 2) if squared_error else None


def at_equal_savings(
    by_rule: dict[str, list[list[Found]]], free: Sequence[int]
) -> dict[str, Any] | None:
    """Clip by clip, where both rules save as much, and neither nothing nor all that can be: how
    often the worst-frame rule is nearer, and the geometric mean of its error over the other's, of
    the free latent frames' mean and of the worst of them. None: they never do."""
    ratios: dict[str, list[float]] = {"mean": [], "worst": []}
    most = max(f.saved for rows in by_rule.values() for row in rows for f in row)
    for clip in range(len(next(iter(by_rule.values()))[0])):
        errors = {rule: defaultdict(list) for rule in FRAMES}
        for rule, rows in by_rule.items():
            for found in (row[clip] for row in rows):
                if 0 < found.saved < most:
                    errors[rule][round(found.saved, 6)].append(found.latent_error[list(free)])
        for saved in errors["worst"].keys() & errors["mean"].keys():
            ours, other = (torch.stack(errors[rule][saved]) for rule in ("worst", "mean"))
            ratios["mean"].append(float(ours.mean() / other.mean()))
            ratios["worst"].append(float(ours.amax(1).mean() / other.amax(1).mean()))
    if not ratios["mean"]:
        return None
    result: dict[str, Any] = {"pairs": len(ratios["mean"])}
    for name, values in ratios.items():
        result[name] = {
            "nearer": sum(ratio < 0.999 for ratio in values),
            "equal": sum(0.999 <= ratio <= 1.001 for ratio in values),
            "ratio": round(statistics.geometric_mean(values), 4),
        }
    return result


def measure(bench: Bench, given: dict[int, float], steps: int) -> dict[str, Any]:
    """A task at a number of steps: both rules at all thresholds, and fewer steps without a cache.

    The given frames' errors are apart; of frames that nothing moves they are 0.
    """
    truths = [bench.sample(clip, given, Sampler(steps)) for clip in bench.clips]

    def errors(sampler: Sampler) -> list[Found]:
        runs = (bench.sample(clip, given, sampler) for clip in bench.clips)
        return [compare(run, truth) for run, truth in zip(runs, truths, strict=True)]

    by_rule = {
        rule: [errors(Sampler(steps, cache=StepCache(t, frames=rule))) for t in THRESHOLDS[rule]]
        for rule in FRAMES
    }
    kept = sorted(given)
    fewer = [round(steps * share) for share in FEWER]
    return {
        "rules": {
            rule: {
                f"{t:g}": summary(row, kept) for t, row in zip(THRESHOLDS[rule], rows, strict=True)
            }
            for rule, rows in by_rule.items()
        },
        "fewer_steps": {str(n): summary(errors(Sampler(n)), kept) for n in fewer},
        "equal_savings": at_equal_savings(
            by_rule, [k for k in range(truths[0].latents.shape[1]) if k not in given]
        ),
    }


def page(report: dict[str, Any]) -> str:
    facts = report["facts"]
    lora = f"the VTA LoRA {facts['lora']}" if facts["lora"] else "no LoRA"
    text = f"""# Step caching

`python benchmarks/step_cache.py`: {facts["model"]} (6 blocks) under {lora},
{facts["clips"]} held-out toy clips of 5 latent frames, one at a time; Euler, no guidance, a warm-up
of {facts["warmup"]} step, torch {facts["torch"]}. All errors are against the same sampling without
a cache: relative L2 of a latent frame, PSNR (dB) of a decoded frame; mean over frames, and of the
worst frame. Saved: the share of block evaluations. A pass always runs the first block, a sixth of
this network; of the 40 blocks of a 14B model it is a fortieth, so that there the same full passes
save more.
"""
    for name, by_steps in report["tasks"].items():
        for steps, found in by_steps.items():
            text += f"\n## {name}, {steps} steps\n\n" + threshold_table(found, int(steps))
    text += "\n## By latent frame\n\nThe rule of the worst frame, 30 steps: relative L2.\n\n"
    text += "| task | threshold | saved | " + " | ".join(f"frame {f}" for f in range(5)) + " |\n"
    text += "|" + "---|" * 8 + "\n"
    for name, by_steps in report["tasks"].items():
        for threshold in ("0.1", "0.2"):
            row = by_steps["30"]["rules"]["worst"][threshold]
            frames = " | ".join(f"{x:.4f}" for x in row["latent_error"])
            text += f"| {name} | {threshold} | {row['saved']:.0%} | {frames} |\n"
    return text + equal_table(report)


def threshold_table(found: dict[str, Any], steps: int) -> str:
    text = "| | saved | full passes | given frames: L2, PSNR | others: L2, worst | PSNR, worst |\n"
    text += "|" + "---|" * 6 + "\n"
    rows = [(f"threshold {t}, {rule} frame" if rule == "worst" else f"threshold {t}, mean", row)
            for rule, by in found["rules"].items() for t, row in by.items()]  # fmt: skip
    rows += [(f"{n} steps, no cache", row) for n, row in found["fewer_steps"].items()]
    for label, row in rows:
        full = steps * (1 - row["saved"] * 6 / 5)
        cached = f"{full:.1f} of {steps}" if "threshold" in label else label.split()[0]
        given, free = row["given"], row["free"]
        apart = "" if given is None else f"{given['latent_error']:.4f}, {decibel(given['psnr'])}"
        text += (
            f"| {label} | {row['saved']:.0%} | {cached} | {apart} "
            f"| {free['latent_error']:.4f}, {free['latent_error_worst']:.4f} "
            f"| {decibel(free['psnr'])}, {decibel(free['psnr_worst'])} |\n"
        )
    return text


def equal_table(report: dict[str, Any]) -> str:
    text = """
## The worst frame, or the mean of all

Clip by clip, where both rules save as much (neither nothing nor all): how often the worst frame's
rule ends nearer, as near, farther from the uncached latents, and its error over the other's
(geometric mean; below 1 the worst frame's is better), of the mean over the frames not given.

| task | steps | pairs | nearer | as near | farther | error, worst / mean |
|---|---|---|---|---|---|---|
"""
    for name, by_steps in report["tasks"].items():
        for steps, found in by_steps.items():
            pairs = found["equal_savings"]
            if pairs is None:
                text += f"| {name} | {steps} | 0 | | | | |\n"
                continue
            own = pairs["mean"]
            farther = pairs["pairs"] - own["nearer"] - own["equal"]
            text += (
                f"| {name} | {steps} | {pairs['pairs']} | {own['nearer']} | {own['equal']} "
                f"| {farther} | {own['ratio']:.3f} |\n"
            )
    return text


def decibel(value: float | None) -> str:
    return "the same" if value is None else f"{value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="only write the page of the results")
    options = parser.parse_args()
    if options.page:
        report = json.loads((options.output / "step_cache.json").read_text())
        (options.output / "step_cache.md").write_text(page(report))
        return
    bench = Bench(options.clips)
    facts = {
        "model": bench.model.name, "lora": bench.lora, "clips": options.clips,
        "warmup": StepCache().warmup, "torch": torch.__version__,
    }  # fmt: skip
    report: dict[str, Any] = {"facts": facts, "tasks": {}}
    for name, given in TASKS.items():
        report["tasks"][name] = {str(n): measure(bench, given, n) for n in STEPS}
        (options.output / "step_cache.json").write_text(json.dumps(report, indent=1) + "\n")
        print(name, "measured", flush=True)
    (options.output / "step_cache.md").write_text(page(report))


if __name__ == "__main__":
    main()
