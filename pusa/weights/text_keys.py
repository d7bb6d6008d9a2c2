"""Names of the UMT5 encoder's tensors, official (Wan's .pth) <-> transformers, and its config.

Names that are in no table come back as they are, so that a strict check names them.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from pusa.weights.lazy import Piece, WeightsError

EMBEDDING = "shared.weight"
TIED = "encoder.embed_tokens.weight"  # transformers' second name of the same table

_WHOLE = {
    "token_embedding.weight": EMBEDDING,
    "norm.weight": "encoder.final_layer_norm.weight",
}
_ATTENTION = "layer.0.SelfAttention"
_FEED_FORWARD = "layer.1.DenseReluDense"
_BLOCK = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    **{f"attn.{name}.weight": f"{_ATTENTION}.{name}.weight" for name in "qkvo"},
    "pos_embedding.embedding.weight": f"{_ATTENTION}.relative_attention_bias.weight",
    "ffn.gate.0.weight": f"{_FEED_FORWARD}.wi_0.weight",
    "ffn.fc1.weight": f"{_FEED_FORWARD}.wi_1.weight",
    "ffn.fc2.weight": f"{_FEED_FORWARD}.wo.weight",
}
_OFFICIAL_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_DIFFUSERS_BLOCK = re.compile(r"encoder\.block\.(\d+)\.(.+)")


def to_diffusers(keys: Iterable[str]) -> dict[str, Piece]:
    """Key of transformers' UMT5EncoderModel, as diffusers folders hold it -> Piece of the official
    one. The embedding table comes under its first name only, `shared.weight`."""
    pieces = {}
    for key in keys:
        match = _OFFICIAL_BLOCK.fullmatch(key)
        if match and match[2] in _BLOCK:
            pieces[f"encoder.block.{match[1]}.{_BLOCK[match[2]]}"] = Piece((key,))
        else:
            pieces[_WHOLE.get(key, key)] = Piece((key,))
    return pieces


def to_official(keys: Iterable[str]) -> dict[str, Piece]:
    """Official key -> Piece of transformers' one; the embedding's second name is left out if the
    first is there."""
    keys = list(keys)
    whole = {new: old for old, new in _WHOLE.items()}
    block = {new: old for old, new in _BLOCK.items()}
    pieces = {}
    for key in keys:
        match = _DIFFUSERS_BLOCK.fullmatch(key)
        if match and match[2] in block:
            pieces[f"blocks.{match[1]}.{block[match[2]]}"] = Piece((key,))
        elif key == TIED:
            if EMBEDDING not in keys:
                pieces[whole[EMBEDDING]] = Piece((key,))
        else:
            pieces[whole.get(key, key)] = Piece((key,))
    return pieces


def constructor_arguments(specs: Mapping[str, Tensor]) -> dict:
    """Arguments of transformers' UMT5Config; the rest is the same in every UMT5.

    specs: transformers' key -> tensor of which only the shape is looked at. WeightsError naming
    the key if one that decides something is not there.
    """
    first = f"encoder.block.0.{_ATTENTION}"
    vocabulary, width = _shape(specs, EMBEDDING)
    buckets, heads = _shape(specs, f"{first}.relative_attention_bias.weight")
    layers = {match[1] for key in specs if (match := _DIFFUSERS_BLOCK.fullmatch(key))}
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": _shape(specs, f"{first}.q.weight")[0] // heads,
        "d_ff": _shape(specs, f"encoder.block.0.{_FEED_FORWARD}.wi_0.weight")[0],
        "num_layers": len(layers),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
    }


def _shape(specs: Mapping[str, Tensor], key: str) -> tuple[int, int]:
    if key not in specs or specs[key].ndim != 2:
        raise WeightsError(
            f"{key} is missing; the file is not a whole UMT5 encoder, download it again."
        )
    rows, columns = specs[key].shape
    return rows, columns
