"""Names of the Mochi transformer's tensors: official <-> diffusers, module by module.

Diffusers keeps q, k and v apart, and has the halves of the SwiGLU and of the last modulation the
other way round. Unknown names come back as they are, so that a strict check names them.
"""

import re
from collections.abc import Iterable, Mapping

from pusa.weights.lazy import Piece, WeightsError

NUM_LAYERS = 48  # of Mochi-1
# Official module -> diffusers' modules, whose rows stand one below the other in the official one.
_BLOCK: Mapping[str, tuple[str, ...]] = {
    "mod_x": ("norm1.linear",),
    "mod_y": ("norm1_context.linear",),
    "attn.qkv_x": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.qkv_y": ("attn1.add_q_proj", "attn1.add_k_proj", "attn1.add_v_proj"),
    "attn.q_norm_x": ("attn1.norm_q",),
    "attn.k_norm_x": ("attn1.norm_k",),
    "attn.q_norm_y": ("attn1.norm_added_q",),
    "attn.k_norm_y": ("attn1.norm_added_k",),
    "attn.proj_x": ("attn1.to_out.0",),
    "attn.proj_y": ("attn1.to_add_out",),
    "mlp_x.w1": ("ff.net.0.proj",),
    "mlp_x.w2": ("ff.net.2",),
    "mlp_y.w1": ("ff_context.net.0.proj",),
    "mlp_y.w2": ("ff_context.net.2",),
}
_LAST_MOD_Y = "norm1_context.linear_1"  # diffusers' mod_y of the last block, which is a scale alone
_GLOBAL: Mapping[str, str] = {
    "x_embedder.proj": "patch_embed.proj",
    "t_embedder.mlp.0": "time_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_embed.timestep_embedder.linear_2",
    "t5_y_embedder.to_kv": "time_embed.pooler.to_kv",
    "t5_y_embedder.to_q": "time_embed.pooler.to_q",
    "t5_y_embedder.to_out": "time_embed.pooler.to_out",
    "t5_yproj": "time_embed.caption_proj",
    "pos_frequencies": "pos_frequencies",
    "final_layer.mod": "norm_out.linear",
    "final_layer.linear": "proj_out",
}
_OFFICIAL_BLOCK = {name: module for module, names in _BLOCK.items() for name in names}
_OFFICIAL_BLOCK[_LAST_MOD_Y] = "mod_y"
_OFFICIAL_GLOBAL = {theirs: ours for ours, theirs in _GLOBAL.items()}

# The modules of a block and the others, in both spellings.
BLOCK_MODULES = (*_BLOCK, *_OFFICIAL_BLOCK)
GLOBAL_MODULES = (*_GLOBAL, *_OFFICIAL_GLOBAL)

_BLOCK_NAME = re.compile(r"(transformer_)?blocks\.(\d+)\.(.+)")
_SWAPPED = re.compile(r"blocks\.\d+\.mlp_[xy]\.w1|final_layer\.mod")


def to_diffusers(keys: Iterable[str]) -> dict[str, Piece]:
    """Diffusers key -> Piece of official keys, for every key of an official state dict.

    The highest block is taken to be the model's last. WeightsError if two keys get one name, as in
    a file that mixes both layouts.
    """
    keys = list(keys)
    num_layers = 1 + max((_block_index(key) for key in keys), default=0)
    pieces: dict[str, Piece] = {}
    for key in keys:
        module, parameter = _split(key)
        names = module_to_diffusers(module, num_layers)
        for index, name in enumerate(names):
            part = (index, len(names)) if len(names) > 1 else None
            _add(pieces, name + parameter, Piece((key,), part, swapped(module)))
    return pieces


def to_official(keys: Iterable[str]) -> dict[str, Piece]:
    """Official key -> Piece of diffusers keys, for every key of a diffusers state dict.

    A fused tensor names all its sources even if `keys` has only some of them. WeightsError as in
    to_diffusers.
    """
    pieces: dict[str, Piece] = {}
    for key in keys:
        module, parameter = _split(key)
        official = module_to_official(module)
        names = module_to_diffusers(official) if official != module else ()
        sources = tuple(name + parameter for name in names) if len(names) > 1 else (key,)
        swap = official != module and swapped(official)
        _add(pieces, official + parameter, Piece(sources, swap=swap))
    return pieces


def module_to_diffusers(module: str, num_layers: int = NUM_LAYERS) -> tuple[str, ...]:
    """Diffusers' modules of an official one, in the order of its rows; an unknown one itself."""
    match = _BLOCK_NAME.fullmatch(module)
    if match is None:
        return (_GLOBAL.get(module, module),)
    if match[1] or match[3] not in _BLOCK:
        return (module,)
    last = match[3] == "mod_y" and int(match[2]) == num_layers - 1
    names = (_LAST_MOD_Y,) if last else _BLOCK[match[3]]
    return tuple(f"transformer_blocks.{match[2]}.{name}" for name in names)


def module_to_official(module: str) -> str:
    """The official module that one of diffusers' is, or is a part of; an unknown one itself."""
    match = _BLOCK_NAME.fullmatch(module)
    if match is None:
        return _OFFICIAL_GLOBAL.get(module, module)
    if not match[1] or match[3] not in _OFFICIAL_BLOCK:
        return module
    return f"blocks.{match[2]}.{_OFFICIAL_BLOCK[match[3]]}"


def swapped(module: str) -> bool:
    """Whether diffusers has the halves of this official module's rows the other way round."""
    return _SWAPPED.fullmatch(module) is not None


def _split(key: str) -> tuple[str, str]:
    """Module and the parameter's name with its dot; pos_frequencies stands alone."""
    module, dot, parameter = key.rpartition(".")
    return (module, dot + parameter) if parameter in ("weight", "bias") else (key, "")


def _block_index(key: str) -> int:
    match = _BLOCK_NAME.fullmatch(key)
    return int(match[2]) if match else 0


def _add(pieces: dict[str, Piece], key: str, piece: Piece) -> None:
    if pieces.setdefault(key, piece) != piece:
        found = f"{pieces[key].sources[0]} and {piece.sources[0]}"
        raise WeightsError(f"{found} are both {key}; the file mixes two layouts, keep one.")
