"""Layouts of a backbone's checkpoint: which one a set of tensors is in, and the way to and from the
official names. Tensors stay in their files; only names and cheap row operations are involved."""

import json
import logging
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pusa.weights import mochi_keys
from pusa.weights.keymaps import rename_wan
from pusa.weights.lazy import FLOAT8, Changed, Piece, Tensors, View, WeightsError

log = logging.getLogger(__name__)
LAYOUTS = ("official", "diffusers", "comfy")
COMFY_PREFIX = "model.diffusion_model."
PREFIXES = (COMFY_PREFIX, "diffusion_model.", "module.")
# Scales that multiply a float8 weight, by the suffix of ComfyUI's two generations of files.
WEIGHT_SCALES = (".scale_weight", ".weight_scale")
# What else such files hold; none of it changes the weights.
IGNORED = (".scale_input", ".input_scale")
FORMAT_MARK = ".comfy_quant"


def strip_prefix(tensors: Tensors) -> tuple[str, Tensors]:
    """(prefix, tensors without it). In an all-in-one file only the transformer's part is kept."""
    for prefix in PREFIXES:
        inside = [key for key in tensors if key.startswith(prefix)]
        if inside:
            if len(inside) < len(tensors):
                log.info(
                    "%s: reading the %d tensors below %s, leaving %d others.",
                    tensors.source, len(inside), prefix, len(tensors) - len(inside),
                )  # fmt: skip
            return prefix, View(
                tensors, {key.removeprefix(prefix): Piece((key,)) for key in inside}
            )
    return "", tensors


def is_diffusers(keys: Iterable[str]) -> bool:
    return any(".attn1.to_q." in key for key in keys)


def to_official(tensors: Tensors) -> Tensors:
    """The same state dict in official names, float8 weights scaled.

    Its layout tells what the names were: "official", "diffusers" or "comfy" (official names below
    a prefix).
    """
    prefix, tensors = strip_prefix(tensors)
    tensors = unscaled(tensors)
    if is_diffusers(tensors):
        mochi = any(key.startswith("transformer_blocks.") for key in tensors)
        pieces = mochi_keys.to_official(tensors) if mochi else rename_wan(tensors, "official")
        _check_sources(pieces, tensors)
        tensors = View(tensors, pieces)
        tensors.layout = "diffusers"
    elif prefix:
        tensors.layout = "comfy"
    return tensors


def from_official(tensors: Tensors, layout: str, family: str) -> Tensors:
    """Official names -> the names of `layout`; ValueError for an unknown one."""
    if layout == "official":
        return tensors
    if layout == "comfy":
        return View(tensors, {COMFY_PREFIX + key: Piece((key,)) for key in tensors})
    if layout == "diffusers":
        pieces = (
            mochi_keys.to_diffusers(tensors)
            if family == "mochi"
            else rename_wan(tensors, "diffusers")
        )
        return View(tensors, pieces)
    raise ValueError(f"layout {layout!r} is unknown; use one of {', '.join(LAYOUTS)}.")


def _check_sources(pieces: Mapping[str, Piece], tensors: Tensors) -> None:
    """A fused tensor may need three parts of which one is not there."""
    for piece in pieces.values():
        for source in piece.sources:
            if source not in tensors:
                raise WeightsError(
                    f"{tensors.source}: misses {source}; the file is not whole, "
                    "download or export it again."
                )


class Scaled(Changed):
    """float8 weights times their scales, in float32; every other tensor as it is."""

    def __init__(self, base: Tensors, scales: Mapping[str, str], names: Iterable[str]):
        super().__init__(base, names)
        self.scales, self.scaled = scales, bool(scales)
        # ComfyUI's note of what is quantized would be untrue of the scaled weights.
        self.metadata = {k: v for k, v in base.metadata.items() if k != "_quantization_metadata"}

    def __getitem__(self, key: str) -> Tensor:
        tensor = self.base[key]
        if key not in self.scales:
            return tensor
        scale = self.base[self.scales[key]].float()
        return tensor.float() * (scale[:, None] if scale.ndim == 1 < tensor.ndim else scale)

    def spec(self, key: str) -> Tensor:
        spec = self.base.spec(key)
        return spec.float() if key in self.scales else spec


def unscaled(tensors: Tensors) -> Tensors:
    """Apply the scales of a float8 file; the same object if there is nothing to do.

    WeightsError for a quantization that is not float8 with a scale per tensor or row, or for a
    scale without its weight.
    """
    scales, dropped = {}, set()
    for key in tensors:
        suffix = next((s for s in (*WEIGHT_SCALES, *IGNORED, FORMAT_MARK) if key.endswith(s)), None)
        if key == "scaled_fp8" or suffix is not None:
            dropped.add(key)
        if suffix is None:
            continue
        weight = key.removesuffix(suffix) + ".weight"
        if weight not in tensors:
            raise WeightsError(f"{tensors.source}: {key} scales {weight}, which is not there.")
        if suffix in WEIGHT_SCALES:
            scales[weight] = key
        if suffix == FORMAT_MARK:
            _check_format(tensors, key)
    for weight in scales:
        if tensors.spec(weight).dtype not in FLOAT8:
            raise WeightsError(
                f"{tensors.source}: {weight} has a scale but is {tensors.spec(weight).dtype}; "
                "only float8 files with scales are read. Use the bfloat16 file."
            )
        rows, scale = tensors.spec(weight).shape[0], tensors.spec(scales[weight])
        if scale.numel() not in (1, rows) or scale.shape[:1] not in ((), (1,), (rows,)):
            raise WeightsError(
                f"{tensors.source}: {scales[weight]} is {tuple(scale.shape)}; only one scale per "
                "tensor or row is read. Use the bfloat16 file."
            )
    packed = [k for k in tensors if tensors.spec(k).dtype in (torch.uint8, torch.int8)
              and k not in dropped]  # fmt: skip
    if packed:
        raise WeightsError(
            f"{tensors.source}: {packed[0]} is packed integers (GGUF, nf4, int8); such files are "
            "not read. Use the bfloat16 or float8 file."
        )
    if not dropped:
        return tensors
    return Scaled(tensors, scales, [key for key in tensors if key not in dropped])


def _check_format(tensors: Tensors, key: str) -> None:
    """ComfyUI's mark is a JSON text as bytes, {"format": "float8_e4m3fn"}."""
    try:
        name = json.loads(bytes(tensors[key].tolist()).decode())["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{tensors.source}: {key} is not a readable mark ({error}).") from error
    if not str(name).startswith("float8"):
        raise WeightsError(
            f"{tensors.source}: {key} says {name}; only float8 is read. Use the bfloat16 file."
        )


class Cast(Changed):
    """Floating tensors cast to a dtype as they are read; to float32 where a part of `keep_float32`
    is in the name."""

    def __init__(self, base: Tensors, dtype: torch.dtype, keep_float32: tuple[str, ...] = ()):
        super().__init__(base)
        self.dtype, self.keep_float32 = dtype, keep_float32

    def __getitem__(self, key: str) -> Tensor:
        return self._cast(key, self.base[key])

    def spec(self, key: str) -> Tensor:
        return self._cast(key, self.base.spec(key))

    def _cast(self, key: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        kept = any(part in key for part in self.keep_float32)
        return tensor.to(torch.float32 if kept else self.dtype)
