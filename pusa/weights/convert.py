"""Checkpoints from one layout to another: streamed, bit for bit unless a dtype is asked for."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pusa.models.variants import Variant
from pusa.weights.files import Checkpoint, WeightsError, find_experts, read_checkpoint
from pusa.weights.layouts import Cast, from_official
from pusa.weights.lazy import FLOAT8, Piece, Tensors, View
from pusa.weights.writing import SHARD_BYTES, Progress, write_checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Output:
    """Where and how a checkpoint is written: path (a folder, or one .safetensors file), layout
    (None: as it was read), dtype (None: as it was), size of a shard in bytes."""

    path: Path
    layout: str | None = None
    dtype: torch.dtype | None = None
    shard_bytes: int = SHARD_BYTES


def convert(path: str | Path, output: Output, progress: Progress = iter) -> list[Path]:
    """Write a checkpoint in another layout; a two-expert root becomes a two-expert root.

    Tensors are copied bit for bit unless a dtype is given. Returns what was written.
    """
    experts = find_experts(path)
    if not experts:
        return [write(read_checkpoint(path), output, progress)]
    if output.path.suffix == ".safetensors":
        raise ValueError(f"{output.path}: two experts do not fit into one file; name a folder.")
    opened = {expert: read_checkpoint(folder) for expert, folder in experts.items()}
    names = {"high": "transformer", "low": "transformer_2"}
    if output.layout != "diffusers":
        names = {"high": "high_noise_model", "low": "low_noise_model"}
    if output.layout == "comfy":
        names = {"high": "high_noise.safetensors", "low": "low_noise.safetensors"}
    return [
        write(checkpoint, replace(output, path=output.path / names[expert]), progress)
        for expert, checkpoint in opened.items()
    ]


def write(checkpoint: Checkpoint, output: Output, progress: Progress = iter) -> Path:
    """Write an open checkpoint in the output's layout, in the variant's own order of tensors."""
    layout = output.layout or checkpoint.layout
    tensors = _in_order(checkpoint)
    dtype = output.dtype
    if dtype is None and any(tensors.spec(key).dtype in FLOAT8 for key in tensors):
        raise WeightsError(
            f"{tensors.source}: holds float8 weights without scales; say what to write (--dtype)."
        )
    if dtype is None and checkpoint.tensors.scaled:
        dtype = torch.bfloat16
        log.info("%s: float8 weights with scales are written as bfloat16.", tensors.source)
    if dtype is not None:
        tensors = Cast(tensors, dtype)
    family = checkpoint.variant.family
    if layout == "comfy" and output.path.suffix != ".safetensors":
        raise ValueError(
            f"{output.path}: a ComfyUI checkpoint is one file; end it in .safetensors."
        )
    config = CONFIGS[layout](checkpoint.variant) if layout in CONFIGS else None
    return write_checkpoint(
        output.path, from_official(tensors, layout, family), config, output.shard_bytes,
        checkpoint.tensors.metadata, progress,
    )  # fmt: skip


def _in_order(checkpoint: Checkpoint) -> Tensors:
    order = checkpoint.variant.build().state_dict()
    return View(checkpoint.tensors, {key: Piece((key,)) for key in order})


def official_config(variant: Variant) -> dict[str, object]:
    """The vendor's config.json."""
    a = dict(variant.arguments)
    if variant.family == "mochi":
        return {"_class_name": "MochiModel", **a}
    kind = "ti2v" if a.get("in_channels") == 48 else "i2v" if a.get("in_channels") == 36 else "t2v"
    return {
        "_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": a["dim"], "eps": 1e-06,
        "ffn_dim": a["ffn_dim"], "freq_dim": 256, "in_dim": a.get("in_channels", 16),
        "model_type": kind, "num_heads": a["num_heads"], "num_layers": a["num_layers"],
        "out_dim": a.get("out_channels", 16), "text_len": a.get("text_len", 512),
    }  # fmt: skip


def diffusers_config(variant: Variant) -> dict[str, object]:
    """The config.json with which diffusers builds the same network."""
    a = dict(variant.arguments)
    heads, head_dim = a["num_heads"], a["dim"] // a["num_heads"]
    if variant.family == "mochi":
        return {
            "_class_name": "MochiTransformer3DModel", "num_attention_heads": heads,
            "attention_head_dim": head_dim, "num_layers": a["num_layers"],
            "pooled_projection_dim": a["text_stream_dim"], "in_channels": a.get("in_channels", 12),
            "text_embed_dim": a.get("text_dim", 4096), "patch_size": 2, "time_embed_dim": 256,
            "max_sequence_length": a.get("text_tokens", 256), "activation_fn": "swiglu",
        }  # fmt: skip
    image = bool(a.get("image_branch", False))
    return {
        "_class_name": "WanTransformer3DModel", "num_attention_heads": heads,
        "attention_head_dim": head_dim, "in_channels": a.get("in_channels", 16),
        "out_channels": a.get("out_channels", 16), "text_dim": a.get("text_dim", 4096),
        "ffn_dim": a["ffn_dim"], "num_layers": a["num_layers"], "freq_dim": 256, "eps": 1e-06,
        "patch_size": [1, 2, 2], "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads",
        "image_dim": 1280 if image else None, "added_kv_proj_dim": a["dim"] if image else None,
        "rope_max_seq_len": 1024,
    }  # fmt: skip


CONFIGS: Mapping[str, Callable[[Variant], dict[str, object]]] = {
    "official": official_config,
    "diffusers": diffusers_config,
}
