"""LoRA files of every format that is in use -> an Adapter. Strict: a key that is not understood is
an error, never skipped.

Facts about the formats: the projects' own loaders; docs/weights.md has the table.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pusa.weights.adapters import PARTS, Adapter, Target
from pusa.weights.lazy import FLOAT8, Tensors, WeightsError, open_tensors
from pusa.weights.lora_names import (
    Part,
    from_kohya,
    fuse,
    is_mochi,
    official_part,
)

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
    scales = _Alphas(path, config, tensors.metadata, prefix)
    matches = {key: _KEY.fullmatch(key.removeprefix(prefix)) for key in keys}
    names = {match["name"] for match in matches.values() if match}
    if len(names - {None}) > 1:
        shown = ", ".join(sorted(name for name in names if name))
        raise WeightsError(f"{path}: holds several adapters ({shown}); save one to a file.")
    found: dict[str, dict[str, Tensor]] = {}
    for key, match in matches.items():
        if match is None:
            raise WeightsError(_not_understood(path, key))
        slots, slot = found.setdefault(match["module"], {}), _slot(match)
        if slot in slots:
            raise WeightsError(f"{path}: {key} is in the file twice, spelled differently.")
        slots[slot] = tensors[key]
    places = _places(path, prefix, found)
    targets = {m: _target(path, slots, m, scales) for m, slots in found.items()}
    fused = _official(path, places, targets)
    if not fused:
        raise WeightsError(f"{path}: no LoRA in it (it has {', '.join(list(tensors)[:3])}).")
    return Adapter(
        fused,
        expert=_expert(tensors, prefix, expert),
        recipe=_recipe(tensors.metadata),
        source=str(path),
        format=_format_name(prefix, found, fused),
        noise_range=_noise_range(tensors.metadata),
    )


def _expert(tensors: Tensors, prefix: str, asked: str | None) -> str | None:
    """What the file says: by holding both networks, by its prefix, or in our metadata."""
    both = all(any(k.startswith(p) for k in tensors) for p in ("transformer.", "transformer_2."))
    return asked if both else PREFIXES.get(prefix) or tensors.metadata.get("pusa.expert") or None


def _noise_range(metadata: Mapping[str, str]) -> tuple[float, float] | None:
    """The sigmas it was trained at, if the file says so."""
    try:
        low, high = json.loads(metadata.get("pusa.noise_range", ""))
        return float(low), float(high)
    except (ValueError, TypeError):
        return None


def _recipe(metadata: Mapping[str, str]) -> dict:
    """What made it; {} in files that are not ours, whose metadata may be anything."""
    try:
        recipe = json.loads(metadata["recipe"]) if "pusa.format" in metadata else {}
    except (ValueError, KeyError):
        return {}
    return recipe if isinstance(recipe, dict) else {}


def _open(path: Path) -> tuple[Tensors, dict]:
    """The tensors and, for PEFT, the adapter's configuration."""
    config_file = (path if path.is_dir() else path.parent) / PEFT_CONFIG
    if path.is_dir():
        if not config_file.is_file():
            raise WeightsError(f"{path}: a folder without {PEFT_CONFIG}; give the LoRA's file.")
        old = path / "adapter_model.bin"
        tensors = open_tensors(old if old.is_file() else path / PEFT_FILE)
    else:
        tensors = open_tensors(path)
        if not config_file.is_file() or not any(k.startswith("base_model.") for k in tensors):
            return tensors, {}
    return tensors, _json_object(config_file, config_file.read_text())


