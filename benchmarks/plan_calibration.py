"""What `pusa plan` predicts of a training step, beside what real steps on a CPU take.

    python benchmarks/plan_calibration.py

For every shape and checkpointing policy: the most bytes that torch's allocator held at once in a
forward and backward pass, weights not counted, from the profiler's memory events, and the trace's
figure for the same step. FLOPs are compared with torch's own counter of the real step. Takes a few
minutes and 3 GB.
"""

import argparse
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import UNKNOWN_TO_TORCH
from pusa.diffusion.flow import FlowMatching
from pusa.models.variants import BACKBONES, VARIANTS
from pusa.pipelines.build import Model
from pusa.training.footprint import Work, outline, step_footprint
from pusa.types import LatentSpec, Text
from pusa.weights.lora import LoRA

RESULTS = Path(__file__).parent / "results" / "plan_calibration.json"
POLICIES = ("none", "every_2", "blocks", "offload")


@dataclass(frozen=True)
class Case:
    """A network and a clip; rank None trains all weights; shape (C, F, h, w)."""

    name: str
    variant: str
    changes: dict
    shape: tuple[int, int, int, int]
    rank: int | None
    dtype: str = "bfloat16"
    autocast: bool = True


CASES = (
    Case("tiny twin of 14B, float32", "wan21_t2v_14b_tiny", {}, (16, 5, 16, 16), 16,
         "float32", False),
    Case("replica, bf16", "wan_tiny", {}, (16, 5, 32, 32), 64),
    Case("replica, all weights", "wan_tiny", {}, (16, 5, 32, 32), None, "float32"),
    Case("tiny Mochi", "mochi_1_tiny", {}, (12, 5, 32, 32), 16),
    Case("half as wide as 1.3B, 4 blocks", "wan21_t2v_1_3b",
         {"dim": 768, "num_heads": 6, "ffn_dim": 4480, "num_layers": 4}, (16, 5, 16, 28), 64),
    Case("1.3B, 4 of 30 blocks", "wan21_t2v_1_3b", {"num_layers": 4}, (16, 5, 20, 32), 128),
)  # fmt: skip


def model_of(case: Case) -> Model:
    variant = VARIANTS[case.variant]
    arguments = {**variant.arguments, **case.changes}
    text_len = arguments.get("text_len", arguments.get("text_tokens", 512))
    return Model(
        case.name, functools.partial(BACKBONES[variant.family], **arguments), FlowMatching(),
        LatentSpec(case.shape[0]), None, "", "", int(text_len), 17, 64, 64, 16, dtype=case.dtype,
    )  # fmt: skip


def real_step(backbone: nn.Module, model: Model, work: Work) -> tuple[int, float]:
    """(most bytes at once, FLOPs) of one forward and backward pass, computed."""
    latents = torch.randn(work.batch, *work.shape)
    noise, sigma = torch.randn_like(latents), torch.rand(work.batch, work.shape[1])
    mask = torch.ones(work.batch, work.text_len, dtype=torch.bool)
    text = Text(torch.randn(*mask.shape, work.text_dim), mask)

    def step() -> None:
        noisy = model.flow.add_noise(latents, noise, sigma)
        with torch.autocast("cpu", torch.bfloat16, enabled=work.autocast):
            velocity = backbone(noisy, sigma, text)
        model.flow.loss(velocity, latents, noise, sigma).backward()
        backbone.zero_grad()

    with FlopCounterMode(display=False, custom_mapping=UNKNOWN_TO_TORCH) as counter:
        step()  # also fills the tables that models keep
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    inputs = sum(x.nbytes for x in (latents, noise, sigma, text.embedding, mask))
    return inputs + peak_of(profiler), counter.get_total_flops()


def peak_of(profiler: profile) -> int:
    """The most bytes above the start, of the allocator's events."""
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events: list[Any] = profiler.profiler.kineto_results.events()
    live = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def compare(case: Case) -> Iterator[dict]:
    model = model_of(case)
    lora = None
    for policy in POLICIES:
        on_meta = outline(model, None, checkpointing=policy)
        if case.rank is not None:
            targets = ("attn.qkv_x", "mlp_x.w1") if "mochi" in case.variant else LoRA().targets
            lora = LoRA(case.rank, case.rank, targets)
        text_dim: int = on_meta.text_dim  # pyright: ignore[reportAssignmentType]
        work = Work(1, case.shape, model.text_len, text_dim, case.autocast)
        num_layers = len(list(on_meta.get_submodule("blocks").children()))
        predicted = step_footprint(model, lora, work, policy, num_layers)
        parts = (predicted.forward, *predicted.backward)  # on a CPU both memories are one
        guess = max(part.activations + part.gradients + part.host for part in parts)
        backbone = outline(model, lora, checkpointing=policy).to_empty(device="cpu")
        for parameter in backbone.parameters():
            nn.init.normal_(parameter, std=0.02)
        measured, flops = real_step(backbone, model, work)
        yield {
            "case": case.name, "policy": policy, "predicted_bytes": guess,
            "measured_bytes": measured, "error": guess / measured - 1,
            "predicted_flops": predicted.flops, "counted_flops": flops,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default=str(RESULTS))
    options = parser.parse_args()
    rows = []
    for case in CASES:
        for row in compare(case):
            rows.append(row)
            print(
                f"{row['case']:<32} {row['policy']:<8} predicted "
                f"{row['predicted_bytes'] / 2**20:8.1f} MiB  measured "
                f"{row['measured_bytes'] / 2**20:8.1f} MiB  {row['error']:+.1%}  FLOPs x "
                f"{row['predicted_flops'] / row['counted_flops']:.4f}", flush=True,
            )  # fmt: skip
    worst = max(rows, key=lambda row: abs(row["error"]))
    print(f"worst: {worst['error']:+.1%} ({worst['case']}, {worst['policy']})")
    Path(options.out).parent.mkdir(exist_ok=True)
    Path(options.out).write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
