"""Writes a tiny twin of a model as the vendor ships the real one: the same folders, files and
tensor names, random weights. What runs on it runs on the real files."""

from pathlib import Path

import torch
from torch import nn

from pusa.models.variants import BACKBONES, VARIANTS, Variant
from pusa.pipelines.tiny_parts import write_tiny_text_encoder, write_tiny_vae
from pusa.rng import generator_for
from pusa.weights.convert import Output, write
from pusa.weights.files import Checkpoint
from pusa.weights.lazy import InMemory
from pusa.weights.writing import replacing_folder

TWINS = tuple(name for name in VARIANTS if f"{name}_tiny" in VARIANTS)
SHARD_BYTES = 400_000  # so that even the twins come in several shards, as the large ones do


def write_tiny_model(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Write the twin of variant `name` (without _tiny) to a new folder in the official layout.

    Wan: shards with index and config.json (A14B: high_noise_model/ and low_noise_model/), the VAE
    and text encoder as .pth, google/umt5-xxl/. Mochi: dit, encoder and decoder .safetensors, t5/.
    ValueError for an unknown name or a folder with files in it.
    """
    if name not in TWINS:
        raise ValueError(f"{name!r} has no tiny twin; use one of {', '.join(TWINS)}.")
    variant = VARIANTS[f"{name}_tiny"]
    with replacing_folder(Path(folder)) as partial:
        if variant.family == "mochi":
            _write(variant, partial / "dit.safetensors", seed)
            write_tiny_vae(partial, "mochi", "official", seed)
            write_tiny_text_encoder(partial / "t5", "t5", "transformers", 64, seed)
        else:
            _write_wan(variant, partial, seed)
    return Path(folder)


def _write_wan(variant: Variant, folder: Path, seed: int) -> None:
    if "a14b" in variant.name:
        for i, expert in enumerate(("high", "low")):
            _write(variant, folder / f"{expert}_noise_model", seed + i)
    else:
        made = _write(variant, folder / "dit", seed)
        for file in made.iterdir():
            file.rename(folder / file.name)
        made.rmdir()
    write_tiny_vae(folder, "wan22" if "5b" in variant.name else "wan21", "official", seed)
    write_tiny_text_encoder(folder, "umt5", "official", 64, seed)


def _write(variant: Variant, path: Path, seed: int) -> Path:
    backbone = random_backbone(variant, seed)
    checkpoint = Checkpoint(variant, InMemory(backbone.state_dict()))
    return write(checkpoint, Output(path, "official", shard_bytes=SHARD_BYTES))


def random_backbone(variant: Variant, seed: int) -> nn.Module:
    """A network whose output layer is not zero, so that its weights and LoRAs have an effect."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(seed, f"tiny/{variant.name}").initial_seed())
        backbone = BACKBONES[variant.family](**variant.arguments)
        for parameter in backbone.parameters():
            if parameter.numel() > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    return backbone
