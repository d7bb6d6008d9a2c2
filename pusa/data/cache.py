"""The latent cache: one small file per clip and per caption, named by what went into it, or many of
them packed into one file.

Content-addressed: a changed caption makes one new text, a changed resolution new latents only. Any
number of processes may read and write one folder: names never change their meaning, files appear
whole. Knows no clips and no encoder.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pusa.atomic import replacing, write_text

KINDS = ("latents", "text")
PACKS = "packs"


class CacheError(ValueError):
    """A cache file that is missing or damaged, with its path and the remedy."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample of an index: the clip's name and caption, the keys of its two tensors, and the
    latents' shape (C, F, h, w)."""

    name: str
    caption: str
    latents: str
    text: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """One stored tensor: its kind and key, the file that holds it, and its size in bytes."""

    kind: str
    key: str
    file: Path
    num_bytes: int


def digest_of(tensor: Tensor) -> str:
    """Content hash of a tensor's values, kept beside it so that a damaged bit is found."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return hashlib.blake2b(data, digest_size=8).hexdigest()


class LatentCache:
    """Files `<kind>/<xx>/<key>.safetensors`, packs of them, and indices, in one folder.

    kind is "latents" or "text"; a loose file and a pack hold the tensor under "<kind>/<key>".
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._packed: dict[str, Path] | None = None
        self._open: dict[Path, Any] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "_packed": self._packed, "_open": {}, "_process": None}

    def path(self, kind: str, key: str) -> Path:
        """Where a tensor lies, or would lie, when it is not packed."""
        return self.folder / kind / key[:2] / f"{key}.safetensors"

    def has(self, kind: str, key: str) -> bool:
        return f"{kind}/{key}" in self.packed() or self.path(kind, key).is_file()

    def forget_packs(self) -> None:
        """Read the packs' headers again when next asked; call it after packs have changed."""
        self._packed = None

    def packed(self) -> Mapping[str, Path]:
        """ "<kind>/<key>" -> pack, by the packs' headers; read once."""
        if self._packed is None:
            self._packed = {}
            for file in self.files(PACKS):
                with opened(file) as pack:
                    self._packed |= dict.fromkeys(pack.keys(), file)
        return self._packed

    def write(self, kind: str, key: str, tensor: Tensor) -> None:
        """Store a tensor whole or not at all."""
        self.save(self.path(kind, key), {f"{kind}/{key}": tensor.contiguous()})

    def save(self, target: Path, tensors: dict[str, Tensor]) -> None:
        """Write tensors with their hashes to one file of the cache."""
        digests = {name: digest_of(tensor) for name, tensor in tensors.items()}
        metadata = {"digests": json.dumps(digests, sort_keys=True)}
        try:
            with replacing(target) as partial:
                save_file(tensors, partial, metadata)
        except SafetensorError as error:
            raise OSError(errno.ENOSPC, f"could not be written ({error})", str(target)) from error

    def read(self, kind: str, key: str) -> Tensor:
        """A tensor, memory-mapped. CacheError if it is missing or its file is damaged."""
        name = f"{kind}/{key}"
        pack = self.packed().get(name)
        if pack is None and not self.path(kind, key).is_file():
            self._packed = None  # packed by somebody else in the meantime?
            pack = self.packed().get(name)
        try:
            if pack is not None:
                return self._pack(pack).get_tensor(name)
            with opened(self.path(kind, key)) as file:
                return file.get_tensor(name)
        except SafetensorError as error:
            raise CacheError(
                f"{pack or self.path(kind, key)}: does not hold {name} ({error}); run "
                "`pusa data cache verify --delete`, then encode again."
            ) from error

    def _pack(self, path: Path) -> Any:
        """An open pack; kept open, but never over a fork."""
        if self._process != os.getpid():
            self._open, self._process = {}, os.getpid()
        if path not in self._open:
            self._open[path] = opened(path)
        return self._open[path]

    def files(self, kind: str) -> list[Path]:
        """Files of a kind, or packs; not the unfinished ones, which are hidden."""
        found = (self.folder / kind).glob("*.safetensors" if kind == PACKS else "*/*.safetensors")
        return sorted(file for file in found if not file.name.startswith("."))

    def items(self) -> Iterator[Item]:
        """Everything that is stored, loose and packed."""
        for kind in KINDS:
            for file in self.files(kind):
                yield Item(kind, file.stem, file, file.stat().st_size)
        for file in self.files(PACKS):
            with opened(file) as pack:
                for name in pack.keys():  # noqa: SIM118
                    part = pack.get_slice(name)
                    size = _BYTES[part.get_dtype()]
                    for side in part.get_shape():
                        size *= side
                    kind, _, key = name.partition("/")
                    yield Item(kind, key, file, size)

    def index_path(self, name: str, fingerprint: str) -> Path:
        return self.folder / "index" / f"{name}.{fingerprint[:16]}.json"

    def write_index(self, name: str, fingerprint: str, entries: Sequence[Entry]) -> None:
        """Record which tensors make up a data set, for which clips and settings (fingerprint)."""
        rows = [list(asdict(entry).values()) for entry in entries]
        value = {"name": name, "fingerprint": fingerprint, "columns": list(Entry.__slots__),
                 "rows": rows}  # fmt: skip
        write_text(self.index_path(name, fingerprint), json.dumps(value, separators=(",", ":")))

    def read_index(self, name: str, fingerprint: str | None = None) -> list[Entry]:
        """Entries of an index, without a fingerprint the newest of its name. ValueError if there is
        none."""
        folder = self.folder / "index"
        files = [self.index_path(name, fingerprint)] if fingerprint else list(
            folder.glob(f"{name}.????????????????.json"))  # fmt: skip
        files = sorted((f for f in files if f.is_file()), key=lambda f: f.stat().st_mtime_ns)
        if not files:
            raise ValueError(f"{folder}: no index {name!r} in this cache; run `pusa encode` first.")
        return read_entries(files[-1])

    def has_index(self, name: str, fingerprint: str) -> bool:
        return self.index_path(name, fingerprint).is_file()

    def indices(self) -> dict[Path, list[Entry]]:
        """All indices of the cache."""
        return {file: read_entries(file) for file in self.index_files()}

    def index_files(self) -> list[Path]:
        found = (self.folder / "index").glob("*.json")
        return sorted(file for file in found if not file.name.startswith("."))


def read_entries(file: Path) -> list[Entry]:
    """The entries of an index's file. CacheError if it is damaged."""
    try:
        value = json.loads(file.read_text())
        return [
            Entry(name, caption, latents, text, tuple(shape))
            for name, caption, latents, text, shape in value["rows"]
        ]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CacheError(
            f"{file}: not a readable index ({error}); run `pusa data cache verify --delete`, then "
            "encode again."
        ) from error


_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CacheError(
            f"{path}: missing or damaged ({error}); run `pusa data cache verify --delete`, then "
            "encode again."
        ) from error
