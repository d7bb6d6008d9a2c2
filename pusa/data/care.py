"""Care of a latent cache: disk need, verification, removal of what nobody uses, packing."""

import json
import time
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from pusa.data.cache import (
    KINDS,
    PACKS,
    CacheError,
    Entry,
    Item,
    LatentCache,
    digest_of,
    opened,
    read_entries,
)
from pusa.data.hashing import content_key

PACK_BYTES = 2**29
UNFINISHED = (".*.partial*", ".tmp??????")  # ours, and those that safetensors makes beside them


@dataclass(frozen=True)
class Health:
    """What `verify` found: how many tensors were read, and what is wrong: with tensors, by file and
    name, and with indices, by file."""

    num_items: int
    damaged: dict[tuple[Path, str], str]
    indices: dict[Path, str]

    @property
    def ok(self) -> bool:
        return not self.damaged and not self.indices


def verify(cache: LatentCache, progress=iter) -> Health:
    """Read everything and compare it with the hashes that were stored beside it; look whether what
    the indices name is there."""
    files = [file for kind in (*KINDS, PACKS) for file in cache.files(kind)]
    damaged: dict[tuple[Path, str], str] = {}
    there: set[str] = set()
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
                    else:
                        there.add(name)
        except (CacheError, SafetensorError, ValueError) as error:
            damaged[file, ""] = str(error)
    indices = {file: fault for file in cache.index_files() if (fault := _index_fault(file, there))}
    return Health(count, damaged, indices)


def _index_fault(file: Path, there: Set[str]) -> str:
    try:
        named = _names(read_entries(file))
    except CacheError as error:
        return str(error)
    lost = len(named - there)
    return f"{file}: {lost} of the {len(named)} tensors that it names are lost" if lost else ""


def _names(entries: Iterable[Entry]) -> set[str]:
    return {f"{kind}/{getattr(entry, kind)}" for entry in entries for kind in KINDS}


def _fault(tensor: Tensor, digest: str | None) -> str:
    if digest is None:
        return "has no hash"
    if digest_of(tensor) != digest:
        return "differs from its hash"
    return "" if torch.isfinite(tensor).all() else "is not finite"


def delete_damaged(cache: LatentCache, health: Health) -> None:
    """Remove damaged loose files; of a damaged pack keep what is sound, as loose files.

    Indices that name what is lost go, too: encoding again then makes it and them anew.
    """
    for file in {file for file, _ in health.damaged}:
        bad = {name for path, name in health.damaged if path == file}
        if file.parent.name == PACKS and "" not in bad:
            with opened(file) as pack:
                for name in set(pack.keys()) - bad:
                    kind, _, key = name.partition("/")
                    cache.write(kind, key, pack.get_tensor(name))
        file.unlink()
    cache.forget_packs()
    for file in health.indices:
        file.unlink(missing_ok=True)


def leftovers(cache: LatentCache, older_than: float = 86_400) -> list[Path]:
    """Unfinished files of processes that were killed, untouched for so many seconds."""
    limit = time.time() - older_than
    hidden = (p for name in UNFINISHED for p in cache.folder.rglob(name) if p.is_file())
    return sorted(p for p in hidden if p.stat().st_mtime < limit)


def unreferenced(
    cache: LatentCache, older_than: float = 0, without: Sequence[Path] = ()
) -> list[Item]:
    """What no index names, those in `without` left out, untouched for so many seconds: what is
    younger may be of a job that has not written its index yet."""
    limit = time.time() - older_than
    kept = {file: entries for file, entries in cache.indices().items() if file not in without}
    used = set().union(*map(_names, kept.values()))
    return [
        item
        for item in cache.items()
        if f"{item.kind}/{item.key}" not in used and item.file.stat().st_mtime <= limit
    ]


def superseded(cache: LatentCache) -> list[Path]:
    """Indices of which there is a newer one of the same name: of other captions or settings."""
    newest: dict[str, Path] = {}
    for file in sorted(cache.index_files(), key=lambda file: file.stat().st_mtime_ns):
        newest[file.stem.rpartition(".")[0]] = file
    return [file for file in cache.index_files() if file not in newest.values()]


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
