"""Reading checkpoints of backbones: any layout, strict, memory-mapped, whole or not at all."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pusa.models.stored import store_layers, stored_layers
from pusa.models.variants import VARIANTS, Variant, detect
from pusa.weights.adapters import Adapter, check_usable
from pusa.weights.layouts import to_official
from pusa.weights.lazy import (
    SafetensorsFiles,
    Tensors,
    WeightsError,
    in_turn,
    num_bytes,
    open_tensors,
)
from pusa.weights.updates import packed, rounded, updates_of
from pusa.weights.writing import write_tensors

__all__ = ["Checkpoint", "WeightsError", "check_fit", "find_experts", "load_weights",
           "read_checkpoint", "read_metadata", "read_tensors", "write_tensors"]  # fmt: skip
log = logging.getLogger(__name__)
EXPERT_FOLDERS = {  # the two networks of a Wan2.2 A14B, official and diffusers
    "high": ("high_noise_model", "transformer"),
    "low": ("low_noise_model", "transformer_2"),
}


class Checkpoint(NamedTuple):
    """A backbone's file: what it is, and its tensors in official names, still on disk."""

    variant: Variant
    tensors: Tensors

    @property
    def layout(self) -> str:
        """What the file's names are: "official", "diffusers" or "comfy"."""
        return self.tensors.layout


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Open a backbone's checkpoint and check it whole, without reading any weight.

    path: a file (safetensors, or a torch pickle without code), an index.json, a folder of shards,
    or a diffusers pipeline's folder. Layout and variant are told from tensor names and shapes.
    WeightsError naming the first keys that are missing, unknown or of a wrong shape, a missing or
    truncated shard, or the two folders of a two-expert model.
    """
    official = to_official(open_checkpoint_files(path))
    specs = official.specs()
    try:
        variant = detect(specs)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    if variant.name not in VARIANTS:
        log.warning("%s: %s; is a part of the file missing?", path, variant.name)
    expected = variant.build().state_dict()
    check_fit(expected, specs, path, str(variant))
    for key, spec in specs.items():
        if not spec.is_floating_point():
            raise WeightsError(
                f"{path}: {key} is {spec.dtype}; weights are floating-point numbers."
            )
    return Checkpoint(variant, official)


def open_checkpoint_files(path: str | Path) -> Tensors:
    """The tensors of a file or folder under whatever names they have."""
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if path.name.endswith(".index.json"):
        return _open_index(path)
    return open_tensors(path)


def find_experts(path: str | Path) -> dict[str, Path]:
    """{"high": folder, "low": folder} of a two-expert model's root, {} for anything else."""
    found = {
        expert: Path(path) / name
        for expert, names in EXPERT_FOLDERS.items()
        for name in names
        if (Path(path) / name).is_dir()
    }
    return found if len(found) == 2 else {}


def expert_of(path: str | Path) -> str | None:
    """Which expert a checkpoint is, if it lies beside the other one as official or diffusers
    folders do."""
    folder = Path(path).resolve()
    folder = folder.parent if folder.is_file() else folder
    for expert, place in find_experts(folder.parent).items():
        if place.name == folder.name:
            return expert
    return None


def _open_folder(path: Path) -> Tensors:
    indices = sorted(path.glob("*.safetensors.index.json"))
    if len(indices) == 1:
        return _open_index(indices[0])
    files = sorted(path.glob("*.safetensors"))
    if (path / "dit.safetensors").is_file():  # Mochi's, beside its VAE
        return SafetensorsFiles([path / "dit.safetensors"])
    if len(files) == 1 and not indices:
        return SafetensorsFiles(files, path)
    experts = find_experts(path)
    if experts:
        raise WeightsError(
            f"{path}: holds two experts; name one, {experts['high']} or {experts['low']}."
        )
    if (path / "transformer").is_dir() and not files:
        return _open_folder(path / "transformer")
    if not files:
        raise WeightsError(
            f"{path}: no .safetensors files in it; give the folder (or file) with the transformer."
        )
    names = ", ".join(file.name for file in files[:3])
    raise WeightsError(
        f"{path}: {len(files)} .safetensors files and {len(indices)} indices ({names}, ...); "
        "name the file, or the index.json, that is meant."
    )


