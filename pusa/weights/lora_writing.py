"""An Adapter -> the LoRA formats that others load; what a format has no place for is an error."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pusa.atomic import replacing, write_json
from pusa.weights.adapters import PARTS, Adapter, Target
from pusa.weights.lazy import WeightsError
from pusa.weights.lora_files import FORMATS, KOHYA_PREFIX, PEFT_CONFIG, PEFT_FILE
from pusa.weights.lora_names import split, to_kohya
from pusa.weights.writing import write_tensors


def write_lora(adapter: Adapter, path: str | Path, format: str = "comfy") -> Path:
    """Write an adapter; returns the path.

    format: "comfy" (diffusion_model.*, lora_A/lora_B/alpha, what ComfyUI and diffusers load),
    "diffusers" (transformer.*, transformer_2.* for the low-noise expert), "kohya" (lora_unet_*),
    "peft" (a folder with adapter_config.json, or one file that carries the configuration) or "pusa"
    (the first release's names; also as .pt). Formats without alpha get the scale multiplied into B.
    WeightsError if the format cannot hold the update, or a value is not finite.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown; use one of {', '.join(FORMATS)}.")
    for module, target in adapter.items():
        for tensor in (target.A, target.B, *target.diffs.values()):
            if tensor is not None and not torch.isfinite(tensor).all():
                raise WeightsError(
                    f"{path}: {module} holds NaN or infinity; the training diverged."
                )
    if not adapter:
        raise WeightsError(f"{path}: the adapter is empty, there is nothing to write.")
    metadata = {"pusa.format": "lora", "recipe": json.dumps(dict(adapter.recipe), default=str)}
    if adapter.expert:
        metadata["pusa.expert"] = adapter.expert
    if adapter.noise_range:
        metadata["pusa.noise_range"] = json.dumps(adapter.noise_range)
    if format == "peft":
        return _write_peft(adapter, path, metadata)
    tensors = _WRITERS[format](adapter, path)
    _check_finite(path, tensors)
    if path.suffix in (".pt", ".pth"):
        if format != "pusa":
            raise ValueError(f"{path}: {format} is written as .safetensors; only pusa has .pt.")
        with replacing(path) as partial:
            torch.save(tensors, partial)
        return path
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: the name of a {format} LoRA must end in .safetensors.")
    return write_tensors(path, tensors, metadata)


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(
                f"{path}: {key} holds NaN or infinity; the training diverged, or alpha does not "
                "fit into its dtype."
            )


def _comfy(adapter: Adapter, path: Path) -> dict[str, Tensor]:
    return _with_alpha(adapter, lambda m: f"diffusion_model.{m}", ("lora_A", "lora_B"))


def _kohya(adapter: Adapter, path: Path) -> dict[str, Tensor]:
    return _with_alpha(adapter, lambda m: KOHYA_PREFIX + to_kohya(m), ("lora_down", "lora_up"))


def _with_alpha(adapter: Adapter, spell, letters: tuple[str, str]) -> dict[str, Tensor]:
    tensors = {}
    for module, target in adapter.items():
        name = spell(module)
        inside = module.startswith("blocks.")
        target = target if inside else target.baked()  # diffusers knows alpha in blocks alone
        if target.A is not None and target.B is not None:
            tensors[f"{name}.{letters[0]}.weight"] = target.A
            tensors[f"{name}.{letters[1]}.weight"] = target.B
            # Written also where the scale is 1: some loaders take 1 for alpha when it is absent.
            alpha = target.rank if target.alpha is None else target.alpha
            if inside:
                tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
        for slot, part in PARTS.items():
            if part in target.diffs:
                tensors[f"{name}.{slot}"] = target.diffs[part]
    return tensors


def _pusa(adapter: Adapter, path: Path) -> dict[str, Tensor]:
    tensors = {}
    for module, target in _only_factors(adapter, path, "pusa"):
        for letter, tensor in (("A", target.A), ("B", target.B)):
            tensors[f"{module}.lora_{letter}.default.weight"] = tensor
    return tensors


def _diffusers(adapter: Adapter, path: Path) -> dict[str, Tensor]:
    prefix = "transformer_2." if adapter.expert == "low" else "transformer."
    biased = any("bias" in target.diffs for target in adapter.values())
    tensors = {}
    for name, part in split(adapter):
        part = part.baked()
        foreign = part.diffs.keys() - {"bias"}
        if foreign or part.A is None or part.B is None:
            raise WeightsError(
                f"{path}: diffusers has no place for what this LoRA does to {name} "
                f"({', '.join(sorted(foreign)) or 'a bias alone'}); merge it, or write comfy."
            )
        tensors[f"{prefix}{name}.lora_A.weight"] = part.A
        tensors[f"{prefix}{name}.lora_B.weight"] = part.B
        if biased:  # peft has the bias on all modules or on none
            zero = torch.zeros(part.B.shape[0], dtype=part.B.dtype)
            tensors[f"{prefix}{name}.lora_B.bias"] = part.diffs.get("bias", zero)
    return tensors


_WRITERS = {"comfy": _comfy, "kohya": _kohya, "pusa": _pusa, "diffusers": _diffusers}


def _only_factors(adapter: Adapter, path: Path, format: str) -> Iterable[tuple[str, Target]]:
    for module, target in adapter.items():
        if target.diffs or target.A is None:
            raise WeightsError(
                f"{path}: {format} has no place for what this LoRA adds to {module} outright; "
                "merge it, or write comfy or kohya."
            )
        yield module, target.baked()


def _write_peft(adapter: Adapter, path: Path, metadata: dict[str, str]) -> Path:
    """A folder, or its adapter_model.safetensors; one file of another name has no configuration
    beside it, so that there the scale goes into B."""
    alone = path.suffix == ".safetensors" and path.name != PEFT_FILE
    if path.suffix and not alone and path.name != PEFT_FILE:
        raise ValueError(f"{path}: a PEFT LoRA is a folder, or a .safetensors file.")
    tensors: dict[str, Tensor] = {}
    ranks, alphas = {}, {}
    for module, target in adapter.items():
        target = target.baked() if alone else target
        if target.diffs or target.A is None or target.B is None:
            raise WeightsError(f"{path}: peft has no place for what this LoRA adds to {module}.")
        for letter, tensor in (("A", target.A), ("B", target.B)):
            tensors[f"base_model.model.{module}.lora_{letter}.weight"] = tensor
        ranks[module] = target.rank
        alphas[module] = float(target.rank if target.alpha is None else target.alpha)
    _check_finite(path, tensors)
    if alone:
        return write_tensors(path, tensors, metadata)
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": sorted(ranks),
        "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
        "rank_pattern": {re.escape(m): r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(m): a for m, a in alphas.items() if a != alpha},
    }  # fmt: skip
    folder = path.parent if path.name == PEFT_FILE else path
    write_json(folder / PEFT_CONFIG, config)
    write_tensors(folder / PEFT_FILE, tensors, metadata)
    return path
