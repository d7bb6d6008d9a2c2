"""What a training step of each method of experiment=replica/methods costs: floating-point
operations, counted, so that no machine has a say.

    python benchmarks/method_flops.py

One step of the demo's batch with a VTA LoRA, with all weights, and with the image in further input
channels. Prints GFLOP of the forward and backward pass, and their ratio to the LoRA's.
"""

import json
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import UNKNOWN_TO_TORCH
from pusa.entry import build, config_folder, quiet_libraries
from pusa.types import LatentBatch, Text

RESULTS = Path(__file__).parent / "results"
VARIANTS = {"LoRA": "independent", "all weights": "full", "image in channels": "concat"}


def step_gflop(variant: str) -> float:
    with initialize_config_dir(str(config_folder().resolve()), version_base="1.3"):
        cfg = compose("train", ["experiment=replica/methods", f"variant={variant}", "name=x"])
    module = build(cfg.module)
    model, size = module.model, cfg.batch_size
    clean = torch.randn(size, *model.latent_shape())
    mask = torch.ones(size, model.text_len, dtype=torch.bool)
    text = Text(torch.randn(size, model.text_len, cfg.model.backbone.text_dim), mask)
    batch = LatentBatch(clean, text, torch.arange(size))
    sigma, noise, text = module.draw(batch, 0)
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN_TO_TORCH) as counter:
        velocity = module.velocity(clean, noise, sigma, text)
        module.flow.loss(velocity, clean, noise, module.levels(sigma)).backward()
    return counter.get_total_flops() / 1e9


def main() -> None:
    quiet_libraries()
    found = {name: step_gflop(variant) for name, variant in VARIANTS.items()}
    for name, gflop in found.items():
        print(f"{name:>18}: {gflop:6.2f} GFLOP a step, {gflop / found['LoRA']:.2f} of the LoRA's")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "method_flops.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
