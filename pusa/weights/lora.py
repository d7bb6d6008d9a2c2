"""LoRA on a backbone: inject, export, load, strength. The only importer of peft."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from pusa.weights.files import WeightsError, read_metadata, read_tensors, write_tensors

PREFIX = "diffusion_model."  # the prefix ComfyUI and diffusers recognise
VTA_TARGETS = (
    "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o",
    "cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.o", "ffn.0", "ffn.2",
)  # fmt: skip


@dataclass(frozen=True)
class LoRA:
    """rank, alpha (trained scale = alpha / rank) and target modules, matched as name endings."""

    rank: int = 512
    alpha: float = 512.0
    targets: tuple[str, ...] = VTA_TARGETS
    dropout: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.rank < 1:
            raise ValueError(f"lora.rank must be at least 1, got {self.rank}.")
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha must be positive, got {self.alpha}.")
        if not self.targets:
            raise ValueError("lora.targets is empty; name module endings such as self_attn.q.")


@dataclass(frozen=True)
class Match:
    """One row of the table of what a target pattern hit."""

    target: str
    num_modules: int
    num_parameters: int


def match_targets(model: nn.Module, lora: LoRA) -> dict[str, list[str]]:
    """Linear modules by target pattern; ValueError if a pattern hits none."""
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    matched = {
        target: [name for name in linears if name == target or name.endswith(f".{target}")]
        for target in lora.targets
    }
    for target, names in matched.items():
        if not names:
            endings = sorted({".".join(name.split(".")[-2:]) for name in linears})
            raise ValueError(
                f"lora.targets: {target!r} matches no linear layer of this model; "
                f"it has {', '.join(endings[:12])}."
            )
    return matched


def inject_lora(model: nn.Module, lora: LoRA, adapter: str = "default") -> list[Match]:
    """Freeze the model and add a trainable adapter, an exact no-op until it is trained.

    Adapter weights are float32. Returns the table of what was matched.
    """
    matched = match_targets(model, lora)
    model.requires_grad_(False)
    names = [name for group in matched.values() for name in group]
    linears = {name: cast(nn.Linear, model.get_submodule(name)) for name in names}
    sizes = {name: sum(linear.weight.shape) * lora.rank for name, linear in linears.items()}
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=cast(int, lora.alpha),
        target_modules=names,
        lora_dropout=lora.dropout,
    )  # fmt: skip
    inject_adapter_in_model(config, model, adapter_name=adapter)
    for name, parameter in model.named_parameters():
        if ".lora_" in name and f".{adapter}." in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return [Match(t, len(hit), sum(sizes[name] for name in hit)) for t, hit in matched.items()]


def lora_layers(model: nn.Module, adapter: str = "default") -> dict[str, LoraLayer]:
    """Adapted modules by their name in the official checkpoint."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and adapter in module.lora_A
    }


def write_lora(
    model: nn.Module, path: str | Path, recipe: Mapping, adapter: str = "default"
) -> Path:
    """Export an adapter as `diffusion_model.<module>.lora_{A,B}.weight` and `.alpha`.

    recipe: what made it (JSON-able), kept in the file's metadata under "recipe". WeightsError if
    a tensor is not finite.
    """
    tensors: dict[str, Tensor] = {}
    for name, layer in lora_layers(model, adapter).items():
        for part, weights in (("A", layer.lora_A), ("B", layer.lora_B)):
            tensors[f"{PREFIX}{name}.lora_{part}.weight"] = cast(Tensor, weights[adapter].weight)
        tensors[f"{PREFIX}{name}.alpha"] = torch.tensor(float(layer.lora_alpha[adapter]))
        if not all(torch.isfinite(tensors[f"{PREFIX}{name}.lora_{p}.weight"]).all() for p in "AB"):
            raise WeightsError(f"{path}: {name} holds NaN or infinity; the training diverged.")
    if not tensors:
        raise WeightsError(f"{path}: the model has no adapter {adapter!r} to write.")
    metadata = {"pusa.format": "lora", "recipe": json.dumps(dict(recipe), default=str)}
    return write_tensors(path, tensors, metadata)


