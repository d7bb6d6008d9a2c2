"""Care of a latent cache: disk need, verification, removal of what nobody uses, packing."""

import json
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from pusa.data.cache import KINDS, PACKS, CacheError, Entry, Item, LatentCache, digest_of, opened
from pusa.data.hashing import content_key

PACK_BYTES = 2**29


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that holds, or will hold, a folder."""
    here = folder.absolute()
    return shutil.disk_usage(next(p for p in (here, *here.parents) if p.exists())).free


@dataclass(frozen=True)
class Health:
    """What `verify` found: how many tensors were read, and what is wrong, by file and name."""

    num_items: int
    damaged: dict[tuple[Path, str], str]


def verify(cache: LatentCache, progress=iter) -> Health:
    """Read everything and compare it with the hashes that were stored beside it."""
    files = [file for kind in (*KINDS, PACKS) for file in cache.files(kind)]
    damaged: dict[tuple[Path, str], str] = {}
    count = 0
    for file in progress(files):
        try:
            with opened(file) as file_:
                digests = json.loads((file_.metadata() or {}).get("digests", "{}"))
                for name in file_.keys():  # noqa: SIM118
                    count += 1
                    reason = _fault(file_.get_tensor(name), digests.get(name))
                    if reason:
                        damaged[file, name] = reason
        except (CacheError, SafetensorError, ValueError) as error:
            damaged[file, ""] = str(error)
    return Health(count, damaged)


def _fault(tensor: Tensor, digest: str | None) -> str:
    if digest is None:
        return "has no hash"
    if digest_of(tensor) != digest:
        return "differs from its hash"
    return "" if torch.isfinite(tensor).all() else "is not finite"


def delete_damaged(cache: LatentCache, health: Health) -> None:
    """Remove damaged loose files; of a damaged pack keep what is sound, as loose files."""
    for file in {file for file, _ in health.damaged}:
        bad = {name for path, name in health.damaged if path == file}
        if file.parent.name == PACKS and "" not in bad:
            with opened(file) as pack:
                for name in set(pack.keys()) - bad:
                    kind, _, key = name.partition("/")
                    cache.write(kind, key, pack.get_tensor(name))
        file.unlink()
    cache.forget_packs()


def leftovers(cache: LatentCache, older_than: float = 86_400) -> list[Path]:
    """Unfinished files of processes that were killed, untouched for so many seconds."""
    limit = time.time() - older_than
    hidden = (p for p in cache.folder.rglob(".*.partial*") if p.is_file())
    return sorted(p for p in hidden if p.stat().st_mtime < limit)


def unreferenced(cache: LatentCache) -> list[Item]:
    """What no index names."""
    used = {
        f"{kind}/{getattr(entry, kind)}"
        for entries in cache.indices().values()
        for entry in entries
        for kind in KINDS
    }
    return [item for item in cache.items() if f"{item.kind}/{item.key}" not in used]


def collect(cache: LatentCache, items: Iterable[Item]) -> None:
    """Delete stored tensors; a pack is written anew without them."""
    by_file: dict[Path, set[str]] = {}
    for item in items:
        by_file.setdefault(item.file, set()).add(f"{item.kind}/{item.key}")
    for file, names in by_file.items():
        if file.parent.name == PACKS:
            with opened(file) as pack:
                kept = {name: pack.get_tensor(name) for name in sorted(set(pack.keys()) - names)}
                if kept:
                    cache.save(_pack_path(cache, kept), kept)
        file.unlink()
    cache.forget_packs()


def pack(cache: LatentCache, entries: Sequence[Entry], progress=iter) -> int:
    """Put an index's loose tensors into packs of 512 MB, in its order; returns how many.

    A pack is there before its loose files go, so that nothing is lost when this is stopped.
    """
    packed = 0
    group: dict[str, Tensor] = {}
    size = 0
    names = dict.fromkeys((kind, getattr(entry, kind)) for kind in KINDS for entry in entries)
    todo = [pair for pair in names if cache.path(*pair).is_file()]
    for kind, key in progress(todo):
        with opened(cache.path(kind, key)) as file:
            group[f"{kind}/{key}"] = tensor = file.get_tensor(f"{kind}/{key}")
        size += tensor.numel() * tensor.element_size()
        if size >= PACK_BYTES or (kind, key) == todo[-1]:
            cache.save(_pack_path(cache, group), group)
            for name in group:
                kind, _, key = name.partition("/")
                cache.path(kind, key).unlink(missing_ok=True)
            packed, group, size = packed + len(group), {}, 0
    cache.forget_packs()
    return packed


def _pack_path(cache: LatentCache, names: Iterable[str]) -> Path:
    return cache.folder / PACKS / f"{content_key(*names)}.safetensors"
