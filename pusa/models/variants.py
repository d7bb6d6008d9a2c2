"""The backbones that people have weights of, and which of them a set of tensors is.

Detection looks at names and shapes alone: file names, folders and metadata lie. Every variant has a
`_tiny` twin with the same tensor names, for tests and for trying a setup on a laptop.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor, nn

from pusa.models.mochi_dit import MochiDiT
from pusa.models.wan_dit import WanDiT

BACKBONES: Mapping[str, type[nn.Module]] = MappingProxyType({"wan": WanDiT, "mochi": MochiDiT})
WAN_HEAD_DIM = 128  # of every released Wan; the number of heads does not show in the shapes


@dataclass(frozen=True)
class Variant:
    """One architecture: its family ("wan", "mochi") and its constructor's arguments.

    same_tensors: variants whose tensors have the same names and shapes, which no detection can tell
    apart (the Wan2.2 A14B experts and Wan2.1 14B).
    """

    name: str
    family: str
    arguments: Mapping[str, int | bool] = field(hash=False)
    same_tensors: tuple[str, ...] = ()

    def build(self) -> nn.Module:
        """The network on meta."""
        with torch.device("meta"):
            return BACKBONES[self.family](**self.arguments)

    def __str__(self) -> str:
        also = f" (or {', '.join(self.same_tensors)}: same tensors)" if self.same_tensors else ""
        return f"{self.name}{also}"


_WAN_14B = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}
_TINY_14B = {
    "dim": 64, "ffn_dim": 176, "num_heads": 4, "num_layers": 4, "text_dim": 64, "text_len": 32,
}  # fmt: skip

# Sources: the vendors' config.json files; the counts in tests/models/test_variants.py pin them.
# The A14B models are two networks each, a high-noise and a low-noise expert.
_ARGUMENTS: Mapping[str, Mapping[str, int | bool]] = {
    "wan21_t2v_1_3b": {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30},
    "wan21_t2v_14b": _WAN_14B,
    "wan21_i2v_14b": _WAN_14B | {"in_channels": 36, "image_branch": True},
    "wan22_t2v_a14b": _WAN_14B,
    "wan22_i2v_a14b": _WAN_14B | {"in_channels": 36},
    "wan22_ti2v_5b": {
        "dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30,
        "in_channels": 48, "out_channels": 48,
    },
    "mochi_1": {"dim": 3072, "text_stream_dim": 1536, "num_heads": 24, "num_layers": 48},
    "wan21_t2v_1_3b_tiny": {
        "dim": 48, "ffn_dim": 112, "num_heads": 3, "num_layers": 3, "text_dim": 64, "text_len": 32,
    },
    "wan21_t2v_14b_tiny": _TINY_14B,
    # diffusers tells image tokens from text by counting 512 text tokens.
    "wan21_i2v_14b_tiny": _TINY_14B | {"in_channels": 36, "image_branch": True, "text_len": 512},
    "wan22_t2v_a14b_tiny": _TINY_14B,
    "wan22_i2v_a14b_tiny": _TINY_14B | {"in_channels": 36},
    "wan22_ti2v_5b_tiny": {
        "dim": 96, "ffn_dim": 256, "num_heads": 4, "num_layers": 3,
        "in_channels": 48, "out_channels": 48, "text_dim": 64, "text_len": 32,
    },
    "mochi_1_tiny": {
        "dim": 96, "text_stream_dim": 48, "num_heads": 3, "num_layers": 3,
        "text_dim": 64, "text_tokens": 32,
    },
    "wan_tiny": {  # the replica's own model, which has a trained base
        "dim": 160, "ffn_dim": 448, "num_heads": 5, "num_layers": 6, "text_dim": 64, "text_len": 24,
    },
}  # fmt: skip


def _variants() -> Iterator[tuple[str, Variant]]:
    for name, arguments in _ARGUMENTS.items():
        twins = [n for n, other in _ARGUMENTS.items() if other == arguments and n != name]
        family = "mochi" if name.startswith("mochi") else "wan"
        yield name, Variant(name, family, MappingProxyType(dict(arguments)), tuple(twins))


VARIANTS: Mapping[str, Variant] = MappingProxyType(dict(_variants()))
_SEEN = {  # the arguments that shapes show, by family
    "wan": ("dim", "ffn_dim", "num_layers", "in_channels", "out_channels", "text_dim",
            "image_branch"),
    "mochi": ("dim", "text_stream_dim", "num_heads", "num_layers", "in_channels", "text_dim"),
}  # fmt: skip
_DEFAULTS = {"in_channels": 16, "out_channels": 16, "text_dim": 4096, "image_branch": False}
_DEFAULTS_MOCHI = _DEFAULTS | {"in_channels": 12}


def detect(specs: Mapping[str, Tensor]) -> Variant:
    """The variant whose tensors these are (official names; only shapes are looked at).

    A size that is not in the table gets a name that says so; its head dimension is taken to be 128.
    ValueError if it is no backbone that is known, or a tensor that decides is missing.
    """
    if any(".self_attn.q." in key for key in specs):
        family, seen = "wan", _wan_shapes(specs)
    elif any(".attn.qkv_x." in key for key in specs):
        family, seen = "mochi", _mochi_shapes(specs)
    else:
        some = ", ".join(sorted(specs)[:3]) or "nothing"
        raise ValueError(f"no Wan or Mochi transformer (it holds {some}).")
    for variant in VARIANTS.values():
        if variant.family == family and _shown(variant) == seen:
            return variant
    return _unlisted(family, seen)


def _shown(variant: Variant) -> dict[str, int | bool]:
    defaults = _DEFAULTS if variant.family == "wan" else _DEFAULTS_MOCHI
    arguments = defaults | dict(variant.arguments)
    return {name: arguments[name] for name in _SEEN[variant.family]}


def _unlisted(family: str, seen: dict[str, int | bool]) -> Variant:
    name = f"{family}, a size of its own ({', '.join(f'{k}={v}' for k, v in seen.items())})"
    arguments = dict(seen)
    if family == "wan":
        if seen["dim"] % WAN_HEAD_DIM:
            raise ValueError(
                f"{name}: the number of heads does not show in the tensors and dim is no multiple "
                f"of {WAN_HEAD_DIM}; add it to pusa/models/variants.py."
            )
        arguments["num_heads"] = seen["dim"] // WAN_HEAD_DIM
    return Variant(name, family, MappingProxyType(arguments))


def _shape(specs: Mapping[str, Tensor], key: str, ndim: int) -> tuple[int, ...]:
    if key not in specs:
        raise ValueError(f"misses {key}; the file is not whole.")
    if specs[key].ndim != ndim:
        raise ValueError(f"{key} is {tuple(specs[key].shape)}, expected {ndim} dimensions.")
    return tuple(specs[key].shape)


def _num_blocks(specs: Mapping[str, Tensor]) -> int:
    return 1 + max(int(m[1]) for key in specs if (m := re.match(r"blocks\.(\d+)\.", key)))


def _wan_shapes(specs: Mapping[str, Tensor]) -> dict[str, int | bool]:
    dim, in_channels, *_ = _shape(specs, "patch_embedding.weight", 5)
    return {
        "dim": dim,
        "ffn_dim": _shape(specs, "blocks.0.ffn.0.weight", 2)[0],
        "num_layers": _num_blocks(specs),
        "in_channels": in_channels,
        "out_channels": _shape(specs, "head.head.weight", 2)[0] // 4,
        "text_dim": _shape(specs, "text_embedding.0.weight", 2)[1],
        "image_branch": any(key.startswith("img_emb.") for key in specs),
    }


def _mochi_shapes(specs: Mapping[str, Tensor]) -> dict[str, int | bool]:
    dim, in_channels, *_ = _shape(specs, "x_embedder.proj.weight", 4)
    text_stream_dim, text_dim = _shape(specs, "t5_yproj.weight", 2)
    return {
        "dim": dim,
        "text_stream_dim": text_stream_dim,
        "num_heads": _shape(specs, "pos_frequencies", 3)[1],
        "num_layers": _num_blocks(specs),
        "in_channels": in_channels,
        "text_dim": text_dim,
    }