def _json_object(where: object, text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise WeightsError(f"{where}: is not JSON ({error}); export the LoRA again.") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{where}: is no JSON object; export the LoRA again.")
    return value


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
        others = set(tensors) - {*low, *high}
        if others:
            raise WeightsError(_not_understood(Path(tensors.source), min(others)))
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


def _target(path: Path, slots: Mapping[str, Tensor], module: str, alphas: "_Alphas") -> Target:
    """One module's factors, checked. WeightsError if they are not whole."""
    if "A.bias" in slots:
        raise WeightsError(f"{path}: {module}.lora_A.bias has no meaning here; export without it.")
    a, b = (_factor(path, f"{module}: {name}", slots.get(name)) for name in "AB")
    if (a is None) != (b is None):
        missing = "A" if a is None else "B"
        raise WeightsError(f"{path}: {module} misses its {missing}; the file is not whole.")
    diffs = {part: _floats(path, f"{module}.{slot}", slots[slot])
             for slot, part in PARTS.items() if slot in slots}  # fmt: skip
    alpha = _alpha(path, module, slots, None if a is None else alphas.of(module, a.shape[0]))
    if a is None and not diffs:
        raise WeightsError(f"{path}: {module} has an alpha alone, without A and B; no LoRA in it.")
    if a is not None and b is not None and a.shape[0] != b.shape[1]:
        raise WeightsError(
            f"{path}: {module} has A {tuple(a.shape)} and B {tuple(b.shape)}, which do not fit "
            "together; the file is damaged."
        )
    target = Target(a, b, alpha, diffs)
    if "B.bias" in slots:  # diffusers' lora_bias: scaled with the update, added to the bias
        diffs["bias"] = target.scale * _floats(path, f"{module}.lora_B.bias", slots["B.bias"])
    return target


def _alpha(
    path: Path, module: str, slots: Mapping[str, Tensor], default: float | None
) -> float | None:
    if "alpha" not in slots:
        return default
    if slots["alpha"].numel() != 1 or not torch.isfinite(slots["alpha"].float()).all():
        raise WeightsError(f"{path}: {module}.alpha is no number; export the LoRA again.")
    return float(slots["alpha"])


def _factor(path: Path, name: str, tensor: Tensor | None) -> Tensor | None:
    """(rank, in) or (out, rank); 1x1 convolutions' trailing sides of 1 are taken off."""
    if tensor is None:
        return None
    if tensor.ndim > 2 and all(side == 1 for side in tensor.shape[2:]):
        tensor = tensor.flatten(1)
    if tensor.ndim != 2:
        raise WeightsError(
            f"{path}: {name} is {tuple(tensor.shape)}; LoRAs of convolutions are not read."
        )
    return _floats(path, name, tensor)


def _floats(path: Path, name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise WeightsError(f"{path}: {name} is {tensor.dtype}; quantized LoRAs are not read.")
    return tensor.float() if tensor.dtype in FLOAT8 else tensor


def _places(path: Path, prefix: str, modules: Iterable[str]) -> dict[str, Part]:
    """Where each module of the file stands in the official network."""
    spelled = {n: from_kohya(n) if prefix == KOHYA_PREFIX else n for n in modules}
    mochi = is_mochi(module for module in spelled.values() if module is not None)
    places = {}
    for name, module in spelled.items():
        place = official_part(module, mochi) if module is not None else None
        if place is None:
            raise WeightsError(
                f"{path}: {prefix}{name} is no module of a Wan or Mochi transformer; "
                "it is a LoRA for another model."
            )
        places[name] = place
    return places


def _official(
    path: Path, places: Mapping[str, Part], targets: Mapping[str, Target]
) -> dict[str, Target]:
    """Targets under official names, the parts of fused modules put together."""
    parts: dict[str, dict[int, Target]] = {}
    for name, place in places.items():
        given = parts.setdefault(place.module, {})
        if place.index in given:
            raise WeightsError(f"{path}: {name} is in the file twice, spelled differently.")
        given[place.index] = targets[name]
    shapes = {place.module: (place.count, place.swapped) for place in places.values()}
    return {module: fuse(module, given, *shapes[module]) for module, given in parts.items()}


def _not_understood(path: Path, key: str) -> str:
    for mark, kind in _FOREIGN.items():
        if mark in key:
            return f"{path}: {key} belongs to {kind}, which is not read; use a plain LoRA."
    return (
        f"{path}: {key} is not a key of any LoRA format that is read "
        f"({', '.join(FORMATS)}, DiffSynth, LightX2V); is the file a LoRA?"
    )


def _format_name(prefix: str, found: Mapping[str, Mapping], fused: Mapping) -> str:
    if any(slot.startswith("diff") for slots in found.values() for slot in slots):
        return "lightx2v"
    if prefix.startswith("base_model."):
        return "peft"
    if prefix == KOHYA_PREFIX:
        return "kohya"
    if prefix.startswith("transformer") or (not prefix and not found.keys() & fused.keys()):
        return "diffusers"
    return "comfy" if prefix else "pusa"


class _Alphas:
    """Alpha by module where it stands in a configuration instead of a tensor."""

    def __init__(self, path: Path, config: Mapping, metadata: Mapping[str, str], prefix: str):
        if not config and "lora_adapter_metadata" in metadata:  # diffusers' own
            network = prefix if prefix.startswith("transformer") else ""
            where = f"{path}: lora_adapter_metadata"
            every = _json_object(where, metadata["lora_adapter_metadata"])
            config = {k.removeprefix(network): v for k, v in every.items() if k.startswith(network)}
        if config.get("use_dora"):
            raise WeightsError(f"{path}: use_dora is on in its configuration; DoRA is not read.")
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
