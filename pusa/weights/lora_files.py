"""LoRA files: every format that is in use -> an Adapter, and an Adapter -> the formats that others
load. Strict: a key that is not understood is an error, never skipped.

Facts about the formats: the projects' own loaders; docs/weights.md has the table.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pusa.atomic import replacing, write_json
from pusa.weights.adapters import PARTS, Adapter, Target
from pusa.weights.lazy import SafetensorsFiles, Tensors, WeightsError, open_tensors
from pusa.weights.lora_names import (
    from_kohya,
    fuse,
    is_mochi,
    official_part,
    split,
    to_kohya,
)
from pusa.weights.writing import write_tensors

log = logging.getLogger(__name__)
FORMATS = ("comfy", "diffusers", "kohya", "peft", "pusa")
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
KOHYA_PREFIX = "lora_unet_"
# Longest first, with the expert that a prefix tells (transformer_2 is diffusers' low-noise one).
PREFIXES = {
    "base_model.model.diffusion_model.": None, "base_model.model.": None,
    "model.diffusion_model.": None, "diffusion_model.": None, "pipe.dit.": None,
    "transformer_2.": "low", "transformer.": None, KOHYA_PREFIX: None,
}  # fmt: skip
_KEY = re.compile(
    r"(?P<module>.+?)\.(?:(?:lora_(?P<ab>A|B)(?:\.(?P<name>(?!weight$|bias$)[^.]+))?"
    r"|lora[._](?P<du>down|up))\.(?P<part>weight|bias)|(?P<alpha>alpha)|(?P<diff>diff(?:_[bm])?))"
)
_FOREIGN = {
    "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "lokr_": "LoKr", "hada_": "LoHa",
    "oft_": "OFT", "lora_te": "a text encoder LoRA", "text_encoder": "a text encoder LoRA",
}  # fmt: skip


def read_lora(path: str | Path, expert: str | None = None) -> Adapter:
    """Read a LoRA of any format: PEFT, Pusa, DiffSynth, diffusers, ComfyUI, Kohya, LightX2V.

    path: a file, or a PEFT folder. expert: which network's LoRA to take ("high" or "low") from a
    diffusers file that holds both. adapter[module] has A, B, alpha, diffs in official names;
    scale = alpha / rank, 1 where the file has no alpha. WeightsError for a key that is not
    understood, or a file that is missing, damaged or no LoRA.
    """
    path = Path(path)
    tensors, config = _open(path)
    prefix, keys = _one_network(tensors, expert)
    scales = _Alphas(config, tensors.metadata, prefix)
    found: dict[str, dict[str, Any]] = {}
    names = set()
    for key in keys:
        match = _KEY.fullmatch(key.removeprefix(prefix))
        if match is None:
            raise WeightsError(_not_understood(path, key))
        names.add(match["name"])
        found.setdefault(match["module"], {})[_slot(match)] = tensors[key]
    if len(names - {None}) > 1:
        shown = ", ".join(sorted(name for name in names if name))
        raise WeightsError(f"{path}: holds several adapters ({shown}); save one to a file.")
    fused = _official(path, prefix, {m: _target(s, m, scales) for m, s in found.items()})
    if not any(target.A is not None or target.diffs for target in fused.values()):
        raise WeightsError(f"{path}: no LoRA in it (it has {', '.join(list(tensors)[:3])}).")
    metadata = tensors.metadata
    return Adapter(
        fused,
        expert=PREFIXES.get(prefix) or metadata.get("pusa.expert") or None,
        recipe=json.loads(metadata.get("recipe", "{}")),
        source=str(path),
        format=_format_name(prefix, found, names),
    )


def _open(path: Path) -> tuple[Tensors, dict]:
    """The tensors and, for PEFT, the adapter's configuration."""
    config_file = (path if path.is_dir() else path.parent) / PEFT_CONFIG
    if path.is_dir():
        if not config_file.is_file():
            raise WeightsError(f"{path}: a folder without {PEFT_CONFIG}; give the LoRA's file.")
        tensors: Tensors = SafetensorsFiles([path / PEFT_FILE])
    else:
        tensors = open_tensors(path)
        if path.name != PEFT_FILE or not config_file.is_file():
            return tensors, json.loads(tensors.metadata.get("adapter_config", "{}"))
    try:
        return tensors, json.loads(config_file.read_text())
    except ValueError as error:
        raise WeightsError(f"{config_file}: not readable ({error}).") from error


def _one_network(tensors: Tensors, expert: str | None) -> tuple[str, list[str]]:
    """The prefix and the keys of the network that is meant."""
    if expert not in (None, "high", "low"):
        raise ValueError(f"expert={expert!r} is unknown; use high or low.")
    low = [key for key in tensors if key.startswith("transformer_2.")]
    high = [key for key in tensors if key.startswith("transformer.")]
    if low and high:
        if expert is None:
            raise WeightsError(
                f"{tensors.source}: holds LoRAs of both experts; choose expert=high or expert=low."
            )
        return ("transformer_2.", low) if expert == "low" else ("transformer.", high)
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in tensors):
            return prefix, list(tensors)
    return "", list(tensors)


def _slot(match: re.Match) -> str:
    if match["alpha"] or match["diff"]:
        return match["alpha"] or match["diff"]
    letter = match["ab"] or {"down": "A", "up": "B"}[match["du"]]
    return letter if match["part"] == "weight" else f"{letter}.bias"