def _open_index(path: Path) -> Tensors:
    try:
        places: dict[str, str] = json.loads(path.read_text())["weight_map"]
        names = list(dict.fromkeys(places.values()))
        if not all(isinstance(name, str) for name in names):
            raise ValueError("a shard's name is no text")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{path}: not a readable index ({error}).") from error
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise WeightsError(
            f"{path.parent}: {len(missing)} of {len(names)} shards are missing "
            f"({', '.join(missing[:3])}); download them."
        )
    tensors = SafetensorsFiles([path.parent / name for name in names], path.parent)
    for key, name in places.items():
        if key not in tensors or tensors.file_of(key).name != name:
            raise WeightsError(
                f"{path}: says that {key} is in {name}, which is not so; download the shard again."
            )
    unlisted = [key for key in tensors if key not in places]
    if unlisted:
        raise WeightsError(
            f"{path}: does not list {unlisted[0]} of {tensors.file_of(unlisted[0]).name}; "
            "shards and index are of different checkpoints."
        )
    return tensors


def load_weights(
    model: nn.Module, path: str | Path, dtype: torch.dtype | None = None,
    storage: str | None = None, loras: Sequence[tuple[Adapter, float]] = (),
    expert: str | None = None, device: torch.device | None = None,
) -> None:  # fmt: skip
    """Fill a model, which may be on meta, from a checkpoint of any layout, with LoRAs merged in.

    dtype: cast floating tensors, except parameters whose name contains one of the model's
    `keep_float32` parts. Tensors that need no cast stay mapped to the file. storage: "int8" or
    "float8", in which the blocks' linear layers are kept, see `store_layers`: of their dense
    weights a few rows are in memory at a time. loras: (adapter, strength), whose updates are added
    in float32 before a weight is rounded, once, or packed; expert: which network this is, by
    default told from the checkpoint's place. device: where the model goes, tensor by tensor, so
    that main memory holds a shard at a time; None leaves it there. WeightsError, and nothing is
    read, if checkpoint or LoRA does not fit; nothing is assigned unless all is read.
    """
    official = to_official(open_checkpoint_files(path))
    specs = official.specs()
    check_fit(model.state_dict(), specs, path, type(model).__name__)
    for adapter, _ in loras:
        check_usable(adapter, specs, expert or expert_of(path))
    keep = getattr(model, "keep_float32", ())
    targets = {key: _target(spec, key, keep, dtype) for key, spec in specs.items()}
    names = [] if storage is None else stored_layers(model)
    scales = {f"{name}.weight": f"{name}.scale" for name in names}
    updates = {key: found for key in official if (found := updates_of(loras, key))}
    # What is in its dtype stays mapped, but for a few small ones of a file that is else cast.
    cast = any(spec.dtype != targets[key] for key, spec in specs.items()) or bool(scales)
    mapped = {
        key for key, spec in specs.items()
        if device is None and spec.dtype == targets[key] and (not cast or spec.dtype == dtype)
        and key not in updates and key not in scales
    }  # fmt: skip
    ready: dict[str, Tensor] = {}
    with _bar(sum(num_bytes(spec) for key, spec in specs.items() if key not in mapped)) as bar:
        for key, tensor in in_turn(official, [key for key in official if key not in mapped]):
            found = updates.get(key, [])
            if storage is not None and key in scales:
                ready[key], ready[scales[key]] = packed(tensor, found, storage, device)
            else:
                ready[key] = rounded(tensor, found, targets[key], device)
            bar.update(num_bytes(tensor))
    # Last, from files opened anew: a mapping that was read from holds what was read in memory.
    ready |= {key: official[key] for key in official if key in mapped}
    if storage is not None:
        store_layers(model, storage)
    model.load_state_dict(ready, strict=True, assign=True)


def _bar(total: int) -> tqdm:
    """Of bytes; only where one would wait, and on a terminal."""
    return tqdm(total=total, unit="B", unit_scale=True, desc="load", leave=False,
                disable=None if total > 1e9 else True)  # fmt: skip


def _target(
    spec: Tensor, key: str, keep: Iterable[str], dtype: torch.dtype | None
) -> torch.dtype:  # fmt: skip
    """The dtype that a tensor shall have in memory."""
    if dtype is None or not spec.is_floating_point():
        return spec.dtype
    return torch.float32 if any(part in key for part in keep) else dtype


def check_fit(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path, what: str = "this model"
) -> None:
    """WeightsError naming the first missing, unexpected or wrongly shaped keys."""
    problems = [f"misses {key}" for key in expected if key not in found]
    problems += [f"has an unknown {key}" for key in found if key not in expected]
    problems += [
        f"{key} is {tuple(found[key].shape)}, the model needs {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in found and found[key].shape != tensor.shape
    ]
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise WeightsError(
            f"{path}: does not fit {what} ({len(problems)} problems: {shown}). "
            "Download the file again, or choose the model= that it is for."
        )


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of one file by its own names; WeightsError if missing or damaged."""
    return dict(open_tensors(path))


def read_metadata(path: str | Path) -> dict[str, str]:
    """The string metadata of a safetensors file."""
    return dict(SafetensorsFiles([path]).metadata)
