"""Names of the Wan transformer's tensors: official <-> diffusers, module by module.

Tables hold modules and parameters that stand alone; unknown names come back as they are, so that a
strict check names them.
"""

import re
from collections.abc import Iterable, Mapping

from pusa.weights.lazy import Piece

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0",
              "norm_q": "norm_q", "norm_k": "norm_k"}  # fmt: skip
_IMAGE = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}

# Of a block; norm1 and norm2 of the official code have no parameters.
WAN_BLOCK: Mapping[str, str] = {
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in (_ATTENTION | _IMAGE).items()},
    "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2", "norm3": "norm2",
    "modulation": "scale_shift_table",
}  # fmt: skip
WAN_GLOBAL: Mapping[str, str] = {
    "patch_embedding": "patch_embedding",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.modulation": "scale_shift_table",
    "head.head": "proj_out",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
}

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def _backwards(table: Mapping[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in table.items()}


_TABLES = {
    "diffusers": (WAN_GLOBAL, WAN_BLOCK),
    "official": (_backwards(WAN_GLOBAL), _backwards(WAN_BLOCK)),
}


def rename_wan_module(module: str, to: str) -> str | None:
    """A module's (or lone parameter's) name in the layout `to`: "diffusers" or "official"; None
    if the other layout has no such module."""
    whole, block = _TABLES[to]
    match = _BLOCK.fullmatch(module)
    if match is None:
        return whole.get(module)
    inside = block.get(match[2])
    return None if inside is None else f"blocks.{match[1]}.{inside}"


def rename_wan(keys: Iterable[str], to: str) -> dict[str, Piece]:
    """New key -> Piece of the old one, for every key of a Wan state dict."""
    pieces = {}
    for key in keys:
        module, _, parameter = key.rpartition(".")
        alone = rename_wan_module(key, to)
        inside = rename_wan_module(module, to)
        new = alone or (f"{inside}.{parameter}" if inside else key)
        pieces[new] = Piece((key,))
    return pieces


def underscored(names: Iterable[str]) -> dict[str, str]:
    """Kohya's spelling of module names, dots as underscores -> the name. ValueError if two names
    would be spelled alike."""
    table: dict[str, str] = {}
    for name in names:
        spelled = name.replace(".", "_")
        if table.setdefault(spelled, name) != name:
            raise ValueError(f"{name} and {table[spelled]} are both spelled {spelled}.")
    return table