def load_lora(
    model: nn.Module, path: str | Path, strength: float = 1.0, adapter: str = "default"
) -> dict:
    """Add the adapter of a file that `write_lora` made; every key must find its module.

    Effective update: strength * alpha / rank * B @ A. Returns the recipe of the file.
    WeightsError if a module is missing, a shape differs or B is zero everywhere.
    """
    tensors = read_tensors(path)
    suffix = ".lora_A.weight"
    names = [
        key[len(PREFIX) : -len(suffix)]
        for key in tensors
        if key.startswith(PREFIX) and key.endswith(suffix)
    ]
    if not names:
        keys = ", ".join(list(tensors)[:3])
        raise WeightsError(f"{path}: no {PREFIX}*{suffix} in it (it has {keys}); not our LoRA.")
    parts = (".lora_A.weight", ".lora_B.weight", ".alpha")
    unknown = tensors.keys() - {f"{PREFIX}{name}{part}" for name in names for part in parts}
    if unknown:
        raise WeightsError(
            f"{path}: {min(unknown)} has no place in a LoRA of ours; nothing is loaded."
        )
    modules = dict(model.named_modules())
    for name in names:
        _check_module(path, name, modules.get(name), tensors)
    if not any(tensors[f"{PREFIX}{name}.lora_B.weight"].any() for name in names):
        raise WeightsError(f"{path}: every lora_B is zero, it would change nothing; train it.")
    scales = {name: _rank_and_alpha(tensors, name) for name in names}
    if len(set(scales.values())) > 1:
        raise WeightsError(f"{path}: its modules differ in rank or alpha, which is not read yet.")
    rank, alpha = scales[names[0]]
    config = LoraConfig(r=rank, lora_alpha=cast(int, alpha), target_modules=names)
    inject_adapter_in_model(config, model, adapter_name=adapter)
    for name, layer in lora_layers(model, adapter).items():
        for part, weights in (("A", layer.lora_A), ("B", layer.lora_B)):
            value = tensors[f"{PREFIX}{name}.lora_{part}.weight"]
            weights[adapter].weight.data = value.to(layer.weight.device, torch.float32)
    model.requires_grad_(False)
    set_strength(model, strength, adapter)
    return json.loads(read_metadata(path).get("recipe", "{}"))


def _rank_and_alpha(tensors: Mapping[str, Tensor], name: str) -> tuple[int, float]:
    """Alpha equals the rank where a file has none, as in the first Pusa files."""
    rank = tensors[f"{PREFIX}{name}.lora_A.weight"].shape[0]
    return rank, float(tensors.get(f"{PREFIX}{name}.alpha", rank))


def _check_module(path, name: str, module: nn.Module | None, tensors: Mapping[str, Tensor]) -> None:
    if not isinstance(module, nn.Linear):
        raise WeightsError(
            f"{path}: the model has no linear layer {name}; is it for another model?"
        )
    keys = [f"{PREFIX}{name}.lora_{part}.weight" for part in "AB"]
    if keys[1] not in tensors:
        raise WeightsError(f"{path}: misses {keys[1]}; the file is not whole.")
    a, b = (tensors[key] for key in keys)
    if (b.shape[0], a.shape[1]) != module.weight.shape or a.shape[0] != b.shape[1]:
        raise WeightsError(
            f"{path}: {name} has A {tuple(a.shape)} and B {tuple(b.shape)}, the layer is "
            f"{tuple(module.weight.shape)}; it is a LoRA for another model."
        )


def set_strength(model: nn.Module, strength: float, adapter: str = "default") -> None:
    """Scale the adapter's trained update by `strength`; 1 is as trained, 0 is the base model."""
    if not math.isfinite(strength):
        raise ValueError(f"LoRA strength must be a finite number, got {strength}.")
    for layer in lora_layers(model, adapter).values():
        layer.scaling[adapter] = strength * layer.lora_alpha[adapter] / layer.r[adapter]


def format_matches(matches: Sequence[Match]) -> str:
    """The table that training prints."""
    width = max(len("target"), *(len(match.target) for match in matches))
    lines = [f"{'target':<{width}}  modules  parameters"]
    lines += [
        f"{match.target:<{width}}  {match.num_modules:7d}  {match.num_parameters:10,d}"
        for match in matches
    ]
    modules, parameters = (
        sum(getattr(m, f"num_{x}") for m in matches) for x in ("modules", "parameters")
    )
    return "\n".join([*lines, f"{'total':<{width}}  {modules:7d}  {parameters:10,d}"])
