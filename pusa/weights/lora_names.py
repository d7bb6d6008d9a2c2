"""Module names of LoRA files: whatever a format calls a module -> the official names, and back."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pusa.weights import mochi_keys
from pusa.weights.adapters import Adapter, Target
from pusa.weights.keymaps import WAN_BLOCK, WAN_GLOBAL, rename_wan_module, underscored
from pusa.weights.lazy import WeightsError

_BLOCK = re.compile(r"(?:transformer_)?blocks_(\d+)_(.+)")


def is_mochi(modules: Iterable[str]) -> bool:
    """By official or diffusers names: some are Mochi's and not Wan's."""
    return any(official_module(m) is None and _mochi_place(m) is not None for m in modules)


def _mochi_place(name: str) -> tuple[str, tuple[str, ...]] | None:
    """(official module, diffusers' modules of it); None if Mochi has no such module."""
    official = mochi_keys.module_to_official(name)
    names = mochi_keys.module_to_diffusers(official)
    return None if official == name and names == (name,) else (official, names)


def official_module(name: str) -> str | None:
    """The official name of a Wan module in official or diffusers spelling; None if neither."""
    if rename_wan_module(name, "diffusers") is not None:
        return name
    if re.fullmatch(r"blocks\.\d+|head", name):  # holders of a modulation
        return name
    return rename_wan_module(name, "official")


@cache
def _kohya_tables() -> tuple[dict[str, str], dict[str, str]]:
    """Underscored spellings of modules inside a block, and of the others."""
    inside = {*WAN_BLOCK, *WAN_BLOCK.values(), *mochi_keys.BLOCK_MODULES}
    whole = {*WAN_GLOBAL, *WAN_GLOBAL.values(), *mochi_keys.GLOBAL_MODULES, "head"}
    return underscored(sorted(inside)), underscored(sorted(whole))


def from_kohya(name: str) -> str | None:
    """blocks_0_self_attn_q -> blocks.0.self_attn.q; None if no module is spelled so."""
    inside, whole = _kohya_tables()
    match = _BLOCK.fullmatch(name)
    if match is None:
        return f"blocks.{name[7:]}" if re.fullmatch(r"blocks_\d+", name) else whole.get(name)
    module = inside.get(match[2])
    root = "transformer_blocks" if name.startswith("transformer_") else "blocks"
    return None if module is None else f"{root}.{match[1]}.{module}"


def to_kohya(module: str) -> str:
    return module.replace(".", "_")


@dataclass(frozen=True)
class Part:
    """Where a diffusers module stands in an official one: the i-th of n groups of rows, or rows
    whose halves are exchanged."""

    module: str
    index: int
    count: int
    swapped: bool


def official_part(name: str, mochi: bool) -> Part | None:
    """The place of a module in official or diffusers spelling; None if the family has none such."""
    if not mochi:
        module = official_module(name)
        return None if module is None else Part(module, 0, 1, False)
    place = _mochi_place(name)
    if place is None:
        return None
    official, names = place
    if official == name:
        return Part(name, 0, 1, False)
    if name not in names:  # the last block's mod_y, which diffusers calls otherwise
        return Part(official, 0, 1, False)
    return Part(official, names.index(name), len(names), mochi_keys.swapped(official))


def fuse(module: str, parts: dict[int, Target], count: int, swapped: bool) -> Target:
    """One official target of the targets of its parts (Mochi's fused q, k, v).

    Parts with one and the same A share it; others are stacked along the rank.
    """
    if count == 1:
        (target,) = parts.values()
        return _swap(target) if swapped else target
    if any(target.diffs for target in parts.values()):
        raise WeightsError(f"{module}: changes besides A and B of a fused module are not read.")
    given = [(i, t.A, t.B, t.scale) for i, t in sorted(parts.items())
             if t.A is not None and t.B is not None]  # fmt: skip
    rows = given[0][2].shape[0]
    if len(given) == count and all(torch.equal(given[0][1], a) for _, a, _, _ in given):
        scales = {scale for *_, scale in given}
        if len(scales) == 1:
            b = torch.cat([b for _, _, b, _ in given])
            return Target(given[0][1], b, next(iter(parts.values())).alpha)
    a = torch.cat([a for _, a, _, _ in given])
    b = torch.zeros(count * rows, a.shape[0], dtype=given[0][2].dtype)
    column = 0
    for index, part_a, part_b, scale in given:
        width = part_a.shape[0]
        b[index * rows : (index + 1) * rows, column : column + width] = scale * part_b
        column += width
    return Target(a, b, float(a.shape[0]))


def _swap(target: Target) -> Target:
    b = None if target.B is None else _swapped_halves(target.B)
    diffs = {name: _swapped_halves(diff) for name, diff in target.diffs.items()}
    return Target(target.A, b, target.alpha, diffs)


def _swapped_halves(rows: Tensor) -> Tensor:
    return torch.cat(rows.chunk(2)[::-1])


def split(adapter: Adapter) -> Iterator[tuple[str, Target]]:
    """Diffusers' modules of an adapter, each with its part of the update."""
    mochi = is_mochi(adapter)
    for module, target in adapter.items():
        if not mochi:
            yield rename_wan_module(module, "diffusers") or module, target
            continue
        names = mochi_keys.module_to_diffusers(module, _num_layers(module, target))
        target = _swap(target) if mochi_keys.swapped(module) else target
        if len(names) == 1:
            yield names[0], target
            continue
        if target.B is None or target.diffs:
            raise WeightsError(f"{module}: only A and B can be split over {', '.join(names)}.")
        for name, rows in zip(names, target.B.chunk(len(names)), strict=True):
            a = None if target.A is None else target.A.clone()  # files share no memory
            yield name, Target(a, rows.contiguous(), target.alpha)


def _num_layers(module: str, target: Target) -> int:
    """So many blocks that a mod_y is the last block's exactly if it has a quarter of the rows: one
    scale of the text stream, which is half as wide as the visual one in every Mochi."""
    match = re.fullmatch(r"blocks\.(\d+)\.mod_y", module)
    if match is None or target.A is None or target.B is None:
        return mochi_keys.NUM_LAYERS
    last = 2 * target.B.shape[0] == target.A.shape[1]
    return int(match[1]) + (1 if last else 2)