def _target(slots: Mapping[str, Tensor], module: str, alphas: "_Alphas") -> Target:
    alpha = float(slots["alpha"]) if "alpha" in slots else None
    if alpha is None and "A" in slots:
        alpha = alphas.of(module, slots["A"].shape[0])
    diffs = {part: slots[slot] for slot, part in PARTS.items() if slot in slots}
    target = Target(slots.get("A"), slots.get("B"), alpha, diffs)
    if "A.bias" in slots:
        raise WeightsError(f"{module}: lora_A.bias has no meaning here; export without it.")
    if "B.bias" in slots:  # diffusers' lora_bias: scaled with the update, added to the bias
        diffs["bias"] = target.scale * slots["B.bias"]
    return target


def _official(path: Path, prefix: str, targets: Mapping[str, Target]) -> dict[str, Target]:
    """Targets under official names, the parts of fused modules put together."""
    parts: dict[str, dict[int, Target]] = {}
    shapes: dict[str, tuple[int, bool]] = {}
    spelled = {n: from_kohya(n) if prefix == KOHYA_PREFIX else n for n in targets}
    mochi = is_mochi(module for module in spelled.values() if module is not None)
    for name, target in targets.items():
        module = spelled[name]
        place = official_part(module, mochi) if module is not None else None
        if place is None:
            raise WeightsError(
                f"{path}: {prefix}{name} is no module of a Wan or Mochi transformer; "
                "it is a LoRA for another model."
            )
        parts.setdefault(place.module, {})[place.index] = target
        shapes[place.module] = (place.count, place.swapped)
    return {module: fuse(module, given, *shapes[module]) for module, given in parts.items()}


def _not_understood(path: Path, key: str) -> str:
    for mark, kind in _FOREIGN.items():
        if mark in key:
            return f"{path}: {key} belongs to {kind}, which is not read; use a plain LoRA."
    return (
        f"{path}: {key} is not a key of any LoRA format that is read "
        f"({', '.join(FORMATS)}, DiffSynth, LightX2V); is the file a LoRA?"
    )


def _format_name(prefix: str, found: Mapping[str, Mapping], names: Iterable) -> str:
    if any(slot.startswith("diff") for slots in found.values() for slot in slots):
        return "lightx2v"
    if prefix.startswith("base_model."):
        return "peft"
    if prefix == KOHYA_PREFIX:
        return "kohya"
    if prefix.startswith("transformer"):
        return "diffusers"
    return "comfy" if prefix else "pusa"


class _Alphas:
    """Alpha by module where it stands in a configuration instead of a tensor."""

    def __init__(self, config: Mapping, metadata: Mapping[str, str], prefix: str):
        if not config and "lora_adapter_metadata" in metadata:  # diffusers' own
            network = prefix if prefix.startswith("transformer") else ""
            every = json.loads(metadata["lora_adapter_metadata"])
            config = {k.removeprefix(network): v for k, v in every.items() if k.startswith(network)}
        if config.get("use_dora"):
            raise WeightsError("use_dora is on in its configuration; DoRA is not read.")
        self.config = config

    def of(self, module: str, rank: int) -> float | None:
        if self.config.get("lora_alpha") is None:
            return None
        alpha = self._pattern("alpha_pattern", module, self.config["lora_alpha"])
        return alpha * rank**0.5 if self.config.get("use_rslora") else float(alpha)

    def _pattern(self, name: str, module: str, default: float) -> float:
        for key, value in (self.config.get(name) or {}).items():
            if re.fullmatch(rf"(.*\.)?({key})", module):
                return value
        return default


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
    if format == "peft":
        return _write_peft(adapter, path, metadata)
    tensors = _WRITERS[format](adapter, path)
    if path.suffix in (".pt", ".pth"):
        if format != "pusa":
            raise ValueError(f"{path}: {format} is written as .safetensors; only pusa has .pt.")
        with replacing(path) as partial:
            torch.save(tensors, partial)
        return path
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: the name of a {format} LoRA must end in .safetensors.")
    return write_tensors(path, tensors, metadata)


def _comfy(adapter: Adapter, path: Path) -> dict[str, Tensor]:
    return _with_alpha(adapter, lambda m: f"diffusion_model.{m}", ("lora_A", "lora_B"))


def _kohya(adapter: Adapter, path: Path) -> dict[str, Tensor]:
    return _with_alpha(adapter, lambda m: KOHYA_PREFIX + to_kohya(m), ("lora_down", "lora_up"))


def _with_alpha(adapter: Adapter, spell, letters: tuple[str, str]) -> dict[str, Tensor]:
    tensors = {}
    for module, target in adapter.items():
        name = spell(module)
        if target.A is not None and target.B is not None:
            tensors[f"{name}.{letters[0]}.weight"] = target.A
            tensors[f"{name}.{letters[1]}.weight"] = target.B
            # Written also where the scale is 1: some loaders take 1 for alpha when it is absent.
            alpha = target.rank if target.alpha is None else target.alpha
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
    tensors: dict[str, Tensor] = {}
    ranks, alphas = {}, {}
    for module, target in adapter.items():
        if target.diffs or target.A is None or target.B is None:
            raise WeightsError(f"{path}: peft has no place for what this LoRA adds to {module}.")
        for letter, tensor in (("A", target.A), ("B", target.B)):
            tensors[f"base_model.model.{module}.lora_{letter}.weight"] = tensor
        ranks[module] = target.rank
        alphas[module] = float(target.rank if target.alpha is None else target.alpha)
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": sorted(ranks),
        "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
        "rank_pattern": {re.escape(m): r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(m): a for m, a in alphas.items() if a != alpha},
    }  # fmt: skip
    if path.suffix == ".safetensors" and path.name != PEFT_FILE:
        return write_tensors(path, tensors, metadata | {"adapter_config": json.dumps(config)})
    folder = path.parent if path.name == PEFT_FILE else path
    write_json(folder / PEFT_CONFIG, config)
    write_tensors(folder / PEFT_FILE, tensors, metadata)
    return path
