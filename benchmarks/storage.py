"""What storing the frozen base in 8 bits costs in exactness, beside plain bfloat16.

    python benchmarks/storage.py

On the tiny replica and on a random network of 6 blocks of width 384, in float32 arithmetic, against
the float32 weights: errors of the weights, of the velocity, of a LoRA's gradients, and bytes held.
"""

import argparse
import copy
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.networks import WIDTHS, fill_zeros, our_network
from pusa.models.stored import store_layers, stored_layers, weight_of
from pusa.models.variants import VARIANTS
from pusa.types import Text
from pusa.weights.files import load_weights
from pusa.weights.lora import LoRA, inject_lora

RESULTS = Path(__file__).parent / "results"
REPLICA = Path(__file__).parents[1] / "data" / "replica" / "wan_tiny" / "model.safetensors"
STORAGES, SIGMAS = ("bfloat16", "int8", "float8"), (0.1, 0.5, 0.9)


def networks() -> dict[str, Any]:
    """The replica as it is trained, and a random one, both float32 and frozen."""
    replica = VARIANTS["wan_tiny"].build()
    load_weights(replica, REPLICA, torch.float32)
    torch.manual_seed(0)
    random = our_network(WIDTHS["384x6"])()
    fill_zeros(random)
    found = {"wan_tiny": replica, "384x6": random}
    return {name: network.eval().requires_grad_(False) for name, network in found.items()}


def stored(network: nn.Module, storage: str) -> nn.Module:
    """A copy; bfloat16: the same layers rounded, whose values are float32 for the arithmetic."""
    found = copy.deepcopy(network)
    if storage != "bfloat16":
        store_layers(found, storage)
        return found
    for name in stored_layers(found):
        weight = found.get_parameter(f"{name}.weight")
        weight.data = weight.bfloat16().float()
    return found


def inputs(network: Any) -> tuple[Tensor, Text]:
    """Noise as latents, 5 frames of 8x8, and a caption of 8 tokens."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, network.in_channels, 5, 8, 8, generator=generator)
    embedding = torch.randn(1, 8, network.text_dim, generator=generator)
    return latents, Text(embedding, torch.ones(1, 8, dtype=torch.bool))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def weight_errors(network: nn.Module, other: nn.Module) -> dict[str, float]:
    """Layer kind, as self_attn.q -> rms of the error over rms of the weight, over all blocks."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name in stored_layers(network):
        exact, found = (weight_of(cast(nn.Linear, m.get_submodule(name))) for m in (network, other))
        total = sums[name.split(".", 2)[2]]
        total[0] += float((found - exact).double().square().sum())
        total[1] += float(exact.double().square().sum())
    return {kind: (error / size) ** 0.5 for kind, (error, size) in sums.items()}


@torch.no_grad()
def velocities(network: nn.Module) -> list[Tensor]:
    latents, text = inputs(network)
    return [network(latents, torch.full((1, 5), sigma), text) for sigma in SIGMAS]


def gradients(network: nn.Module) -> Tensor:
    """Of the mean square of the velocity by a LoRA of rank 8 that is no zero, as one vector."""
    network = copy.deepcopy(network)
    torch.manual_seed(1)
    inject_lora(network, LoRA(8, 8.0))
    for name, parameter in network.named_parameters():
        if ".lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    latents, text = inputs(network)
    network(latents, torch.linspace(0.1, 0.9, 5)[None], text).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def num_bytes(network: nn.Module, storage: str) -> int:
    """Of the layers that are stored: weights and, if they have them, scales."""
    total = 0
    for name in stored_layers(network):
        weight = network.get_parameter(f"{name}.weight")
        total += weight.numel() * (2 if storage == "bfloat16" else weight.element_size())
        total += 4 * weight.shape[0] if storage in ("int8", "float8") else 0
    return total


def measure() -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, network in networks().items():
        exact, exact_gradients = velocities(network), gradients(network)
        results[name] = {"float32": {"bytes": num_bytes(network, "float32")}}
        for storage in STORAGES:
            other = stored(network, storage)
            pairs = zip(SIGMAS, velocities(other), exact, strict=True)
            results[name][storage] = {
                "bytes": num_bytes(other, storage),
                "weights": weight_errors(network, other),
                "velocity": {str(sigma): relative(found, true) for sigma, found, true in pairs},
                "gradients": relative(gradients(other), exact_gradients),
            }
    return results


def page(results: dict[str, Any]) -> str:
    lines = [
        "# Errors of an 8-bit base", "",
        f"`python benchmarks/storage.py`, torch {torch.__version__}, float32 arithmetic: relative "
        "L2 differences from the",
        "same network with float32 weights. Weights: least and largest of the ten kinds of layers.",
        "", "| network | storage | MB | weights | velocity at 0.1, 0.5, 0.9 | LoRA gradients |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for network, rows in results.items():
        for storage, row in rows.items():
            megabytes = f"{row['bytes'] / 1e6:.2f}"
            if "weights" not in row:
                lines.append(f"| {network} | {storage} | {megabytes} | 0 | 0 | 0 |")
                continue
            errors = row["weights"].values()
            at = ", ".join(f"{value:.2%}" for value in row["velocity"].values())
            lines.append(
                f"| {network} | {storage} | {megabytes} | {min(errors):.2%} to {max(errors):.2%} "
                f"| {at} | {row['gradients']:.2%} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "storage.json")
    options = parser.parse_args()
    results = measure()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"torch": torch.__version__, "networks": results}, indent=2) + "\n"
    )
    options.out.with_suffix(".md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
