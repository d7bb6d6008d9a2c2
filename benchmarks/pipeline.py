"""Sampling by `sample_latents` beside diffusers' Wan pipelines, on the same weights.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/pipeline.py

Text to video (WanPipeline), the same with guidance, and an image as a clean first frame with a
timestep of its own: WanImageToVideoPipeline with `expand_timesteps`, as for Wan2.2 5B, has it per
token. Prompts, noise and image are given as tensors and latents are taken out, so that both sides
are their loop and their network; both take Euler steps at the same sigmas. The latents are compared
first, with weights of which nothing is zero. Then, in rounds: seconds of a step (median, best), of
the processor, so that a shared machine disturbs less: run with one thread. Peak memory is counted
at every operation, and beyond the weights: what a process takes depends on what it freed before.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor

from benchmarks.memory import LiveMemory
from pusa.diffusion.conditioning import Conditioning
from pusa.diffusion.flow import FlowMatching
from pusa.models.wan_dit import WanDiT
from pusa.pipelines.generate import Request, Sampler, sample_latents
from pusa.rng import generator_for
from pusa.types import Text
from pusa.weights.keymaps import rename_wan

RESULTS = Path(__file__).parent / "results"
CHANNELS, TEXT_DIM, TEXT_LEN, HEAD_DIM = 16, 256, 512, 128
SHIFT, GUIDANCE = 5.0, 4.0
# Case -> whose runs are compared; the last is what the ratios are of.
CASES = {
    "text to video": ("ours", "diffusers"),
    "text to video, guided": ("ours", "ours, one batch", "diffusers"),
    "image to video": ("ours", "diffusers"),
}
Run = Callable[[], Tensor]  # -> latents (1, C, F, h, w)


class EvenSteps(FlowMatchEulerDiscreteScheduler):
    """At our sigmas. By itself it comes down to the shift of 1/1000, shifted a second time."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device, **_):
        even = np.linspace(1, 1 / num_inference_steps, num_inference_steps)
        super().set_timesteps(sigmas=even.tolist(), device=device)


class GivenImage(WanImageToVideoPipeline):
    """The image comes as latents: its VAE is not what is compared."""

    image_latents: Tensor

    def prepare_latents(self, *inputs, **_):
        latents = inputs[9]  # the noise
        free = torch.ones(1, 1, *latents.shape[2:])
        free[:, :, 0] = 0
        return latents, self.image_latents, free


class Inputs:
    """Noise, texts and image of one video, as `options` size it."""

    def __init__(self, options: argparse.Namespace):
        self.shape = (CHANNELS, options.frames, 2 * options.side, 2 * options.side)
        self.steps = options.steps
        generator = torch.Generator().manual_seed(1)
        self.prompt, self.negative = torch.randn(2, 1, TEXT_LEN, TEXT_DIM, generator=generator)
        self.prompt[:, 40:] = self.negative[:, 120:] = 0.0  # as captions end, and upstream's prompt
        self.image = torch.randn(1, CHANNELS, 1, *self.shape[2:], generator=generator)
        self.noise = torch.randn(self.shape, generator=generator_for(0, "generate/noise"))[None]


def our_network(options: argparse.Namespace) -> WanDiT:
    torch.manual_seed(0)
    network = WanDiT(
        dim=options.dim, ffn_dim=options.ffn_dim, num_heads=options.dim // HEAD_DIM,
        num_layers=options.layers, in_channels=CHANNELS, out_channels=CHANNELS, text_dim=TEXT_DIM,
        text_len=TEXT_LEN,
    )  # fmt: skip
    for parameter in network.parameters():
        if not parameter.any():  # biases and the head, which would hide differences
            torch.nn.init.normal_(parameter, std=0.02)
    return network.eval().requires_grad_(False)


def their_network(options: argparse.Namespace) -> WanTransformer3DModel:
    theirs = WanTransformer3DModel(
        num_attention_heads=options.dim // HEAD_DIM, attention_head_dim=HEAD_DIM,
        in_channels=CHANNELS, out_channels=CHANNELS, text_dim=TEXT_DIM, ffn_dim=options.ffn_dim,
        num_layers=options.layers, cross_attn_norm=True, eps=1e-6,
    )  # fmt: skip
    state = our_network(options).state_dict()
    names = rename_wan(list(state), "diffusers")
    theirs.load_state_dict(dict(zip(names, state.values(), strict=True)), strict=True)
    return theirs.eval().requires_grad_(False)


def our_run(network: WanDiT, case: str, inputs: Inputs, guidance: str) -> Run:
    scale = GUIDANCE if "guided" in case else 1.0
    conditioning = Conditioning.free((1, *inputs.shape))
    if case == "image to video":
        conditioning = conditioning.given({0: (inputs.image[:, :, 0], 0.0)})
    prompt, negative = (
        Text(embedding[:, :length], torch.ones(1, length, dtype=torch.bool))
        for embedding, length in ((inputs.prompt, 40), (inputs.negative, 120))
    )
    sampler = Sampler(inputs.steps, scale, guidance=guidance)
    return lambda: sample_latents(
        network, FlowMatching(SHIFT), sampler, conditioning, [Request(prompt)], negative
    )


