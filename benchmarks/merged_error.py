"""What merging a LoRA into bfloat16 weights costs in accuracy, beside the LoRA's own path.

    python benchmarks/merged_error.py BASE.safetensors LORA.safetensors

The velocity of a small network, its LoRA merged as it is loaded or beside the weights, in bfloat16,
against the LoRA beside the same weights in float32: |difference| / |velocity|, root mean square
over inputs.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from pusa.models.variants import BACKBONES
from pusa.types import Text
from pusa.weights.files import load_weights, read_checkpoint
from pusa.weights.lora import load_lora, read_lora

RESULTS = Path(__file__).parent / "results" / "merged_error.json"
INPUTS = 16


def built(path: Path, lora: Path, dtype: torch.dtype, merged: bool, strength: float) -> nn.Module:
    variant = read_checkpoint(path).variant
    with torch.device("meta"):
        model = BACKBONES[variant.family](**variant.arguments)
    adapter = read_lora(lora)
    load_weights(model, path, dtype, loras=[(adapter, strength)] if merged else [])
    if not merged:
        load_lora(model, adapter, strength)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def velocities(model) -> Tensor:
    """(INPUTS, C, F, h, w) of fixed noise, levels and texts."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(INPUTS, model.in_channels, 3, 8, 8, generator=generator)
    sigma = torch.rand(INPUTS, 3, generator=generator)
    embedding = torch.randn(INPUTS, 8, model.text_dim, generator=generator)
    text = Text(embedding, torch.ones(INPUTS, 8, dtype=torch.bool))
    return model(latents, sigma, text).double()


def errors(path: Path, lora: Path, strength: float) -> dict[str, float]:
    """Of both paths in bfloat16, and how far the LoRA itself moves the velocity."""
    exact = velocities(built(path, lora, torch.float32, False, strength))
    base = velocities(built(path, lora, torch.float32, False, 0.0))
    found = {"effect": float((exact - base).norm() / exact.norm())}
    for name, merged in (("low_rank", False), ("merged", True)):
        model = built(path, lora, torch.bfloat16, merged, strength)
        found[name] = float((velocities(model) - exact).norm() / exact.norm())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("lora", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    specs = read_checkpoint(options.base).tensors.specs()
    file = str(specs["blocks.0.ffn.0.weight"].dtype).removeprefix("torch.")
    rows = []
    for lora in options.lora:
        for strength in (0.1, 1.0, 1.4):
            found = errors(options.base, lora, strength)
            rows.append({"lora": lora.parent.parent.name, "strength": strength, "file": file})
            rows[-1] |= found
            print(rows[-1])
    options.out.write_text(json.dumps({"inputs": INPUTS, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