def their_run(network: WanTransformer3DModel, case: str, inputs: Inputs) -> Run:
    parts = {"scheduler": EvenSteps(shift=SHIFT), "transformer": network, "tokenizer": None,
             "text_encoder": None, "vae": None}  # fmt: skip
    size = {"height": 8 * inputs.shape[2], "width": 8 * inputs.shape[3],
            "num_frames": 4 * inputs.shape[1] - 3}  # fmt: skip
    given: dict = {}
    if case == "image to video":
        parts["vae"] = AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
        pipeline = GivenImage(**parts, expand_timesteps=True)
        pipeline.image_latents = inputs.image
        given["image"] = torch.zeros(1, 3, size["height"], size["width"])
    else:
        pipeline = WanPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    call = cast(Callable[..., Any], pipeline)  # annotated as giving a tuple in any case
    return lambda: call(
        **given, **size, num_inference_steps=inputs.steps, output_type="latent",
        guidance_scale=GUIDANCE if "guided" in case else 1.0, latents=inputs.noise,
        prompt_embeds=inputs.prompt, negative_prompt_embeds=inputs.negative,
    ).frames  # fmt: skip


def make_run(who: str, network, case: str, inputs: Inputs) -> Run:
    if who == "diffusers":
        return their_run(network, case, inputs)
    return our_run(network, case, inputs, "batched" if "batch" in who else "sequential")


def compare(runs: dict[str, Run], noise: Tensor) -> float:
    """Largest difference of the latents, in parts of the way that sampling went."""
    expected = runs["diffusers"]()
    way = (expected - noise).norm()
    worst = max(float((run() - expected).norm() / way) for run in runs.values())
    if worst > 1e-4:
        raise SystemExit(f"the two pipelines differ by {worst:.1e}; nothing was measured.")
    return worst


def seconds(run: Run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def peak_bytes(run: Run, *there: Tensor) -> int:
    """there: tensors that were made before, such as weights."""
    with LiveMemory() as memory:
        memory.ignore(*there)
        run()
    return memory.peak


def texts_kept(case: str, who: str, options: argparse.Namespace) -> int:
    """Bytes of the keys and values that ours keeps, of each text; diffusers projects them anew."""
    num_texts = 0 if who == "diffusers" else 2 if "guided" in case else 1
    return num_texts * options.layers * TEXT_LEN * options.dim * 2 * 4


def measure(options: argparse.Namespace) -> list[dict]:
    networks = {"ours": our_network(options), "diffusers": their_network(options)}
    inputs, rows = Inputs(options), []
    for case, sides in CASES.items():
        runs = {who: make_run(who, networks[who.split(",")[0]], case, inputs) for who in sides}
        worst = compare(runs, inputs.noise)
        taken: dict[str, list[float]] = {who: [] for who in sides}
        for _ in range(options.rounds):
            for who, run in runs.items():
                taken[who].append(seconds(run) / options.steps)
        for who in sides:
            there = networks[who.split(",")[0]].state_dict().values()
            peak = peak_bytes(runs[who], inputs.prompt, inputs.negative, *there)
            row = {"case": case, "who": who, "difference": worst, "seconds": taken[who],
                   "bytes": peak, "of_texts": texts_kept(case, who, options)}  # fmt: skip
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def table(rows: list[dict]) -> str:
    """Ratios are of diffusers' in the same case; below 1 is better."""
    lines = ["| case | whose | s a step (best) | ratio | peak, MB | of them texts | ratio |",
             "|" + "---|" * 7]  # fmt: skip
    for row in rows:
        (other,) = (r for r in rows if r["case"] == row["case"] and r["who"] == "diffusers")
        median, theirs = (statistics.median(r["seconds"]) for r in (row, other))
        lines.append(
            f"| {row['case']} | {row['who']} | {median:.2f} ({min(row['seconds']):.2f}) | "
            f"**{median / theirs:.2f}** | {row['bytes'] / 1e6:.0f} | {row['of_texts'] / 1e6:.0f} | "
            f"**{row['bytes'] / other['bytes']:.2f}** |"
        )
    return "\n".join(lines)


def page(report: dict) -> str:
    """The results in words and a table."""
    facts, rows = report["options"], report["rows"]
    worst = max(row["difference"] for row in rows)
    return f"""# Sampling, ours and diffusers' pipelines

`python benchmarks/pipeline.py`: {facts["layers"]} blocks of width {facts["dim"]} (feed-forward
{facts["ffn_dim"]}), {facts["frames"]} latent frames of {facts["side"]} x {facts["side"]} tokens,
{TEXT_LEN} text tokens, {facts["steps"]} Euler steps, float32, torch {facts["torch"]}, diffusers
{facts["diffusers"]}, {facts["threads"]} thread. Seconds of processor time of one step, median
(best) of {facts["rounds"]} rounds in turn; guided steps are two passes of the network. Peak memory
is of everything but the weights; ours keeps the keys and values of each text, which do not grow
with the video. The latents agree to {worst:.0e} of the way from the noise. Ratios are ours /
diffusers'; below 1 is better.

{table(rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Sampling, ours and diffusers'.")
    parser.add_argument("--frames", type=int, default=13)
    parser.add_argument("--side", type=int, default=16, help="tokens along a side of a frame")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--ffn-dim", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = measure(options)
    facts = vars(options) | {"torch": torch.__version__, "diffusers": diffusers.__version__,
                             "threads": torch.get_num_threads()}  # fmt: skip
    report = {"options": facts, "rows": rows}
    (RESULTS / "pipeline.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "pipeline.md").write_text(page(report))


if __name__ == "__main__":
    main()
